"""Statistics of the gate: what chance explains. Arrays in, numbers out; knows nothing of models or settings.

Two models are compared on the same test images, so everything is paired: an image that both call right, or both wrong,
says nothing about which is better.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats

RESAMPLES = 2000
_BLOCK = 250  # resamples at a time: bounds the memory


def mcnemar(gained: int, lost: int) -> float:
    """Probability that chance alone gives so many losses or more (exact one-sided McNemar test, 1947).

    `gained` images are right with the candidate only, `lost` with the champion only; for equal models each of them is
    one or the other with probability 1/2.
    """
    return float(stats.binom.cdf(gained, gained + lost, 0.5)) if gained + lost else 1.0


def gain_interval(gained: int, lost: int, n: int, chance: float) -> tuple[float, float]:
    """Ends of the interval of the gain in accuracy, -1 … 1; beyond each the truth lies with probability `chance`.

    It is the score interval of Tango (1998, Statistics in Medicine 17, 891), which keeps its level where few of the
    `n` images differ.
    """
    z = stats.norm.isf(chance)
    gain, edge = (gained - lost) / n, 1 - 1e-9

    def beyond(sign: int) -> float:
        def excess(truth: float) -> float:
            return sign * _score(gained, lost, n, truth) + z

        return sign * edge if excess(sign * edge) > 0 else float(optimize.brentq(excess, gain, sign * edge))

    return beyond(-1), beyond(1)


def _score(gained: int, lost: int, n: int, truth: float) -> float:
    """How many standard deviations the measured gain lies above a true one, -1 < truth < 1.

    The deviation is that of the most probable rates of gains and losses that differ by `truth`.
    """
    b = -(gained + lost) + (2 * n - gained + lost) * truth
    c = -lost * truth * (1 - truth)
    losses = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * losses + truth * (1 - truth))
    above = gained - lost - n * truth
    return above / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, above) if above else 0.0


def macro_f1(labels: np.ndarray, called: np.ndarray) -> float:
    """Mean F1 over the classes among labels int (n,), as in `models.metrics.evaluate`."""
    triples, counts = _triples(labels, called, called)
    return float(_macro_f1(triples, counts[None], 1)[0])


def f1_gains(labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray, seed: int) -> np.ndarray:
    """Gains of macro-F1 over resamples of the images with replacement, float64 (RESAMPLES,): the paired bootstrap.

    labels, candidate, champion : int (n,), the truth and what the two call each image.
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


def f1_chance(labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray, seed: int) -> float:
    """Probability that chance alone gives so large a loss of macro-F1 or a larger one: a paired randomisation test.

    For equal models it is a coin that says which of them made which of the two calls of an image. Asked at 1 % this
    refused 1.0 % of equal models at 60 test images, the bootstrap alone 5.5 % (400 draws).
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
    """The different (truth, call, call) int64 (k, 3), and how many images each stands for, int64 (k,)."""
    triples, counts = np.unique(np.stack([labels, first, second], axis=1), axis=0, return_counts=True)
    return triples.astype(np.int64), counts


def _macro_f1(triples: np.ndarray, counts: np.ndarray, which: int) -> np.ndarray:
    """Macro-F1 float64 (r,) of the calls in column `which` of triples (k, 3), for counts (r, k)."""
    classes = np.unique(triples[:, 0])
    true = (triples[:, 0, None] == classes).astype(np.float64)  # (k, C); products of integers are not BLAS's
    called = (triples[:, which, None] == classes).astype(np.float64)
    weights = counts.astype(np.float64)
    both, truths = weights @ (true * called), weights @ true  # (r, C)
    either = truths + weights @ called
    f1 = np.divide(2 * both, either, out=np.zeros_like(both), where=either > 0)
    return f1.sum(axis=1) / (truths > 0).sum(axis=1)


def ece_beyond_chance(confidence: np.ndarray, chance: float, bins: int, seed: int) -> float:
    """The calibration error, over bins of equal count, that honest confidences (n,) exceed with probability `chance`.

    Consistency resampling (Bröcker & Smith 2007): each image is right with the probability that its confidence says.
    """
    ordered = np.sort(confidence.astype(np.float64), kind="stable")
    which = np.arange(len(ordered)) * bins // len(ordered)
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(0, RESAMPLES, _BLOCK):
        gap = (rng.random((_BLOCK, len(ordered))) < ordered) - ordered
        sums = np.add.reduceat(gap, np.flatnonzero(np.diff(which, prepend=-1)), axis=1)
        errors.append(np.abs(sums).sum(axis=1) / len(ordered))
    return float(np.quantile(np.concatenate(errors), 1 - chance))


def coverage_chance(held: int, n: int, coverage: float, calibrated_on: int) -> float:
    """Probability that sets which promise `coverage` hold the truth of so few of `n` images, or fewer.

    The thresholds come from `calibrated_on` images only: the coverage of split-conformal sets has a beta distribution
    (Vovk 2012), the number of images held a beta-binomial one. That is exact for one threshold; with one for each class
    the spread is much the same, as the images add up to as many.
    """
    a, b = coverage * (calibrated_on + 1), (1 - coverage) * (calibrated_on + 1)
    return float(stats.betabinom.cdf(held, n, a, b)) if b > 0 else float(held == n)


def exceeds(count: int, n: int, share: float) -> float:
    """Probability that chance alone gives so many of n or more where the true share is `share` (exact binomial)."""
    return float(stats.binom.sf(count - 1, n, share))
