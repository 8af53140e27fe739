"""Paired comparison: it finds what is there, seldom what is not, and knows the chance of seeds."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.paired import compare_accuracy


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
