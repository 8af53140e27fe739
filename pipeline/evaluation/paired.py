"""Comparing two groups of trainings on the same test images, so that "better" means something.

Two things make a measured accuracy uncertain: which images happen to be in the test split, and which seeds the networks
were trained with. A difference is believed when it is larger than both together explain. Knows only which images were
called right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class AccuracyDifference:
    """Mean accuracy of one group less that of the other, with the ends of its 95 % confidence interval, 0 … 1.

    `over_seeds` is False where a group has one training: its interval then knows nothing of the chance of a seed.
    """

    mean: float
    low: float
    high: float
    over_seeds: bool

    @property
    def verdict(self) -> str:
        """In a word: "better" or "worse" where the interval leaves out zero."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference shown"


def compare_accuracy(correct: np.ndarray, reference: np.ndarray) -> AccuracyDifference:
    """How much more often one group of trainings is right than another.

    correct : bool (a, N), whether each of a trainings calls each of N test images right; reference : bool (b, N).

    The variances over images, of the difference of mean correctness image by image (paired), and over the trainings
    of each group are added, and the interval is Student's with the degrees of freedom of Welch (1947) and Satterthwaite
    (1946): with three seeds much wider than a normal one, as it must be. Images hold some of the noise of the seeds
    already, so the interval is rather too wide than too narrow.
    """
    gain = correct.mean(axis=0) - reference.mean(axis=0)
    terms = [(gain.var(ddof=1) / len(gain), len(gain) - 1)] if len(gain) > 1 else []
    groups = [group.mean(axis=1) for group in (correct, reference)]
    terms += [(each.var(ddof=1) / len(each), len(each) - 1) for each in groups if len(each) > 1]
    mean, variance = float(gain.mean()), float(sum(term for term, _ in terms))
    half = 0.0
    if variance > 0:
        freedom = variance**2 / sum(term**2 / free for term, free in terms)
        half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return AccuracyDifference(mean, mean - half, mean + half, over_seeds=all(len(each) > 1 for each in groups))
