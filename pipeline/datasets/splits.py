"""Splits of labelled rows into training, validation and test: stratified, seeded, by sky position.

Everybody who needs a split asks `split` here, so that the same rows, fractions and seed always give the same lists.
This module must not know where rows come from, nor read pixels.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from catalogs.atomic import atomic_write
from catalogs.healpix import close_pairs
from models.artifacts.registry import ModelCard
from pipeline.core.errors import UserError

SAME_POSITION = 1.0  # arcsec
PARTS = ("train", "validation", "test")
_TRAIN, _VALIDATION, _TEST = range(3)
_FEWEST = 3  # rows of a class that are shared out; fewer stay in training
_STREAM = 0x5EED  # second word of the random stream's seed: other streams of the same seed share nothing with it


class LabelledRows(Protocol):
    """What a split needs to know of a data set: an `ImageSet`, or a table without pixels.

    `labels` int64 (N,), indices into `class_slugs`; `ra`, `dec` float64 (N,) degrees, NaN if unknown;
    `official_test` sorted int64 rows, or None.
    """

    @property
    def source(self) -> str: ...
    @property
    def class_slugs(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def ra(self) -> np.ndarray: ...
    @property
    def dec(self) -> np.ndarray: ...
    @property
    def official_test(self) -> np.ndarray | None: ...
    @property
    def digest(self) -> str: ...


@dataclass(frozen=True)
class Split:
    """Disjoint, sorted row indices int64 of the three sets."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over the three lists."""
        digest = hashlib.sha256()
        for rows in (self.train, self.validation, self.test):
            digest.update(rows.astype("<i8").tobytes() + b"|")
        return digest.hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {"digest": self.digest, **{part: getattr(self, part).tolist() for part in PARTS}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Split:
        """The inverse of `to_dict`; other keys are skipped.

        Raises
        ------
        ValueError : a list is missing or is no list of distinct row numbers, or the digest is not that of the lists.
        """
        parts = cls(*(_rows(values, part) for part in PARTS))
        if values.get("digest") != parts.digest:
            raise ValueError(f"its digest is {values.get('digest')!r}, that of its lists {parts.digest!r}")
        return parts


def split(rows: LabelledRows, *, validation: float, test: float, seed: int) -> Split:
    """Share rows out at random: all rows of one sky position fall into one set, each class is shared in proportion.

    Positions of several rows are dealt first, by the class of their first row; then the rows that stand alone fill each
    class up to its share. With an official test split, that is the test set and `test` is not used. Of a class of
    fewer than three rows, those that stand alone stay in training; of others at least one row goes to validation.

    Raises
    ------
    UserError : a class without rows, or one of which none is left for training.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise UserError(
            f"training.validation_fraction = {validation} and training.test_fraction = {test}: neither may be negative "
            "and something must be left for training"
        )
    _require_every_class(rows)
    groups = position_groups(rows.ra, rows.dec)
    where = np.zeros(len(rows.labels), dtype=np.int8)
    free = np.ones(len(rows.labels), dtype=bool)
    if rows.official_test is not None:
        where[rows.official_test], free[rows.official_test] = _TEST, False
        _require_apart(rows, groups, free)
        test = 0.0
    rng = np.random.default_rng([seed, _STREAM])
    counts = np.bincount(groups)[groups]
    _deal_shared_positions(rows.labels, groups, (counts > 1) & free, where, (validation, test), rng)
    _fill_up(rows.labels, counts > 1, free, where, (validation, test), rng)
    parts = Split(*(np.flatnonzero(where == part).astype(np.int64) for part in range(3)))
    if untaught := _untaught(rows, parts):
        raise UserError(
            f"{rows.source}: no training image left of {', '.join(untaught)} with training.validation_fraction = "
            f"{validation} and training.test_fraction = {test}; lower them or add images"
        )
    return parts


def position_groups(ra: np.ndarray, dec: np.ndarray, radius: float = SAME_POSITION) -> np.ndarray:
    """Number of the group of each position, int64 (N,): positions within `radius` arcsec of each other share one.

    A row without a position (NaN) is a group of its own.
    """
    known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if len(known) == 0:
        return np.arange(len(ra))
    pairs = close_pairs(ra[known], dec[known], radius)
    links = coo_array((np.ones(len(pairs)), (known[pairs[:, 0]], known[pairs[:, 1]])), shape=(len(ra), len(ra)))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)


def crossing_groups(groups: np.ndarray, parts: Split) -> int:
    """How many groups (int64 (N,), of each row) have rows in more than one of the three sets."""
    met = np.concatenate([np.unique(groups[rows]) for rows in (parts.train, parts.validation, parts.test)])
    return int((np.unique(met, return_counts=True)[1] > 1).sum())


def labels_digest(labels: np.ndarray) -> str:
    """Sixteen hexadecimal digits over the labels of all rows: which rows a split was made of."""
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()[:16]


def write_split(path: Path, rows: LabelledRows, parts: Split, *, validation: float, test: float, seed: int) -> None:
    """Write a split with everything that `read_split` needs to tell whether it belongs to other rows."""
    document = {
        "source": Path(rows.source).name,
        "source_digest": rows.digest,
        "labels_digest": labels_digest(rows.labels),
        "seed": seed,
        "fractions": {"validation": validation, "test": test},
        **parts.to_dict(),
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")


def read_split(path: Path, rows: LabelledRows) -> Split:
    """Read a split that `morphcat galaxy10 split` wrote, or the `split.json` of a model, for these rows.

    Raises
    ------
    UserError : it cannot be read, was changed, is of other rows, its lists overlap, or a sky position is in two.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        parts = Split.from_dict(values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be used as a split ({error}); `morphcat galaxy10 split` makes one") from error
    together = np.concatenate([parts.train, parts.validation, parts.test])
    count = len(rows.labels)
    if len(together) and (together.min() < 0 or together.max() >= count):
        raise UserError(f"{path}: rows from {together.min()} to {together.max()}, {rows.source} has 0 to {count - 1}")
    if len(np.unique(together)) < len(together):
        raise UserError(f"{path}: {len(together) - len(np.unique(together))} rows are in more than one of its lists")
    if values.get("labels_digest") not in (None, labels_digest(rows.labels)):
        raise UserError(f"{path} was made of {values.get('source')}, whose labels are not those of {rows.source}")
    if crossing := crossing_groups(position_groups(rows.ra, rows.dec), parts):
        raise UserError(f"{path}: {crossing} sky positions are in more than one of its lists; such a split leaks")
    if untaught := _untaught(rows, parts):
        raise UserError(f"{path}: no training row of {', '.join(untaught)}")
    return parts


def recorded_split(models: Path, card: ModelCard, images: LabelledRows) -> Split:
    """The split that a model was trained with, from its folder, for the images it was trained with.

    Raises
    ------
    UserError : these are other images, so nobody can tell which of them the model has seen.
    """
    if images.digest != card.data["digest"]:
        raise UserError(
            f"{images.source} is not what {card.model_id} was trained on ({card.data['source']}): its test split can "
            "not be told from images the model has seen"
        )
    parts = read_split(models / card.model_id / "split.json", images)
    if parts.digest != card.split_digest:
        raise UserError(f"{models / card.model_id}: split.json is not the split of its card; train the model again")
    return parts


def _rows(values: dict[str, Any], part: str) -> np.ndarray:
    if not isinstance(values, dict) or not isinstance(values.get(part), list):
        raise ValueError(f"it has no list {part!r}")
    if not all(type(row) is int for row in values[part]):
        raise ValueError(f"{part!r} holds something else than row numbers")
    rows = np.array(values[part], dtype=np.int64)
    if (np.diff(rows) <= 0).any():
        raise ValueError(f"{part!r} is not in ascending order")
    return rows


def _deal_shared_positions(
    labels: np.ndarray,
    groups: np.ndarray,
    shared: np.ndarray,
    where: np.ndarray,
    fractions: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    """Put the groups of several rows (those where `shared`, bool (N,)) into `where`, class by class."""
    rows = np.flatnonzero(shared)
    names, first = np.unique(groups[rows], return_index=True)
    of_group = np.zeros(int(groups.max()) + 1, dtype=np.int8)
    for label in np.unique(labels[rows]):
        members = rng.permutation(names[labels[rows[first]] == label])
        n_validation, n_test = (round(len(members) * fraction) for fraction in fractions)
        of_group[members[:n_test]] = _TEST
        of_group[members[n_test : n_test + n_validation]] = _VALIDATION
    where[rows] = of_group[groups[rows]]


def _fill_up(
    labels: np.ndarray,
    shared: np.ndarray,
    free: np.ndarray,
    where: np.ndarray,
    fractions: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    """Put free rows that stand alone into `where`, so that each class has its share of each set."""
    for label in np.unique(labels[free]):
        members = (labels == label) & free
        alone = rng.permutation(np.flatnonzero(members & ~shared))
        count = int(members.sum())
        if count < _FEWEST:
            continue
        there = np.bincount(where[members & shared], minlength=3)
        n_test = max(0, round(count * fractions[1]) - there[_TEST])
        least = 1 if fractions[0] else 0
        n_validation = max(0, max(least, round(count * fractions[0])) - there[_VALIDATION])
        where[alone[:n_test]] = _TEST
        where[alone[n_test : n_test + n_validation]] = _VALIDATION


def _require_every_class(rows: LabelledRows) -> None:
    counts = np.bincount(rows.labels, minlength=len(rows.class_slugs))
    missing = [slug for slug, count in zip(rows.class_slugs, counts, strict=True) if count == 0]
    if missing:
        raise UserError(
            f"{rows.source}: no example of {', '.join(missing)}; a network cannot learn a class it never sees, so "
            f"each of the {len(counts)} classes needs images"
        )


def _require_apart(rows: LabelledRows, groups: np.ndarray, free: np.ndarray) -> None:
    common = np.intersect1d(groups[free], groups[~free])
    if len(common):
        raise UserError(f"{rows.source}: {len(common)} sky positions of its official test split are also outside of it")


def _untaught(rows: LabelledRows, parts: Split) -> list[str]:
    """Classes without a training row."""
    left = np.bincount(rows.labels[parts.train], minlength=len(rows.class_slugs))
    return [slug for slug, count in zip(rows.class_slugs, left, strict=True) if count == 0]
