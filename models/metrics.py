"""How good predictions are: accuracy, per-class recall, confusion, and whether confidences are honest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, recall_score

_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one evaluation. `confusion[i][j]` counts images of true class i that were called j.

    `ece` and `ece_equal_count` are calibration errors over bins of equal width and of equal count. `coverage` is the
    share of images whose prediction set holds the true class, `mean_set_size` the classes in a set; both None if
    there are no sets.
    """

    n: int
    accuracy: float
    macro_f1: float
    recall: list[float]
    confusion: list[list[int]]
    ece: float
    ece_equal_count: float
    brier: float
    nll: float
    coverage: float | None
    mean_set_size: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return asdict(self)


@dataclass(frozen=True)
class ReliabilityBin:
    """Images of like confidence: their mean confidence, the share that was called right, and their number."""

    confidence: float
    accuracy: float
    n: int


def evaluate(probabilities: np.ndarray, labels: np.ndarray, sets: np.ndarray | None = None) -> Evaluation:
    """Compare probabilities float (N, C), and sets bool (N, C) if there are any, with labels int (N,).

    The recall of a class without any example is NaN. Raises ValueError when there is nothing to evaluate.
    """
    if len(labels) == 0:
        raise ValueError("nothing to evaluate: no labelled images")
    classes = np.arange(probabilities.shape[1])
    called = probabilities.argmax(axis=1)
    rows = np.arange(len(labels))
    return Evaluation(
        n=len(labels),
        accuracy=float((called == labels).mean()),
        macro_f1=float(f1_score(labels, called, labels=np.unique(labels), average="macro")),
        recall=[float(r) for r in recall_score(labels, called, labels=classes, average=None, zero_division=np.nan)],
        confusion=confusion_matrix(labels, called, labels=classes).tolist(),
        ece=expected_calibration_error(probabilities, labels),
        ece_equal_count=calibration_gap(reliability(probabilities, labels, equal_count=True)),
        brier=brier_score(probabilities, labels),
        nll=float(-np.log(np.clip(probabilities[rows, labels], 1e-12, None)).mean()),
        coverage=None if sets is None else float(sets[rows, labels].mean()),
        mean_set_size=None if sets is None else float(sets.sum(axis=1).mean()),
    )


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance between probabilities (N, C) and the truth (Brier 1950), 0 to 2."""
    truth = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = _BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence (Naeini et al. 2015), 0 to 1."""
    return calibration_gap(reliability(probabilities, labels, bins))


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = _BINS, *, equal_count: bool = False
) -> list[ReliabilityBin]:
    """Confidence against accuracy of probabilities (N, C), least confident first; empty bins are left out.

    Bins have equal width in confidence, or with `equal_count` equally many images: the former leave the bins of few
    images noisy, the latter (Nguyen & O'Connor 2015) resolve the crowd near 1.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    if equal_count:
        which = np.empty(len(labels), dtype=np.int64)
        which[np.argsort(confidence, kind="stable")] = np.arange(len(labels)) * bins // max(len(labels), 1)
    else:
        which = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        ReliabilityBin(float(confidence[inside].mean()), float(correct[inside].mean()), int(inside.sum()))
        for inside in (which == b for b in np.unique(which))
    ]


def calibration_gap(table: list[ReliabilityBin]) -> float:
    """Mean of |confidence - accuracy| over the bins, each weighted by its images."""
    return sum(b.n * abs(b.confidence - b.accuracy) for b in table) / max(1, sum(b.n for b in table))
