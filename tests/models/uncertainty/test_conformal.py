"""Prediction sets keep what they promise: on exchangeable data, whatever the network is like."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.uncertainty.conformal import ConformalSets, fit_conformal_sets, threshold


def draw(rng: np.random.Generator, count: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a dishonest network, and labels that follow others."""
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 2.0 * np.eye(classes)[labels] * rng.exponential(size=(count, 1))
    weights = np.exp(3 * logits)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32), labels


@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([0.5, 0.7, 0.9, 0.95]))
@settings(max_examples=25, deadline=None)
def test_coverage_of_a_later_object_lies_between_the_two_bounds(seed: int, n: int, coverage: float) -> None:
    """Marginal guarantee: coverage ≤ P(truth in set) ≤ coverage + 1/(n+1), within four times the sampling error."""
    rng = np.random.default_rng(seed)
    scores = rng.random((4000, n + 1)).astype(np.float32)  # the last of each row is the later object
    held = np.mean([row[-1] >= threshold(row[:-1], coverage) for row in scores])
    error = 4 * math.sqrt(0.25 / len(scores))
    assert coverage - error <= held
    assert held <= coverage + 1 / (n + 1) + error or threshold(scores[0, :-1], coverage) == 0


def test_each_class_is_covered_for_itself() -> None:
    """One threshold for all would cover the hard class too rarely and the easy one too often."""
    rng = np.random.default_rng(1)
    held: list[list[float]] = [[], []]
    pooled: list[float] = []
    for _ in range(300):
        labels = np.arange(160) % 2
        sure = np.where(labels == 0, rng.beta(8, 1, 160), rng.beta(2, 2, 160))  # class 1 is hard
        p = np.where(labels[:, None] == np.arange(2), sure[:, None], 1 - sure[:, None]).astype(np.float32)
        fitted = fit_conformal_sets(p[:80], labels[:80], 0.8)
        assert fitted.own == [True, True] and fitted.counts == [40, 40]
        inside = fitted.sets(p[80:])[np.arange(80), labels[80:]]
        pooled.append(float((p[80:][labels[80:] == 1, 1] >= fitted.pooled).mean()))
        for c in (0, 1):
            held[c].append(float(inside[labels[80:] == c].mean()))
    for c in (0, 1):
        assert 0.8 - 0.02 < np.mean(held[c]) < 0.8 + 1 / 41 + 0.02
    assert np.mean(pooled) < 0.75


def test_a_class_of_few_images_borrows_the_threshold_of_all() -> None:
    p, labels = draw(np.random.default_rng(2), 300)
    keep = (labels != 3) | (np.cumsum(labels == 3) <= 19)
    fitted = fit_conformal_sets(p[keep], labels[keep], 0.9)
    assert fitted.own == [True, True, True, False] and fitted.counts[3] == 19
    assert fitted.thresholds[3] == fitted.pooled
    none = fit_conformal_sets(p[labels != 3], labels[labels != 3], 0.9)
    assert none.counts[3] == 0 and none.thresholds[3] == none.pooled > 0
    assert fit_conformal_sets(p, labels, 0.99).own == [False] * 4  # a hundred images would be needed


@pytest.mark.parametrize("count", [1, 3, 8])
def test_with_too_few_images_every_class_is_in_every_set(count: int) -> None:
    p, labels = draw(np.random.default_rng(3), count)
    fitted = fit_conformal_sets(p, labels, 0.9)
    assert fitted.pooled == 0 and fitted.sets(p).all()


def test_thresholds_worked_out_by_hand() -> None:
    nine = np.linspace(0.1, 0.9, 9, dtype=np.float32)
    assert threshold(nine, 0.9) == np.float32(0.1)  # all nine of nine
    assert threshold(nine, 0.8) == np.float32(0.2)  # eight of nine
    assert threshold(nine, 0.5) == np.float32(0.5)
    assert threshold(nine, 0.91) == 0.0  # ten of nine
    assert threshold(np.empty(0, np.float32), 0.9) == 0.0


def test_the_calibration_images_are_covered_through_the_card() -> None:
    """Thresholds are float32 values: after JSON, an image at the threshold is still inside."""
    p, labels = draw(np.random.default_rng(4), 200)
    fitted = ConformalSets.model_validate_json(fit_conformal_sets(p, labels, 0.9).model_dump_json())
    inside = fitted.sets(p)[np.arange(200), labels]
    for c in range(4):
        n = fitted.counts[c]
        assert inside[labels == c].sum() == math.ceil((n + 1) * 0.9 - 1e-9)
