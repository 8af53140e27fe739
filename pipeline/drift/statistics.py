"""Whether chance explains a difference between two samples of objects, given that objects of a sky tile are alike.

Objects of a tile share seeing, depth and neighbourhood, so shares vary more from tile to tile than if objects were
drawn one by one: by the design effect (Kish 1965, Survey Sampling). After numbers are divided by it, the usual tests
hold (Rao & Scott 1992, Biometrics 48, 577). Numbers in, numbers out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from pipeline.drift.counts import RegionSums

_MANY = 10  # tiles beyond the first of each region; from then on, earlier tiles alone show how much tiles vary
_FEWEST_EXPECTED = 5.0  # objects in a cell of a table for the chi-squared distribution to hold (Cochran 1954)


@dataclass(frozen=True)
class Sample:
    """For each measure x the number of objects `n`, the sum `total` of x, the sum `squares` of x²: float64 (M,)."""

    n: np.ndarray
    total: np.ndarray
    squares: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean of x; NaN if there is no object."""
        return np.divide(self.total, self.n, out=np.full_like(self.total, np.nan), where=self.n > 0)

    @property
    def variance(self) -> np.ndarray:
        """The variance of x over single objects; NaN if there is none."""
        squares = np.divide(self.squares, self.n, out=np.full_like(self.total, np.nan), where=self.n > 0)
        return np.maximum(squares - self.mean**2, 0)


def design_effects(earlier: RegionSums, new: RegionSums) -> np.ndarray:
    """How much more the mean of each measure varies over tiles than over single objects: float64 (M,), at least 1.

    Variances between the tiles of a region are added up over regions, those of the new tiles only where there are few
    earlier ones.
    """
    between, expected, freedom = _between_tiles(earlier)
    new_between, new_expected, _ = _between_tiles(new)
    few = freedom < _MANY
    between, expected = between + few * new_between, expected + few * new_expected
    ratio = np.divide(between, expected, out=np.ones_like(between), where=expected > 0)
    return np.maximum(ratio, 1)


def _between_tiles(sums: RegionSums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The variance between tiles of the sum of x − mean, that expected of single objects, degrees of freedom: (M,)."""
    sample = Sample(sums.n, sums.total, sums.squares)
    several = sums.tiles > 1
    mean = np.nan_to_num(sample.mean)
    squares = sums.total2 - 2 * mean * sums.total_n + mean**2 * sums.n2
    between = np.where(several, squares * sums.tiles / np.maximum(sums.tiles - 1, 1), 0)
    expected = np.where(several, np.nan_to_num(sample.variance) * sums.n, 0)
    return between.sum(axis=0), expected.sum(axis=0), np.maximum(sums.tiles - 1, 0).sum(axis=0)


def weighted(samples: Sample, weights: np.ndarray) -> Sample:
    """Samples of regions as one, with a weight for each region.

    Parameters
    ----------
    samples : sums float64 (R, M).
    weights : float64 (R, M), at least 0.

    The number of objects is the effective one: as many as would give a plain mean the same variance (Kish 1965). It is
    0 where a region with a weight has no object.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.nan_to_num(weights / weights.sum(axis=0))
        effective = 1 / np.where(share > 0, share**2 / samples.n, 0).sum(axis=0)
        means = [
            np.where(share > 0, share * sums / samples.n, 0).sum(axis=0) for sums in (samples.total, samples.squares)
        ]
    n = np.where(np.isfinite(effective), effective, 0)
    return Sample(n, *(n * np.nan_to_num(mean) for mean in means))


Pair = tuple[float, float]  # of the new and of the earlier objects


def shares_p_value(counts: Pair, n: Pair, effect: float) -> float:
    """Probability that chance alone makes shares differ as much in either direction, by Fisher's exact test.

    `counts` of `n` objects; both are divided by the design effect and rounded.
    """
    ours, theirs = (max(round(each / effect), 1) for each in n)
    yes, yes_earlier = round(ours * counts[0] / n[0]), round(theirs * counts[1] / n[1])
    table = (ours + theirs, yes + yes_earlier, ours)
    tail = min(stats.hypergeom.cdf(yes, *table), stats.hypergeom.sf(yes - 1, *table))
    return float(min(2 * tail, 1))


def means_p_value(means: Pair, variances: Pair, n: Pair, effect: float) -> float:
    """Probability that chance alone makes means of `n` numbers differ as much in either direction.

    The variances are of single numbers. By the normal distribution, for hundreds of numbers between 0 and 1.
    """
    error = math.sqrt(effect * (variances[0] / n[0] + variances[1] / n[1]))
    difference = abs(means[0] - means[1])
    return float(special.erfc(difference / error / math.sqrt(2))) if error > 0 else float(difference == 0)


def fractions_p_value(counts: np.ndarray, earlier: np.ndarray, effects: np.ndarray) -> float:
    """Probability that chance alone makes class fractions differ as much, by the chi-squared test of homogeneity.

    Parameters
    ----------
    counts, earlier : float64 (C,), objects of each class.
    effects : float64 (C,), design effect of the share of each class.

    The counts are divided by the mean design effect. Classes of which too few objects are expected count as one class.
    """
    both = np.stack([counts, earlier])
    fraction = both.sum(axis=0) / both.sum()
    weight = np.where(fraction > 0, 1 - fraction, 0)
    effect = float((weight * effects).sum() / weight.sum()) if weight.sum() > 0 else 1.0
    table = both / effect
    rare = fraction * table.sum(axis=1).min() < _FEWEST_EXPECTED
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(axis=1, keepdims=True)], axis=1)
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2:
        return 1.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    statistic = ((table - expected) ** 2 / expected).sum()
    return float(special.chdtrc(table.shape[1] - 1, statistic))
