"""The checks of the gate on random predictions: the clearly bad is refused, what chance explains is not, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.config.promotion import GateSettings
from pipeline.core.errors import UserError
from pipeline.promotion.checks import (
    HeldOutPredictions,
    check_against_champion,
    check_candidate,
    check_flips,
    check_speed,
    not_measured,
)
from pipeline.promotion.decision import GateCheck

SLUGS = ("round", "spiral", "edge_on", "ring")


def settings(**values: Any) -> GateSettings:
    return GateSettings.model_validate(values)


def predict(predicted: np.ndarray, confidence: float = 0.9, coverage: float = 0.9) -> HeldOutPredictions:
    """Predictions of equal confidence, with sets of the predicted class alone; thresholds from 1,000 images."""
    p = np.full((len(predicted), len(SLUGS)), (1 - confidence) / (len(SLUGS) - 1), dtype=np.float32)
    p[np.arange(len(predicted)), predicted] = confidence
    return HeldOutPredictions(p, np.eye(len(SLUGS), dtype=bool)[predicted], coverage, 1000)


def wrong_at(labels: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    predicted = labels.copy()
    predicted[rows] = (predicted[rows] + 1) % len(SLUGS)
    return predicted


def by_name(checks: list[GateCheck]) -> dict[str, GateCheck]:
    return {check.name: check for check in checks}


LABELS = np.repeat(np.arange(4), (150, 100, 40, 10))


# --- against the champion -----------------------------------------------------------------------------------------


def against(
    candidate: np.ndarray, champion: np.ndarray, labels: np.ndarray = LABELS, **values: Any
) -> dict[str, GateCheck]:
    return by_name(check_against_champion(labels, predict(candidate), predict(champion), SLUGS, settings(**values)))


def test_equal_calls_pass_with_their_numbers() -> None:
    predicted = wrong_at(LABELS, np.arange(0, 300, 5))
    checks = against(predicted, predicted)
    assert list(checks) == ["accuracy", "macro_f1", "recall"] and all(check.passed for check in checks.values())
    assert checks["accuracy"].value == checks["accuracy"].reference == pytest.approx(0.8)


def test_a_clear_loss_is_refused_with_its_numbers() -> None:
    checks = against(wrong_at(LABELS, np.arange(0, 300, 3)), wrong_at(LABELS, np.arange(0, 300, 9)))
    assert not checks["accuracy"].passed and not checks["macro_f1"].passed
    assert "0.667 against 0.887: -0.220" in checks["accuracy"].words
    assert "0 images gained and 66 lost of 300" in checks["accuracy"].words


def test_a_clear_gain_passes_whatever_is_required() -> None:
    checks = against(LABELS, wrong_at(LABELS, np.arange(0, 300, 5)), require="better")
    assert all(check.passed for check in checks.values())
    words = checks["improvement"].words
    assert (checks["improvement"].value or 0) > 0.2 and "a gain is shown" in words and "macro_f1 1.000 against" in words


def test_better_refuses_what_is_only_as_good() -> None:
    predicted = wrong_at(LABELS, np.arange(0, 300, 5))
    one_less = wrong_at(LABELS, np.arange(5, 300, 5))
    checks = against(one_less, predicted, require="better")
    assert checks["accuracy"].passed and not checks["improvement"].passed
    assert "gate.require = better" in checks["improvement"].words
    clear = wrong_at(LABELS, np.arange(0, 300, 50))
    assert against(clear, predicted, require="better", margin=0.02)["improvement"].passed
    assert not against(clear, predicted, require="better", margin=0.2)["improvement"].passed


def test_a_loss_within_the_margin_is_tolerated() -> None:
    candidate, champion = wrong_at(LABELS, np.arange(0, 300, 10)), LABELS
    assert not against(candidate, champion)["accuracy"].passed
    assert against(candidate, champion, margin=0.1)["accuracy"].passed


def test_a_class_that_collapses_is_refused_where_accuracy_hardly_moves() -> None:
    candidate = LABELS.copy()
    candidate[-10:] = 0  # every ring is predicted round
    champion = wrong_at(LABELS, slice(0, 12))
    checks = against(candidate, champion)
    assert checks["accuracy"].passed and not checks["recall"].passed
    assert "lost: ring 1.00 → 0.00 on 10 images (p = 0.00098)" in checks["recall"].words
    assert (checks["recall"].value, checks["recall"].reference) == (0.0, 1.0)
    assert against(candidate, champion, recall_drop=1.0)["recall"].passed


def test_a_class_of_a_few_images_may_lose_them_by_chance() -> None:
    labels = np.repeat(np.arange(4), (50, 30, 10, 3))
    candidate = np.where(labels == 3, 0, labels)
    checks = against(candidate, labels, labels)
    assert checks["recall"].passed and "ring 1.00 → 0.00 on 3 images" in checks["recall"].words


def disagreeing(rng: np.random.Generator, n: int, loss: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels int (n,) and calls of a candidate that is worse than the champion by `loss`: each is right where the other
    is wrong on a share of 0.07, and `loss` more."""
    labels = rng.permutation(np.arange(n) % len(SLUGS))
    u = rng.random(n)
    candidate, champion = u < 0.8 - loss, (u > 0.07) & (u < 0.87)
    return labels, np.where(candidate, labels, (labels + 1) % 4), np.where(champion, labels, (labels + 2) % 4)


def refusals(n: int, loss: float, trials: int) -> int:
    rng, refused = np.random.default_rng(n), 0
    for _ in range(trials):
        labels, candidate, champion = disagreeing(rng, n, loss)
        refused += not all(check.passed for check in against(candidate, champion, labels).values())
    return refused


def test_an_equal_candidate_is_seldom_refused_however_few_the_images() -> None:
    assert refusals(60, loss=0.0, trials=20) <= 2  # three checks at 1 % each: more in one of a hundred tries


def test_a_worse_candidate_is_nearly_always_refused() -> None:
    """docs/promotion.md says which loss is found at which number of images."""
    assert refusals(300, loss=0.12, trials=10) >= 8


# --- alone --------------------------------------------------------------------------------------------------------


def alone(predicted: np.ndarray, confidence: float = 0.9, **values: Any) -> dict[str, GateCheck]:
    return by_name(check_candidate(LABELS, predict(predicted, confidence), SLUGS, settings(**values)))


def test_an_honest_model_passes_alone() -> None:
    checks = alone(wrong_at(LABELS, np.arange(0, 300, 10)))
    assert list(checks) == ["macro_f1_floor", "recall_floors", "calibration", "coverage"]
    assert all(check.passed for check in checks.values())


def test_floors_are_absolute() -> None:
    predicted = wrong_at(LABELS, slice(291, 300))
    checks = alone(predicted, min_macro_f1=0.95, min_recall={"round": 0.9, "ring": 0.5})
    assert not checks["macro_f1_floor"].passed and "gate.min_macro_f1 is 0.950" in checks["macro_f1_floor"].words
    assert checks["recall_floors"].words == "ring 0.10 of at least 0.50"
    assert not checks["recall_floors"].passed and checks["recall_floors"].value == pytest.approx(0.1)
    assert alone(predicted, min_recall={"ring": 0.1})["recall_floors"].passed
    with pytest.raises(UserError, match="no class rings; the classes are round, spiral"):
        alone(predicted, min_recall={"rings": 0.5})


def test_a_floor_of_a_class_without_test_images_is_not_reached() -> None:
    labels = np.repeat(np.arange(3), 50)
    (check,) = (
        c for c in check_candidate(labels, predict(labels), SLUGS, settings(min_recall={"ring": 0.5})) if c.limit == 0.5
    )
    assert not check.passed and check.value is None and "without test images" in check.words


def test_confidences_that_are_not_honest_are_refused() -> None:
    predicted = wrong_at(LABELS, np.arange(0, 300, 3))
    check = alone(predicted, confidence=0.95)["calibration"]
    assert not check.passed and check.value == pytest.approx(0.95 - 2 / 3, abs=0.01)
    assert alone(predicted, confidence=0.68)["calibration"].passed
    assert alone(predicted, confidence=0.95, max_ece=0.3)["calibration"].passed


def test_an_error_that_honest_confidences_show_by_chance_passes() -> None:
    """Fifteen bins of four images: an error of 0.15 is nothing that could be held against anybody."""
    labels, rng = np.arange(60) % 4, np.random.default_rng(8)
    predicted = np.where(rng.random(60) < 0.7, labels, (labels + 1) % 4)
    checks = by_name(check_candidate(labels, predict(predicted, 0.7), SLUGS, settings()))
    assert checks["calibration"].passed and (checks["calibration"].value or 0) > settings().max_ece


def test_sets_that_hold_the_truth_too_seldom_are_refused() -> None:
    check = alone(wrong_at(LABELS, np.arange(0, 300, 4)))["coverage"]
    assert not check.passed and "75 % of 300 images, 90 % are promised" in check.words
    assert check.value == pytest.approx(0.75) and check.limit == pytest.approx(0.88)
    assert alone(wrong_at(LABELS, np.arange(0, 300, 8)))["coverage"].passed  # 87.3 %: what chance explains


def test_what_the_champion_shows_stands_beside_it() -> None:
    checks = by_name(
        check_candidate(LABELS, predict(LABELS), SLUGS, settings(), predict(wrong_at(LABELS, slice(0, 60))))
    )
    assert checks["coverage"].reference == pytest.approx(0.8)
    assert checks["calibration"].reference is not None and checks["recall_floors"].reference is None


# --- the sky, the clock -------------------------------------------------------------------------------------------


def test_changed_labels_are_counted_and_chance_is_allowed_for() -> None:
    before = np.arange(100) % 4
    check = check_flips(wrong_at(before, slice(0, 25)), before, "left out: 3", settings())
    assert check.passed and check.value == 0.25 and "25 of 100" in check.words and "left out: 3" in check.words
    assert not check_flips(wrong_at(before, slice(0, 35)), before, "", settings()).passed
    assert check_flips(before, before, "", settings(max_flips=0.0)).passed
    assert not check_flips(wrong_at(before, slice(0, 1)), before, "", settings(max_flips=0.0)).passed


def test_nothing_to_look_at_is_not_measured_and_says_so() -> None:
    nothing = np.empty(0, dtype=np.int64)
    check = check_flips(nothing, nothing, "gone 7", settings())
    assert check.passed and check.value is None and "not measured" in check.words and "gone 7" in check.words
    assert not_measured("flips", "there is no release yet").words == "not measured: there is no release yet"


def test_a_candidate_of_less_than_half_the_speed_is_refused() -> None:
    assert check_speed(60.0, 100.0, "on a CPU", settings()).passed
    slow = check_speed(40.0, 100.0, "on a CPU", settings())
    assert not slow.passed and slow.limit == 50 and "40.0 images/s against 100.0, on a CPU" in slow.words
    assert check_speed(40.0, 100.0, "on a CPU", settings(min_speed=0.0)).passed
