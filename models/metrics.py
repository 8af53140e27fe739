"""How good predictions are: accuracy, per-class recall, confusion, and whether confidences are honest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, recall_score


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one evaluation. `confusion[i][j]` counts images of true class i that were called j."""

    n: int
    accuracy: float
    macro_f1: float
    recall: list[float]
    confusion: list[list[int]]
    ece: float
    brier: float
    nll: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return asdict(self)


def evaluate(probabilities: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Compare probabilities float (N, C) with labels int (N,).

    The recall of a class without any example is NaN. Raises ValueError when there is nothing to evaluate.
    """
    if len(labels) == 0:
        raise ValueError("nothing to evaluate: no labelled images")
    classes = np.arange(probabilities.shape[1])
    called = probabilities.argmax(axis=1)
    truth = np.eye(len(classes))[labels]
    chosen = probabilities[np.arange(len(labels)), labels]
    return Evaluation(
        n=len(labels),
        accuracy=float((called == labels).mean()),
        macro_f1=float(f1_score(labels, called, labels=np.unique(labels), average="macro")),
        recall=[float(r) for r in recall_score(labels, called, labels=classes, average=None, zero_division=np.nan)],
        confusion=confusion_matrix(labels, called, labels=classes).tolist(),
        ece=expected_calibration_error(probabilities, labels),
        brier=float(((probabilities - truth) ** 2).sum(axis=1).mean()),
        nll=float(-np.log(np.clip(chosen, 1e-12, None)).mean()),
    )


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence (Naeini et al. 2015), 0 to 1."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(which, weights=confidence - correct, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))
