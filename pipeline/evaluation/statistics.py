"""Statistics of comparisons: which differences chance explains. Arrays in, numbers out; knows no models or settings.

The leaderboard compares groups of trainings (`compare_accuracy`), the gate one model with another. All of them saw the
same test images, so everything is paired: an image that both call right, or both wrong, says nothing about which is
better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

RESAMPLES = 2000
_BLOCK = 250  # resamples at a time: bounds the memory
_CONFIDENCE = 0.95  # of the interval of `compare_accuracy`


# --- groups of trainings ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AccuracyDifference:
    """Mean accuracy of one group less that of the other, with the ends of its 95 % confidence interval, 0 … 1.

    `over_seeds` is False where a group has one training: the interval then leaves out what another seed would change.
    """

    mean: float
    low: float
    high: float
    over_seeds: bool

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where the interval leaves out zero, else "no difference shown"."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference shown"


def compare_accuracy(correct: np.ndarray, reference: np.ndarray) -> AccuracyDifference:
    """How much more often one group of trainings is right than another.

    correct : bool (a, N), whether each of a trainings classifies each of N test images correctly.
    reference : bool (b, N), the same of the other group.

    Two things make a measured accuracy uncertain: which images happen to be in the test split, and which seeds the
    networks were trained with. The variance over images (of the paired difference of mean correctness) and the
    variances over the trainings of each group are added. The interval is Student's with the degrees of freedom of
    Welch (1947) and Satterthwaite (1946): with three seeds much wider than a normal one, as it must be. Images hold
    some of the noise of the seeds already, so the interval is rather too wide than too narrow.
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


# --- one model against another: accuracy --------------------------------------------------------------------------


def mcnemar_p_value(gained: int, lost: int) -> float:
    """Probability that chance alone gives so many losses or more (exact one-sided McNemar test, 1947).

    `gained` images are right with the candidate only, `lost` with the champion only; for equal models each of them is
    one or the other with probability 1/2.
    """
    return float(stats.binom.cdf(gained, gained + lost, 0.5)) if gained + lost else 1.0


def gain_interval(gained: int, lost: int, n: int, significance: float) -> tuple[float, float]:
    """Ends of the interval of the gain in accuracy, -1 … 1; the truth lies beyond each with
    probability `significance`.

    It is the score interval of Tango (1998, Statistics in Medicine 17, 891), which keeps its level where few of the
    `n` images differ.
    """
    z = stats.norm.isf(significance)
    gain, edge = (gained - lost) / n, 1 - 1e-9

    def beyond(sign: int) -> float:
        def excess(truth: float) -> float:
            return sign * _score_statistic(gained, lost, n, truth) + z

        return sign * edge if excess(sign * edge) > 0 else float(optimize.brentq(excess, gain, sign * edge))

    return beyond(-1), beyond(1)


def _score_statistic(gained: int, lost: int, n: int, truth: float) -> float:
    """How many standard deviations the measured gain lies above a true gain `truth`, between -1 and 1.

    The deviation is that of the most probable rates of gains and losses that differ by `truth`.
    """
    b = -(gained + lost) + (2 * n - gained + lost) * truth
    c = -lost * truth * (1 - truth)
    losses = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * losses + truth * (1 - truth))
    above = gained - lost - n * truth
    return above / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, above) if above else 0.0


# --- one model against another: macro-F1 --------------------------------------------------------------------------


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 over the classes among labels int (n,), as in `models.metrics.evaluate`."""
    triples, counts = _triples(labels, predicted, predicted)
    return float(_macro_f1(triples, counts[None], 1)[0])


def bootstrap_f1_gains(labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray, seed: int) -> np.ndarray:
    """Gains of macro-F1 over resamples of the images with replacement, float64 (RESAMPLES,): the paired bootstrap.

    labels, candidate, champion : int (n,), the true classes and those that each model predicts.
    Images are drawn within their class, as a stratified split drew them, so that no class is ever lost.
    """
    triples, counts = _triples(labels, candidate, champion)
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(0, RESAMPLES, _BLOCK):
        drawn = np.empty((_BLOCK, len(counts)), dtype=np.int64)
        for label in np.unique(triples[:, 0]):
            inside = triples[:, 0] == label
            share = counts[inside] / counts[inside].sum()
            drawn[:, inside] = rng.multinomial(counts[inside].sum(), share, size=_BLOCK)
        gains.append(_macro_f1(triples, drawn, 1) - _macro_f1(triples, drawn, 2))
    return np.concatenate(gains)


def f1_p_value(labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray, seed: int) -> float:
    """Probability that chance alone gives so large a loss of macro-F1 or a larger one: a paired randomisation test.

    For equal models a coin may decide which model gave which of the two predictions of an image. At a significance of
    1 % this refused 1.0 % of equal models with 60 test images, the bootstrap alone 5.5 % (400 draws).
    """
    triples, counts = _triples(labels, candidate, champion)
    swapped = np.concatenate([triples, triples[:, [0, 2, 1]]])
    seen = float((_macro_f1(triples, counts[None], 1) - _macro_f1(triples, counts[None], 2))[0])
    rng = np.random.default_rng(seed)
    as_bad = 0
    for _ in range(0, RESAMPLES, _BLOCK):
        kept = rng.binomial(counts, 0.5, size=(_BLOCK, len(counts)))
        drawn = np.concatenate([kept, counts - kept], axis=1)
        gains = _macro_f1(swapped, drawn, 1) - _macro_f1(swapped, drawn, 2)
        as_bad += int((gains <= seen + 1e-12).sum())
    return (as_bad + 1) / (RESAMPLES + 1)


def _triples(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct (true, first, second) classes, int64 (k, 3), and the number of images of each, int64 (k,)."""
    triples, counts = np.unique(np.stack([labels, first, second], axis=1), axis=0, return_counts=True)
    return triples.astype(np.int64), counts


def _macro_f1(triples: np.ndarray, counts: np.ndarray, which: int) -> np.ndarray:
    """Macro-F1 float64 (r,) of the predictions in column `which` of triples (k, 3), for counts (r, k)."""
    classes = np.unique(triples[:, 0])
    true = (triples[:, 0, None] == classes).astype(np.float64)  # (k, C); products of integers are not BLAS's
    predicted = (triples[:, which, None] == classes).astype(np.float64)
    weights = counts.astype(np.float64)
    both, truths = weights @ (true * predicted), weights @ true  # (r, C)
    either = truths + weights @ predicted
    f1 = np.divide(2 * both, either, out=np.zeros_like(both), where=either > 0)
    return f1.sum(axis=1) / (truths > 0).sum(axis=1)


# --- one model against what it promises ---------------------------------------------------------------------------


def ece_limit(confidence: np.ndarray, significance: float, bins: int, seed: int) -> float:
    """The calibration error, over bins of equal count, that honest confidences exceed with probability `significance`.

    confidence : float (n,), of the predicted class of each image.
    Consistency resampling (Bröcker & Smith 2007): each image is right with the probability that its confidence gives.
    """
    ordered = np.sort(confidence.astype(np.float64), kind="stable")
    which = np.arange(len(ordered)) * bins // len(ordered)
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(0, RESAMPLES, _BLOCK):
        gap = (rng.random((_BLOCK, len(ordered))) < ordered) - ordered
        sums = np.add.reduceat(gap, np.flatnonzero(np.diff(which, prepend=-1)), axis=1)
        errors.append(np.abs(sums).sum(axis=1) / len(ordered))
    return float(np.quantile(np.concatenate(errors), 1 - significance))


def coverage_p_value(held: int, n: int, coverage: float, calibrated_on: int) -> float:
    """Probability that sets which promise `coverage` hold the truth of so few of `n` images or fewer.

    The thresholds come from `calibrated_on` images only: the coverage of split-conformal sets has a beta distribution
    (Vovk 2012), the number of images held a beta-binomial one. That is exact for one threshold; with one for each class
    the spread is much the same, as the images add up to as many.
    """
    a, b = coverage * (calibrated_on + 1), (1 - coverage) * (calibrated_on + 1)
    return float(stats.betabinom.cdf(held, n, a, b)) if b > 0 else float(held == n)


def binomial_p_value(count: int, n: int, share: float) -> float:
    """Probability that chance alone gives so many of n or more where the true share is `share` (exact binomial)."""
    return float(stats.binom.sf(count - 1, n, share))
