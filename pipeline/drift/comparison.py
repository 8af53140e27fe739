"""New objects against earlier ones, for the whole sky and region by region: which differences are beyond chance.

From sums to differences; reads neither releases nor files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from catalogs.healpix import cell_centres
from pipeline.config.drift import DriftSettings
from pipeline.drift.counts import NOWHERE, Measure, Population, RegionSums
from pipeline.drift.report import CLASSES, MEANS, DriftDifference, DriftRegion
from pipeline.drift.statistics import (
    Sample,
    design_effects,
    fractions_p_value,
    means_p_value,
    shares_p_value,
    weighted,
)


@dataclass(frozen=True)
class Quantity:
    """What is compared: its name, the numbers of its measures, and the limit of its difference."""

    name: str
    measures: list[int]
    limit: float


@dataclass(frozen=True)
class _RegionSamples:
    """The samples of a region or of the whole sky (`cell` None), by measure.

    nearby : bool (M,), False where the earlier sample is that of the whole sky.
    objects : the numbers of new and of earlier objects.
    """

    cell: int | None
    new: Sample
    earlier: Sample
    nearby: np.ndarray
    objects: tuple[int, int]


def compare(
    new: RegionSums, earlier: RegionSums, measures: Sequence[Measure], settings: DriftSettings
) -> tuple[tuple[DriftRegion, ...], int]:
    """The whole sky and then the regions with new objects, those with most first; and the number of comparisons.

    A region with fewer than `min_objects` earlier objects is compared with those of the whole sky. For the whole sky
    the earlier regions are weighted as the new objects are spread over them, so that a night in another part of the sky
    is no drift by itself.
    """
    effects, quantities = design_effects(earlier, new), quantities_of(measures, settings)
    found: list[tuple[_RegionSamples, list[tuple[Quantity, DriftDifference]]]] = []
    for region in _regions(new, earlier, measures, settings.min_objects):
        enough = [quantity for quantity in quantities if _has_enough(region, quantity, settings.min_objects)]
        found.append((region, [(quantity, _difference(region, quantity, measures)) for quantity in enough]))
    # The level is that of any false alarm, so it is divided by the number of comparisons (Bonferroni).
    tests = sum(len(differences) for _, differences in found)
    level = settings.level / max(tests, 1)
    regions = []
    for region, differences in found:
        tested = [_tested(region, quantity, difference, effects, level) for quantity, difference in differences]
        regions.append(_drift_region(region, tested, settings.order))
    return tuple(regions), tests


def quantities_of(measures: Sequence[Measure], settings: DriftSettings) -> list[Quantity]:
    """The quantities of these measures, with the limits of the settings; the classes come first."""
    classes = [i for i, measure in enumerate(measures) if measure.is_class]
    limits = {"confidence": settings.confidence, "ood_score": settings.novelty}
    others = [
        Quantity(measure.name, [i], limits.get(measure.name, settings.share))
        for i, measure in enumerate(measures)
        if not measure.is_class
    ]
    return [Quantity(CLASSES, classes, settings.classes), *others]


# --- samples ------------------------------------------------------------------------------------------------------


def _regions(
    new: RegionSums, earlier: RegionSums, measures: Sequence[Measure], min_objects: int
) -> Iterator[_RegionSamples]:
    """The whole sky, then the regions with new objects, those with most first."""
    read = next(i for i, measure in enumerate(measures) if measure.population is Population.READ)
    own, everywhere = _at_cells(earlier, new.cells), _total(earlier)
    nearby = own.n >= min_objects
    compared = Sample(*(np.where(nearby, *each) for each in zip(_arrays(own), _arrays(everywhere), strict=True)))
    total = _total(new)
    objects = int(total.n[read]), int(everywhere.n[read])
    yield _RegionSamples(None, total, weighted(compared, new.n), np.ones(len(measures), bool), objects)
    for r in np.argsort(-new.n[:, read], kind="stable"):
        if new.cells[r] != NOWHERE:
            objects = int(new.n[r, read]), int(own.n[r, read])
            yield _RegionSamples(int(new.cells[r]), _region(new, r), _region(compared, r), nearby[r], objects)


def _arrays(sums: Sample | RegionSums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return sums.n, sums.total, sums.squares


def _total(sums: RegionSums) -> Sample:
    return Sample(*(values.sum(axis=0) for values in _arrays(sums)))


def _region(sums: Sample | RegionSums, r: int) -> Sample:
    return Sample(*(values[r] for values in _arrays(sums)))


def _at_cells(sums: RegionSums, cells: np.ndarray) -> Sample:
    """The sums in these cells, float64 (R, M); 0 if there are none."""
    at = np.searchsorted(sums.cells, cells).clip(max=max(len(sums.cells) - 1, 0))
    known = sums.cells[at] == cells if len(sums.cells) else np.zeros(len(cells), bool)
    return Sample(*(np.where(known[:, None], values[at], 0) for values in _arrays(sums)))


# --- differences --------------------------------------------------------------------------------------------------


def _has_enough(region: _RegionSamples, quantity: Quantity, min_objects: int) -> bool:
    first = quantity.measures[0]  # all are of one population
    return bool(region.new.n[first] >= min_objects and region.earlier.n[first] >= min_objects)


def _difference(region: _RegionSamples, quantity: Quantity, measures: Sequence[Measure]) -> DriftDifference:
    """How much a quantity differs, not yet tested."""
    first = quantity.measures[0]
    new, earlier = region.new.mean[quantity.measures], region.earlier.mean[quantity.measures]
    difference = DriftDifference(
        quantity.name,
        new=float(new[0]),
        earlier=float(earlier[0]),
        size=float(np.abs(new - earlier).sum()),
        limit=quantity.limit,
        objects=int(region.new.n[first]),
        earlier_objects=int(region.earlier.n[first]),
        nearby=bool(region.nearby[first]),
    )
    if quantity.name != CLASSES:
        return difference
    slugs = [measures[i].name for i in quantity.measures]
    fractions = {slug: (float(a), float(b)) for slug, a, b in zip(slugs, new, earlier, strict=True)}
    return replace(difference, new=None, earlier=None, size=difference.size / 2, fractions=fractions)


def _tested(
    region: _RegionSamples, quantity: Quantity, difference: DriftDifference, effects: np.ndarray, level: float
) -> DriftDifference:
    """The difference with its p-value if it is beyond its limit, and whether that makes it an alarm."""
    if difference.size <= difference.limit:
        return difference
    p_value = _p_value(region, quantity, effects)
    return replace(difference, p_value=p_value, alarm=p_value <= level)


def _p_value(region: _RegionSamples, quantity: Quantity, effects: np.ndarray) -> float:
    """The probability that chance alone gives such a difference; effects : design effects, float64 (M,)."""
    new, earlier, first = region.new, region.earlier, quantity.measures[0]
    if quantity.name == CLASSES:
        return fractions_p_value(
            new.total[quantity.measures], earlier.total[quantity.measures], effects[quantity.measures]
        )
    n = (new.n[first], earlier.n[first])
    if quantity.name in MEANS:
        means, variances = (new.mean[first], earlier.mean[first]), (new.variance[first], earlier.variance[first])
        return means_p_value(means, variances, n, effects[first])
    return shares_p_value((new.total[first], earlier.total[first]), n, effects[first])


def _drift_region(region: _RegionSamples, differences: Sequence[DriftDifference], order: int) -> DriftRegion:
    """The region with its centre, without the quantities that neither new nor earlier objects have."""
    ra, dec = None, None
    if region.cell is not None:
        ra, dec = (float(values[0]) for values in cell_centres(np.array([region.cell]), order))
    present = tuple(difference for difference in differences if not difference.new == difference.earlier == 0)
    return DriftRegion(region.cell, ra, dec, *region.objects, present)
