"""Labels that were offered, against the objects of a release: who is meant, and what is refused, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from cdshealpix.nested import neighbours
from scipy.spatial import cKDTree

from catalogs.errors import CatalogError
from catalogs.healpix import ORDER, healpix_29
from catalogs.query.sql import query

UNKNOWN_CLASS, UNKNOWN_OBJECT, NO_MATCH = "unknown class", "unknown object", "no object there"
AMBIGUOUS, CONFLICT, NO_OBJECT, UNDECIDED = "ambiguous position", "conflicting labels", "no object named", "undecided"

_LARGEST_RADIUS = 60.0  # arcsec; beyond it is not the same object by any measurement
_ORDER = 10  # of HEALPix cells (3.4 arcmin) of which the next ones hold everything within that radius


@dataclass(frozen=True)
class Proposal:
    """One row of a file, its label understood: `row` counts from 1, `object_id` is −1 where a position names it."""

    row: int
    object_id: int
    ra: float
    dec: float
    label: str
    label_id: int
    note: str = ""

    @property
    def object(self) -> str:
        """The object as the file named it."""
        return str(self.object_id) if self.object_id >= 0 else f"{self.ra:.6f} {self.dec:+.6f}"


@dataclass(frozen=True)
class Refusal:
    """A row that gives no label: what it named, what it said, a reason and the details for a person."""

    row: int
    object: str
    label: str
    reason: str
    detail: str


@dataclass(frozen=True)
class ResolvedLabel:
    """A label of an object of the catalogue; ra and dec in degrees are those of the catalogue."""

    object_id: int
    label: str
    label_id: int
    ra: float
    dec: float
    note: str = ""


def objects_of(catalog: Path, release: str | None = None) -> pa.Table:
    """object_id int64, ra and dec float64 (degrees) of a release, the current one unless another is named.

    Raises
    ------
    CatalogError : there is no (such) release.
    """
    return query(catalog, "SELECT object_id, ra, dec FROM morphology ORDER BY object_id", release=release)


def checked(
    proposals: Sequence[Proposal], objects: pa.Table, radius: float
) -> tuple[list[ResolvedLabel], list[Refusal], int]:
    """Labels of known objects, what is refused, and how many rows only said again what another row says.

    Parameters
    ----------
    objects : as `objects_of` gives it, sorted by object id.
    radius : arcsec, for rows that name a position. The only object within it is meant.

    Raises
    ------
    CatalogError : the radius is none.
    """
    if not 0 < radius <= _LARGEST_RADIUS:
        raise CatalogError(f"a radius of {radius} arcsec: expected more than 0 and at most {_LARGEST_RADIUS:g}")
    index, refused = _places(proposals, objects, radius)
    meant: dict[int, list[Proposal]] = {}
    for proposal, place in zip(proposals, index, strict=True):
        if place >= 0:
            meant.setdefault(int(place), []).append(proposal)
    ids, ra, dec = (objects[name].to_numpy() for name in ("object_id", "ra", "dec"))
    labels: list[ResolvedLabel] = []
    for place, rows in meant.items():
        if len({one.label for one in rows}) > 1:
            refused += _conflict(int(ids[place]), rows)
            continue
        first = rows[0]
        labels.append(
            ResolvedLabel(int(ids[place]), first.label, first.label_id, float(ra[place]), float(dec[place]), first.note)
        )
    conflicting = sum(one.reason == CONFLICT for one in refused)
    repeated = sum(map(len, meant.values())) - conflicting - len(labels)
    return labels, sorted(refused, key=lambda one: one.row), repeated


def _conflict(object_id: int, rows: list[Proposal]) -> list[Refusal]:
    said = ", ".join(f"row {one.row} {one.label}" for one in rows[:5]) + (" …" if len(rows) > 5 else "")
    detail = f"object {object_id} has different labels in this file: {said}"
    return [Refusal(one.row, one.object, one.label, CONFLICT, detail) for one in rows]


def _places(proposals: Sequence[Proposal], objects: pa.Table, radius: float) -> tuple[np.ndarray, list[Refusal]]:
    """The row of `objects` that each proposal means, int64 (N,), −1 where it is refused."""
    index = np.full(len(proposals), -1, dtype=np.int64)
    wanted = np.array([one.object_id for one in proposals], dtype=np.int64)
    named, known = wanted >= 0, objects["object_id"].to_numpy()
    if len(known):
        at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        index = np.where(named & (known[at] == wanted), at, -1)
    refused = [
        Refusal(one.row, one.object, one.label, UNKNOWN_OBJECT, "no object of this id in the release")
        for one, place in zip(proposals, index, strict=True)
        if one.object_id >= 0 and place < 0
    ]
    rows = np.flatnonzero(~named).tolist()
    for row, near in zip(rows, _within(rows, proposals, objects, radius), strict=True):
        one = proposals[row]
        if len(near) == 1:
            index[row] = near[0]
        elif not near:
            refused.append(
                Refusal(one.row, one.object, one.label, NO_MATCH, f"no object of the release within {radius:g} arcsec")
            )
        else:
            ids = ", ".join(str(known[place]) for place in near[:5])
            detail = f"{len(near)} objects within {radius:g} arcsec ({ids}); name one by object_id"
            refused.append(Refusal(one.row, one.object, one.label, AMBIGUOUS, detail))
    return index, refused


def _within(rows: list[int], proposals: Sequence[Proposal], objects: pa.Table, radius: float) -> list[list[int]]:
    """For each of these proposals the rows of `objects` within `radius` arcsec, the nearest first."""
    if not rows or objects.num_rows == 0:
        return [[] for _ in rows]
    ra, dec = np.array([(proposals[row].ra, proposals[row].dec) for row in rows]).T
    all_ra, all_dec = objects["ra"].to_numpy(), objects["dec"].to_numpy()
    # Of millions of objects most are near no label; a tree of them all would take half a minute.
    near = np.flatnonzero(np.isin(_cells(all_ra, all_dec), neighbours(_cells(ra, dec), _ORDER)))
    if len(near) == 0:
        return [[] for _ in rows]
    places, vectors = _vectors(ra, dec), _vectors(all_ra[near], all_dec[near])
    chord = 2 * np.sin(np.radians(radius / 3600) / 2)
    found = cKDTree(vectors).query_ball_point(places, chord)
    return [_nearest_first(near, group, vectors, place) for group, place in zip(found, places, strict=True)]


def _cells(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    return healpix_29(ra, dec) >> 2 * (ORDER - _ORDER)


def _nearest_first(near: np.ndarray, group: list[int], vectors: np.ndarray, place: np.ndarray) -> list[int]:
    order = np.argsort(((vectors[group] - place) ** 2).sum(axis=1))
    return near[group][order].tolist()


def _vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Unit vectors float64 (N, 3) of positions in degrees."""
    lon, lat = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
