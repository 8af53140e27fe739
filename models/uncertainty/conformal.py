"""Prediction sets that hold the true class with a chosen probability: split-conformal, class by class.

The score of a class is its calibrated probability, and the set of an image holds every class whose probability reaches
the threshold of that class (Sadinle, Lei & Wasserman 2019, arXiv 1609.00451: the smallest sets on average). Thresholds
come from images that the network was not trained on. If those and later images are exchangeable, the set of a later
image of class c holds c with probability of at least `coverage`, and of at most `coverage` + 1 / (n + 1) where no two
scores are equal; n is the number of calibration images behind the threshold.

The temperature is fitted on the same images. It is one number for all of them, and what that costs is far below the
1 / (n + 1) above. Nothing here needs torch.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel, ConfigDict

_LEAST_OF_A_CLASS = 20  # images; a threshold from fewer would say more about those few than about the class


class ConformalSets(BaseModel):
    """Thresholds of probability, one a class.

    `own` says whether the threshold of a class comes from its `counts` calibration images; where these are too few it
    is `pooled`, the one of all classes together, which promises the coverage for all objects, not for that class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    coverage: float
    thresholds: list[float]
    own: list[bool]
    counts: list[int]
    pooled: float

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """The classes in the set of each image, bool (N, C), from calibrated probabilities float32 (N, C)."""
        return probabilities >= np.asarray(self.thresholds, dtype=np.float32)


def fit_conformal_sets(probabilities: np.ndarray, labels: np.ndarray, coverage: float) -> ConformalSets:
    """Thresholds from the calibrated probabilities float32 (N, C) and labels int (N,) of calibration images.

    A class has a threshold of its own from max(20, 1 / (1 - coverage)) images on. Without enough images at all the
    pooled threshold is 0: every class is in every set, which promises nothing and keeps the promise.
    """
    of_truth = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    own = counts >= max(_LEAST_OF_A_CLASS, math.ceil(1 / (1 - coverage)))
    pooled = threshold(of_truth, coverage)
    thresholds = [threshold(of_truth[labels == c], coverage) if own[c] else pooled for c in range(len(counts))]
    return ConformalSets(
        coverage=coverage, thresholds=thresholds, own=own.tolist(), counts=counts.tolist(), pooled=pooled
    )


def threshold(of_truth: np.ndarray, coverage: float) -> float:
    """The probability that ceil((n + 1) coverage) of n calibration images give their true class at least.

    `of_truth` is float32 (n,). The + 1 is the finite-sample correction of split-conformal prediction (Vovk, Gammerman
    & Shafer 2005); 0 where n is too small for it.
    """
    wanted = math.ceil((len(of_truth) + 1) * coverage - 1e-9)  # 20 * 0.55 is 11.000000000000002
    if wanted > len(of_truth):
        return 0.0
    return float(np.sort(of_truth)[len(of_truth) - wanted])
