"""New objects against earlier ones, region by region and over the whole sky: which differences are more than chance.

From sums to differences; knows neither releases nor files.
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
    chance_of_fractions,
    chance_of_means,
    chance_of_shares,
    design_effects,
    weighted,
)


@dataclass(frozen=True)
class Quantity:
    """What is compared, the measures (by number) that tell it, and the limit of its difference."""

    name: str
    at: list[int]
    limit: float


@dataclass(frozen=True)
class _Place:
    """A region or the whole sky (`cell` None): its samples by measure, and where the earlier one is not its own."""

    cell: int | None
    new: Sample
    earlier: Sample
    nearby: np.ndarray  # bool (M,)
    objects: tuple[int, int]


def compare(
    new: RegionSums, earlier: RegionSums, measures: Sequence[Measure], settings: DriftSettings
) -> tuple[tuple[DriftRegion, ...], int]:
    """What differs on the whole sky, and then in each region with new objects, most first; how many comparisons.

    A region with fewer than `min_objects` earlier objects is compared with those of the whole sky. For the whole sky
    the earlier regions are weighted as the new objects are spread over them, so that a night in another part of the sky
    is no drift by itself.
    """
    effects, quantities = design_effects(earlier, new), quantities_of(measures, settings)
    told: list[tuple[_Place, list[tuple[Quantity, DriftDifference]]]] = []
    for place in _places(new, earlier, measures, settings.min_objects):
        enough = [quantity for quantity in quantities if _enough(place, quantity, settings.min_objects)]
        told.append((place, [(quantity, _difference(place, quantity, measures)) for quantity in enough]))
    tests = sum(len(found) for _, found in told)
    level = settings.level / max(tests, 1)
    regions = [
        _region(place, [_judged(place, *each, effects, level) for each in found], settings.order)
        for place, found in told
    ]
    return tuple(regions), tests


def quantities_of(measures: Sequence[Measure], settings: DriftSettings) -> list[Quantity]:
    """The quantities that these measures tell, with the limits of the settings; the classes come first."""
    classes = [i for i, measure in enumerate(measures) if measure.is_class]
    limits = {"confidence": settings.confidence, "ood_score": settings.novelty}
    others = [
        Quantity(m.name, [i], limits.get(m.name, settings.share)) for i, m in enumerate(measures) if not m.is_class
    ]
    return [Quantity(CLASSES, classes, settings.classes), *others]


def _places(new: RegionSums, earlier: RegionSums, measures: Sequence[Measure], fewest: int) -> Iterator[_Place]:
    read = next(i for i, measure in enumerate(measures) if measure.population is Population.READ)
    own, everywhere = _aligned(earlier, new.cells), _added_up(earlier)
    nearby = own.n >= fewest
    stands = Sample(*(np.where(nearby, *each) for each in zip(_arrays(own), _arrays(everywhere), strict=True)))
    total = _added_up(new)
    counts = int(total.n[read]), int(everywhere.n[read])
    yield _Place(None, total, weighted(stands, new.n), np.ones(len(measures), bool), counts)
    for r in np.argsort(-new.n[:, read], kind="stable"):
        if new.cells[r] != NOWHERE:
            counts = int(new.n[r, read]), int(own.n[r, read])
            yield _Place(int(new.cells[r]), _row(new, r), Sample(*(a[r] for a in _arrays(stands))), nearby[r], counts)


def _arrays(sample: Sample | RegionSums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return sample.n, sample.total, sample.squares


def _added_up(sums: RegionSums) -> Sample:
    return Sample(*(values.sum(axis=0) for values in _arrays(sums)))


def _row(sums: RegionSums, r: int) -> Sample:
    return Sample(*(values[r] for values in _arrays(sums)))


def _aligned(sums: RegionSums, cells: np.ndarray) -> Sample:
    """The sums at these cells, float64 (R, M), 0 where there is none."""
    at = np.searchsorted(sums.cells, cells).clip(max=max(len(sums.cells) - 1, 0))
    there = sums.cells[at] == cells if len(sums.cells) else np.zeros(len(cells), bool)
    return Sample(*(np.where(there[:, None], values[at], 0) for values in _arrays(sums)))


def _enough(place: _Place, quantity: Quantity, fewest: int) -> bool:
    at = quantity.at[0]  # all of one population
    return bool(place.new.n[at] >= fewest and place.earlier.n[at] >= fewest)


def _difference(place: _Place, quantity: Quantity, measures: Sequence[Measure]) -> DriftDifference:
    """How much a quantity differs, not yet whether by chance."""
    first = quantity.at[0]
    new, earlier = place.new.mean[quantity.at], place.earlier.mean[quantity.at]
    difference = DriftDifference(
        quantity.name,
        new=float(new[0]),
        earlier=float(earlier[0]),
        size=float(np.abs(new - earlier).sum()),
        limit=quantity.limit,
        objects=int(place.new.n[first]),
        earlier_objects=int(place.earlier.n[first]),
        nearby=bool(place.nearby[first]),
    )
    if quantity.name != CLASSES:
        return difference
    fractions = {measures[i].name: (float(a), float(b)) for i, a, b in zip(quantity.at, new, earlier, strict=True)}
    return replace(difference, new=None, earlier=None, size=difference.size / 2, fractions=fractions)


def _judged(
    place: _Place, quantity: Quantity, found: DriftDifference, effects: np.ndarray, level: float
) -> DriftDifference:
    """The difference with the chance of it, where it is beyond its limit, and whether that makes it an alarm."""
    if found.size <= found.limit:
        return found
    chance = _chance(place, quantity, effects)
    return replace(found, chance=chance, alarm=chance <= level)


def _chance(place: _Place, quantity: Quantity, effects: np.ndarray) -> float:
    new, earlier, at, first = place.new, place.earlier, quantity.at, quantity.at[0]
    if quantity.name == CLASSES:
        return chance_of_fractions(new.total[at], earlier.total[at], effects[at])
    if quantity.name in MEANS:
        means, variances = (new.mean[first], earlier.mean[first]), (new.variance[first], earlier.variance[first])
        return chance_of_means(means, variances, (new.n[first], earlier.n[first]), effects[first])
    return chance_of_shares((new.total[first], earlier.total[first]), (new.n[first], earlier.n[first]), effects[first])


def _region(place: _Place, differences: Sequence[DriftDifference], order: int) -> DriftRegion:
    ra, dec = (None, None)
    if place.cell is not None:
        ra, dec = (float(values[0]) for values in cell_centres(np.array([place.cell]), order))
    absent = [d for d in differences if d.new == d.earlier == 0]
    return DriftRegion(place.cell, ra, dec, *place.objects, tuple(d for d in differences if d not in absent))
