"""Chance, as the drift monitor tells it: exact where an exact test exists, honest where objects of a tile agree."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.drift.counts import RegionSums
from pipeline.drift.statistics import (
    Sample,
    design_effects,
    fractions_p_value,
    means_p_value,
    shares_p_value,
    weighted,
)


def sums(counts: np.ndarray, sizes: np.ndarray) -> RegionSums:
    """Of tiles with `counts` of `sizes` objects, int (R, tiles), one measure that is a share."""
    y, n = counts.astype(float), sizes.astype(float)

    def over(values: np.ndarray) -> np.ndarray:
        return values.sum(axis=1, keepdims=True)

    tiles = np.full((len(y), 1), float(y.shape[1]))
    return RegionSums(np.arange(len(y)), tiles, over(n), over(n * n), over(y), over(y), over(y * y), over(y * n))


def test_shares_by_the_exact_test_of_fisher() -> None:
    for yes, n, earlier, m in ((9, 100, 400, 20_000), (0, 300, 30, 900), (3, 7, 3, 7), (50, 100, 5000, 10_000)):
        table = [[yes, n - yes], [earlier, m - earlier]]
        tail = min(stats.fisher_exact(table, alternative).pvalue for alternative in ("greater", "less"))
        assert shares_p_value((yes, earlier), (n, m), 1.0) == pytest.approx(min(2 * tail, 1), rel=1e-6)
    assert shares_p_value((90, 400), (1000, 20_000), 10.0) == shares_p_value((9, 40), (100, 2000), 1.0)


def test_fractions_by_chi_squared_with_rare_classes_as_one() -> None:
    new, earlier, one = np.array([50.0, 30.0, 20.0]), np.array([500.0, 340.0, 160.0]), np.ones(3)
    expected = stats.chi2_contingency([new, earlier], correction=False).pvalue
    assert fractions_p_value(new, earlier, one) == pytest.approx(expected, rel=1e-9)
    assert fractions_p_value(new * 4, earlier * 4, 4 * one) == pytest.approx(expected, rel=1e-9)
    rare, rare_earlier = np.append(new, [1.0, 1.0, 0.0]), np.append(earlier, [0.0, 2.0, 0.0])
    together = stats.chi2_contingency([[*new, 2], [*earlier, 2]], correction=False).pvalue
    assert fractions_p_value(rare, rare_earlier, np.ones(6)) == pytest.approx(together, rel=1e-9)
    assert fractions_p_value(np.array([5.0, 0.0]), np.array([9.0, 0.0]), np.ones(2)) == 1.0


def test_means_by_the_normal_distribution() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(500), rng.random(4000) + 0.03
    expected = stats.ttest_ind(a, b, equal_var=False).pvalue
    ours = means_p_value((a.mean(), b.mean()), (a.var(), b.var()), (500, 4000), 1.0)
    assert ours == pytest.approx(expected, rel=0.05)
    assert means_p_value((0.5, 0.5), (0, 0), (9, 9), 1.0) == 1.0 and means_p_value((0, 1), (0, 0), (9, 9), 1) == 0.0


@pytest.mark.parametrize(("alike", "effect"), [(0.0, 1.0), (0.1, 5.75)])
def test_the_design_effect_is_that_of_tiles_that_scatter(alike: float, effect: float) -> None:
    """Shares of tiles scatter with a standard deviation of `alike` about 0.3: 1 + (n − 1) alike² / (0.3 · 0.7)."""
    rng = np.random.default_rng(2)
    sizes = np.full((20, 50), 100)
    shares = (0.3 + alike * rng.standard_normal(sizes.shape)).clip(0, 1)
    found = design_effects(sums(rng.binomial(sizes, shares), sizes), sums(np.zeros((1, 1)), np.ones((1, 1))))
    assert found[0] == pytest.approx(effect, rel=0.15)


def test_with_the_design_effect_chance_is_as_rare_as_it_says() -> None:
    """Of equal skies, one in twenty comparisons has a chance below 0.05; without the correction every second one."""
    rng = np.random.default_rng(3)
    sizes, few = np.full((300, 30), 100), np.full((300, 8), 100)
    earlier, new = (
        sums(rng.binomial(size, (0.3 + 0.1 * rng.standard_normal(size.shape)).clip(0, 1)), size)
        for size in (sizes, few)
    )
    effect = design_effects(earlier, new)[0]

    def often(effect: float) -> float:
        pairs = zip(new.total[:, 0], earlier.total[:, 0], strict=True)
        return float(np.mean([shares_p_value(pair, (800, 3000), effect) < 0.05 for pair in pairs]))

    assert often(effect) < 0.08 and often(1.0) > 0.3


def test_earlier_tiles_alone_say_how_much_tiles_vary() -> None:
    """One tile in five that has turned is drift, not scatter, unless there were too few tiles before to know."""
    sizes = np.full((1, 20), 100)
    turned = np.array([[10, 10, 10, 10, 100]])
    steady = np.random.default_rng(4).binomial(sizes, 0.1)
    assert design_effects(sums(steady, sizes), sums(turned, sizes[:, :5]))[0] < 2
    assert design_effects(sums(steady[:, :5], sizes[:, :5]), sums(turned, sizes[:, :5]))[0] > 5


def test_regions_are_weighted_as_wanted() -> None:
    samples = Sample(
        np.array([[100.0], [400.0], [0.0]]), np.array([[10.0], [200.0], [0.0]]), np.array([[10.0], [200.0], [0.0]])
    )
    both = weighted(samples, np.array([[30.0], [10.0], [0.0]]))
    assert both.mean[0] == pytest.approx(0.75 * 0.1 + 0.25 * 0.5)
    assert both.n[0] == pytest.approx(1 / (0.75**2 / 100 + 0.25**2 / 400))
    assert weighted(samples, samples.n).n[0] == pytest.approx(500)
    assert weighted(samples, np.ones((3, 1))).n[0] == 0 and weighted(samples, np.zeros((3, 1))).n[0] == 0
