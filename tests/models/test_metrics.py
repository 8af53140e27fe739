"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from models.metrics import calibration_gap, evaluate, expected_calibration_error, reliability

# called:        0                1                1                2                0
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.2, 0.3, 0.5], [0.9, 0.1, 0.0]])
LABELS = np.array([0, 1, 0, 2, 0])


def test_numbers_worked_out_by_hand() -> None:
    found = evaluate(PROBABILITIES, LABELS)
    assert found.n == 5
    assert found.accuracy == pytest.approx(4 / 5)
    assert found.recall == pytest.approx([2 / 3, 1.0, 1.0])
    assert found.confusion == [[2, 1, 0], [0, 1, 0], [0, 0, 1]]
    # precision 1, 1/2, 1 and recall 2/3, 1, 1
    assert found.macro_f1 == pytest.approx((0.8 + 2 / 3 + 1.0) / 3)
    squares = (0.09 + 0.04 + 0.01) + (0.01 + 0.04 + 0.01) + (0.49 + 0.36 + 0.01) + (0.04 + 0.09 + 0.25) + 0.02
    assert found.brier == pytest.approx(squares / 5)
    assert found.nll == pytest.approx(-sum(math.log(p) for p in (0.7, 0.8, 0.3, 0.5, 0.9)) / 5)


def test_calibration_error_worked_out_by_hand() -> None:
    """Five bins: 0.4-0.6 holds one right call, 0.6-0.8 one right and one wrong, 0.8-1 two right."""
    gaps = abs(0.5 - 1), abs(0.7 + 0.65 - 1), abs(0.85 + 0.9 - 2)
    probabilities = PROBABILITIES.copy()
    probabilities[1], probabilities[2] = [0.05, 0.85, 0.1], [0.25, 0.65, 0.1]  # off the edges of bins
    assert expected_calibration_error(probabilities, LABELS, bins=5) == pytest.approx(sum(gaps) / 5)


def test_honest_confidences_have_no_calibration_error() -> None:
    probabilities = np.repeat([[0.75, 0.25]], 400, axis=0)
    labels = np.arange(400) % 4 // 3  # three of four are class 0
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(np.repeat([[1.0, 0.0]], 4, axis=0), np.array([0, 0, 0, 1])) == pytest.approx(0.25)


def test_the_table_of_reliability_worked_out_by_hand() -> None:
    probabilities = np.array([[0.55, 0.45], [0.85, 0.15], [0.95, 0.05], [0.99, 0.01]])
    table = reliability(probabilities, np.array([0, 0, 1, 0]), bins=5)
    assert [b.n for b in table] == [1, 3]  # 0.4 to 0.6, and 0.8 to 1
    assert [b.accuracy for b in table] == pytest.approx([1, 2 / 3])
    assert [b.confidence for b in table] == pytest.approx([0.55, 2.79 / 3])
    assert calibration_gap(table) == pytest.approx((0.45 + abs(2.79 - 2)) / 4)
    halves = reliability(probabilities, np.array([0, 0, 1, 0]), bins=2, equal_count=True)
    assert [(b.n, round(b.confidence, 3), b.accuracy) for b in halves] == [(2, 0.7, 1.0), (2, 0.97, 0.5)]
    assert len(reliability(probabilities, np.zeros(4, int), bins=15, equal_count=True)) == 4


def test_coverage_and_size_of_sets() -> None:
    sets = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]], dtype=bool)
    found = evaluate(PROBABILITIES, LABELS, sets)
    assert found.coverage == pytest.approx(3 / 5) and found.mean_set_size == pytest.approx(8 / 5)
    assert evaluate(PROBABILITIES, LABELS).coverage is None


def test_class_without_example_has_no_recall_and_does_not_count() -> None:
    found = evaluate(PROBABILITIES[[0, 1]], LABELS[[0, 1]])
    assert found.recall[:2] == [1.0, 1.0] and math.isnan(found.recall[2])
    assert found.macro_f1 == 1.0
    assert found.confusion[2] == [0, 0, 0]


def test_a_probability_of_zero_is_no_infinity() -> None:
    assert math.isfinite(evaluate(np.array([[1.0, 0.0]]), np.array([1])).nll)


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(np.empty((0, 3)), np.empty(0, int))


def test_numbers_are_plain_values() -> None:
    numbers = evaluate(PROBABILITIES.astype(np.float32), LABELS).to_dict()
    assert json.loads(json.dumps(numbers)) == numbers
