"""What chance explains: against exact values, brute force, and how often equal models or groups look different."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.metrics import f1_score

from models.metrics import calibration_gap, reliability
from pipeline.evaluation.statistics import (
    _score_statistic,
    binomial_p_value,
    bootstrap_f1_gains,
    compare_accuracy,
    coverage_p_value,
    ece_limit,
    f1_p_value,
    gain_interval,
    macro_f1,
    mcnemar_p_value,
)


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [(0, 0, 1.0), (0, 5, 1 / 32), (1, 4, 6 / 32), (5, 0, 1.0), (3, 3, 42 / 64)],
)
def test_mcnemar_is_the_tail_of_a_coin(gained: int, lost: int, expected: float) -> None:
    assert mcnemar_p_value(gained, lost) == pytest.approx(expected)


@pytest.mark.parametrize("truth", [-0.3, -0.02, 0.0, 0.01, 0.2])
def test_the_score_uses_the_most_probable_rates(truth: float) -> None:
    """Found again by a numerical search for the largest likelihood under the constraint."""
    gained, lost, n = 9, 17, 120

    def unlikely(losses: float) -> float:
        rates = (losses + truth, losses, 1 - 2 * losses - truth)
        return -sum(count * np.log(rate) for count, rate in zip((gained, lost, n - gained - lost), rates, strict=True))

    bounds = (max(0.0, -truth) + 1e-9, (1 - truth) / 2 - 1e-9)
    losses = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
    deviation = np.sqrt(n * (2 * losses + truth - truth**2))
    assert _score_statistic(gained, lost, n, truth) == pytest.approx((gained - lost - n * truth) / deviation, rel=1e-4)


def test_the_interval_of_the_gain() -> None:
    low, high = gain_interval(9, 17, 120, 0.025)
    assert low < (9 - 17) / 120 < high < 0.025 and low > -0.16
    assert gain_interval(17, 9, 120, 0.025) == (pytest.approx(-high), pytest.approx(-low))
    low, high = gain_interval(0, 0, 50, 0.05)
    assert -0.1 < low < -0.01 and high == pytest.approx(-low)
    assert gain_interval(0, 50, 50, 0.05)[0] == pytest.approx(-1, abs=1e-6)
    narrow, wide = gain_interval(20, 20, 1000, 0.05), gain_interval(20, 20, 1000, 0.005)
    assert wide[0] < narrow[0] < 0 < narrow[1] < wide[1]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, missed = np.random.default_rng(5), 0
    for lost, gained, _ in rng.multinomial(80, (0.12, 0.06, 0.82), size=400):
        missed += not gain_interval(int(gained), int(lost), 80, 0.05)[0] <= -0.06
    assert 0.02 * 400 < missed < 0.09 * 400


def calls(rng: np.random.Generator, labels: np.ndarray, accuracy: float) -> np.ndarray:
    wrong = (labels + rng.integers(1, 4, len(labels))) % 4
    return np.where(rng.random(len(labels)) < accuracy, labels, wrong)


def test_macro_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 50)  # class 3 is predicted, and never true
    predicted = calls(rng, labels, 0.6)
    expected = f1_score(labels, predicted, labels=np.unique(labels), average="macro")
    assert macro_f1(labels, predicted) == pytest.approx(expected)


def test_the_bootstrap_of_macro_f1_keeps_the_classes_and_its_seed() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), (60, 30, 9, 1))
    first, second = calls(rng, labels, 0.9), calls(rng, labels, 0.7)
    gains = bootstrap_f1_gains(labels, first, second, seed=1)
    assert gains.shape == (2000,) and np.isfinite(gains).all()
    assert gains.mean() == pytest.approx(macro_f1(labels, first) - macro_f1(labels, second), abs=0.02)
    assert np.array_equal(gains, bootstrap_f1_gains(labels, first, second, seed=1))
    assert (bootstrap_f1_gains(labels, first, first, seed=1) == 0).all()
    # By hand: rows drawn with replacement within their class.
    members = [np.flatnonzero(labels == label) for label in range(4)]
    drawn = (np.concatenate([rng.choice(rows, len(rows)) for rows in members]) for _ in range(300))
    by_hand = [macro_f1(labels[rows], first[rows]) - macro_f1(labels[rows], second[rows]) for rows in drawn]
    assert gains.std() == pytest.approx(np.std(by_hand), rel=0.2)


def test_equal_models_seldom_look_worse_in_macro_f1_however_few_the_images() -> None:
    rng, refused, trials = np.random.default_rng(4), 0, 150
    labels = np.repeat(np.arange(4), (20, 12, 6, 2))
    for _ in range(trials):
        refused += f1_p_value(labels, calls(rng, labels, 0.8), calls(rng, labels, 0.8), seed=0) < 0.05
    assert refused <= stats.binom.ppf(0.999, trials, 0.05)
    much_worse = f1_p_value(labels, calls(rng, labels, 0.3), calls(rng, labels, 0.95), seed=0)
    assert much_worse < 0.005


def test_honest_confidences_stay_below_the_error_that_chance_gives() -> None:
    rng, n = np.random.default_rng(6), 300
    probabilities = rng.dirichlet((0.3, 0.3, 0.3), size=n)
    limit = ece_limit(probabilities.max(axis=1), 0.1, bins=15, seed=1)
    over = 0
    for _ in range(200):
        labels = (probabilities.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
        over += calibration_gap(reliability(probabilities, labels, equal_count=True)) > limit
    assert 0.04 * 200 < over < 0.17 * 200
    assert ece_limit(np.full(7, 1.0), 0.01, bins=15, seed=1) == 0


def test_coverage_allows_for_the_images_that_the_thresholds_came_from() -> None:
    assert coverage_p_value(50, 100, 0.9, 50) < coverage_p_value(80, 100, 0.9, 50) < coverage_p_value(90, 100, 0.9, 50)
    few, many = (coverage_p_value(82, 100, 0.9, n) for n in (20, 100_000))
    assert few > 0.1 > 0.02 > many
    assert many == pytest.approx(stats.binom.cdf(82, 100, 0.9), rel=0.02)
    assert coverage_p_value(99, 100, 1.0, 50) == 0 and coverage_p_value(100, 100, 1.0, 50) == 1


def test_shares_that_chance_explains() -> None:
    assert binomial_p_value(2, 4, 0.5) == pytest.approx(11 / 16)
    assert binomial_p_value(0, 10, 0.2) == 1 and binomial_p_value(10, 10, 0.2) == pytest.approx(0.2**10)


# --- groups of trainings ------------------------------------------------------------------------------------------


def trainings(rng: np.random.Generator, seeds: int, difficulty: np.ndarray, gain: float = 0.0) -> np.ndarray:
    """Simulated correctness bool (seeds, N): images differ in difficulty, trainings in luck."""
    luck = rng.normal(0.0, 0.02, size=(seeds, 1))
    return rng.random((seeds, len(difficulty))) < difficulty + luck + gain


def test_groups_that_do_not_differ_seldom_look_different() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        difficulty = rng.beta(4.0, 1.5, size=300)
        difference = compare_accuracy(trainings(rng, 3, difficulty), trainings(rng, 3, difficulty))
        found += difference.verdict != "no difference shown"
    assert found <= 0.05 * 400


def test_a_large_difference_is_found_and_has_a_sign() -> None:
    rng = np.random.default_rng(1)
    difficulty = rng.uniform(0.5, 0.8, size=1000)
    better, worse = trainings(rng, 3, difficulty, gain=0.15), trainings(rng, 3, difficulty)
    difference = compare_accuracy(better, worse)
    assert difference.verdict == "better" and difference.low < 0.15 < difference.high
    turned = compare_accuracy(worse, better)
    assert turned.verdict == "worse" and turned.mean == pytest.approx(-difference.mean)
    assert difference.mean == pytest.approx(better.mean() - worse.mean())


def test_few_seeds_widen_the_interval() -> None:
    """Two seeds that disagree say little about the next, however many images there are."""
    images = np.arange(10_000)
    steady = np.stack([images < 8_000] * 2)
    moody = np.stack([images < 7_000, images < 8_600])
    difference = compare_accuracy(moody, steady)
    assert difference.high - difference.low > 0.5 and difference.over_seeds
    alone = compare_accuracy(moody[:1], steady[:1])
    assert alone.verdict == "worse" and not alone.over_seeds


def test_a_group_with_itself() -> None:
    same = np.stack([np.arange(50) % 3 > 0] * 2)
    difference = compare_accuracy(same, same)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert difference.verdict == "no difference shown"
