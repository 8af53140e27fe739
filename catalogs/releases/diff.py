"""What changed from one release to another, object by object, and why.

Partition files that both releases share (the same file, or the same bytes) are not read. Where partition files differ,
the rows of one area of the sky at a time are joined by object id, so that memory holds the rows of a few pixels and the
changes; an object that moved to another area is found among what is left over.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalogs.atomic import atomic_write
from catalogs.paths import Partition, ReleaseLayout
from catalogs.schema import QualityFlag

# Each change is of the first kind that fits: another label; other probabilities or what else the prediction says of its
# certainty; other quality flags, maskbits or is_reliable; another position; anything else about the input.
KINDS = ("label", "confidence", "flags", "position", "input", "new", "gone")
REASONS = ("pixels", "model", "pixels and model", "calibration", "mask", "position", "input", "tile")
CHANGES_SCHEMA = pa.schema(
    [
        ("object_id", pa.int64()),
        ("ra", pa.float64()),
        ("dec", pa.float64()),
        ("kind", pa.string()),
        ("reason", pa.string()),
        ("old_label", pa.string()),
        ("new_label", pa.string()),
        ("old_confidence", pa.float32()),
        ("new_confidence", pa.float32()),
        ("variation", pa.float32()),
    ]
)
_SINCE = b"morphcat.changes_since"

_TEXTS = ("model_id", "survey_layer", "tile_id")
_PREDICTED = ("pred_set", "n_views", "confidence_std", "ood_score")
_FLAGGED = ("quality_flags", "maskbits", "is_reliable")
_PLACED = ("ra", "dec")
_READ = ("input_digest", "pixscale", "mag_r", "bad_pixel_fraction", "survey_layer")
_SLICE = 65_536
_OF_PREDICTION = int(QualityFlag.VIEWS_DISAGREE | QualityFlag.HIGH_OOD | QualityFlag.PRED_SET_EMPTY_OR_FULL)


def compare(old: ReleaseLayout, new: ReleaseLayout) -> pa.Table:
    """All objects that differ between two releases, the most changed first.

    Columns as in `CHANGES_SCHEMA`, texts dictionary-encoded. `kind` is one of `KINDS`. `variation` is the total
    variation distance of the probabilities, half the sum of their absolute differences, where "no label" counts as
    one more class; NaN for new and gone objects, which come last. `ra` and `dec` (deg) are those of the newer row.

    `reason` is what differs: `pixels` (input_digest), `model` (model_id) or both; `calibration` (neither, so it is
    what the same network serves); `mask` (quality flags or maskbits alone); `position`; `input` (other columns that
    came with the object). Of new and gone objects: `tile` (the other release does not have that sky tile), for gone
    ones `quarantine:` and why, else `input`. Other runs, times, tiles and source names alone are no change.
    """
    classes = _ClassMapping.of(_class_slugs(old), _class_slugs(new))
    areas = _areas(old, new)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        parts = list(threads.map(lambda area: _compare_area(old, new, area, classes), areas))
    changed = [_coded_schema().empty_table(), *(part.changed for part in parts)]
    if parts:
        left_old, left_new = _concatenated([p.left_old for p in parts]), _concatenated([p.left_new for p in parts])
        moved = _pair(left_old, left_new, classes)
        files = [old.partition_file(p.order, p.pixel) for area in areas for p in area.old]
        why = _reasons_gone(moved.left_old, files, new)
        changed += [moved.changed, _added_or_removed("gone", moved.left_old, classes, why)]
        changed.append(_added_or_removed("new", moved.left_new, classes, _tile_or_input(moved.left_new, old)))
    table = pa.concat_tables(changed).unify_dictionaries()
    order = pc.sort_indices(table, [("variation", "descending"), ("object_id", "ascending")])
    return table.take(order)


def write_changes(old: ReleaseLayout | None, new: ReleaseLayout) -> Path:
    """Write what changed since a release as `sidecar/changes.parquet` of the new one; without rows for the first.

    The footer names the older release under `morphcat.changes_since`.
    """
    table = compare(old, new) if old else _coded_schema().empty_table()
    path = new.provenance / "changes.parquet"
    schema = CHANGES_SCHEMA.with_metadata({_SINCE: old.root.name.encode() if old else b""})
    with atomic_write(path) as beside, pq.ParquetWriter(beside, schema, compression="zstd") as writer:
        for start in range(0, table.num_rows, _SLICE):
            writer.write_table(table.slice(start, _SLICE).cast(schema))
    return path


def flip_matrix(changes: pa.Table) -> pa.Table:
    """How many objects went from each label to each other one: old_label, new_label, objects, most first.

    An empty label is that of an object that is not classified.
    """
    flips = changes.filter(pc.equal(_plain(changes, "kind"), "label"))
    flips = pa.table({name: _plain(flips, name) for name in ("old_label", "new_label")})
    counts = (
        flips.group_by(["old_label", "new_label"])
        .aggregate([([], "count_all")])
        .rename_columns(["old_label", "new_label", "objects"])
    )
    return counts.sort_by([("objects", "descending"), ("old_label", "ascending"), ("new_label", "ascending")])


def totals(changes: pa.Table) -> pa.Table:
    """How many objects changed by kind and reason: kind, reason, objects, in the order of `KINDS`, then most first."""
    table = pa.table({name: _plain(changes, name) for name in ("kind", "reason")})
    counts = (
        table.group_by(["kind", "reason"]).aggregate([([], "count_all")]).rename_columns(["kind", "reason", "objects"])
    )
    rows = sorted(counts.to_pylist(), key=lambda row: (KINDS.index(row["kind"]), -row["objects"], row["reason"]))
    return pa.Table.from_pylist(rows, schema=counts.schema)


def _plain(table: pa.Table, name: str) -> pa.ChunkedArray:
    return table[name].cast(pa.string())


# --- which rows to compare ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Area:
    """Partition files of both releases that together cover one part of the sky, and none of which reaches out of it."""

    old: list[Partition]
    new: list[Partition]


def _areas(old: ReleaseLayout, new: ReleaseLayout) -> list[_Area]:
    """Areas of the sky where the partition files of the releases differ. Pixels are nested: none overlaps by half."""
    before, after = set(_pixels(old)), set(_pixels(new))
    same = {pixel for pixel in before & after if _same_file(old.partition_file(*pixel), new.partition_file(*pixel))}
    ranges = [(*_range(p), False, p) for p in old.partitions() if (p.order, p.pixel) not in same]
    ranges += [(*_range(p), True, p) for p in new.partitions() if (p.order, p.pixel) not in same]
    areas: list[_Area] = []
    end = -1
    for first, after_last, is_new, partition in sorted(ranges, key=lambda each: (each[0], -each[1])):
        if first >= end:
            areas.append(_Area([], []))
            end = after_last
        (areas[-1].new if is_new else areas[-1].old).append(partition)
    return areas


def _pixels(layout: ReleaseLayout) -> Iterator[tuple[int, int]]:
    return ((partition.order, partition.pixel) for partition in layout.partitions())


def _same_file(one: Path, other: Path) -> bool:
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)


def _range(partition: Partition) -> tuple[int, int]:
    shift = 2 * (29 - partition.order)
    return partition.pixel << shift, (partition.pixel + 1) << shift


def _class_slugs(layout: ReleaseLayout) -> list[str]:
    names = pq.read_schema(layout.primary / "dataset" / "_common_metadata").names
    return [name.removeprefix("p_") for name in names if name.startswith("p_")]


@dataclass(frozen=True)
class _ClassMapping:
    """The classes of both releases under common numbers; the last number is that of no label."""

    slugs: tuple[str, ...]

    @classmethod
    def of(cls, old: Sequence[str], new: Sequence[str]) -> _ClassMapping:
        return cls(tuple(dict.fromkeys([*old, *new])))

    def probabilities(self, rows: pa.Table) -> np.ndarray:
        """float32 (N, C + 1); a class that a release has not got has probability 0 there."""
        p = np.zeros((rows.num_rows, len(self.slugs) + 1), dtype=np.float32)
        for number, slug in enumerate(self.slugs):
            if f"p_{slug}" in rows.column_names:
                p[:, number] = rows[f"p_{slug}"].to_numpy()
        p[:, -1] = rows["label_id"].to_numpy() < 0
        return p

    def labels(self, rows: pa.Table) -> np.ndarray:
        """Common number of each label, int64 (N,)."""
        own = [name.removeprefix("p_") for name in rows.column_names if name.startswith("p_")]
        numbers = np.array([*(self.slugs.index(slug) for slug in own), len(self.slugs)])
        return np.asarray(numbers[rows["label_id"].to_numpy()])  # -1 is the last one

    def label_names(self, labels: np.ndarray) -> pa.DictionaryArray:
        return _dictionary(labels, (*self.slugs, ""))


def _dictionary(codes: np.ndarray, values: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(list(values), pa.string()))


def _coded_schema() -> pa.Schema:
    coded = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([pa.field(f.name, coded if f.type == pa.string() else f.type) for f in CHANGES_SCHEMA])


# --- comparing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _AreaChanges:
    """Changes among the rows that both sides have, and the rows that only one side has."""

    changed: pa.Table
    left_old: pa.Table
    left_new: pa.Table


def _compare_area(old: ReleaseLayout, new: ReleaseLayout, area: _Area, classes: _ClassMapping) -> _AreaChanges:
    return _pair(_rows(old, area.old), _rows(new, area.new), classes)


def _rows(layout: ReleaseLayout, partitions: Sequence[Partition]) -> pa.Table:
    """The columns that are compared, of the rows of some partition files."""
    schema = pq.read_schema(layout.primary / "dataset" / "_common_metadata").remove_metadata()
    names = ["object_id", "label_id", "confidence", *_PREDICTED, *_FLAGGED, *_PLACED, *_READ, "model_id", "tile_id"]
    names += [name for name in schema.names if name.startswith("p_")]
    coded = pa.dictionary(pa.int32(), pa.string())
    wanted = pa.schema([pa.field(name, coded if name in _TEXTS else schema.field(name).type) for name in names])
    tables = []
    for partition in partitions:
        with pq.ParquetFile(
            layout.partition_file(partition.order, partition.pixel), read_dictionary=list(_TEXTS)
        ) as file:
            tables.append(file.read(names, use_threads=False).replace_schema_metadata(None).cast(wanted))
    return _concatenated(tables) if tables else wanted.empty_table()


def _concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _pair(old: pa.Table, new: pa.Table, classes: _ClassMapping) -> _AreaChanges:
    """Join rows by object id and compare the pairs."""
    ids, others = old["object_id"].to_numpy(), new["object_id"].to_numpy()
    order = np.argsort(others, kind="stable")
    at = np.searchsorted(others[order], ids)
    found = order[at.clip(max=max(len(others) - 1, 0))] if len(others) else np.zeros(len(ids), np.int64)
    both = (others[found] == ids) if len(others) else np.zeros(len(ids), bool)
    taken = np.zeros(len(others), dtype=bool)
    taken[found[both]] = True
    rows_old, rows_new = np.flatnonzero(both), found[both]
    changed = [_coded_schema().empty_table()]
    for start in range(0, len(rows_old), _SLICE):
        part = slice(start, start + _SLICE)
        changed.append(_changes(old.take(rows_old[part]), new.take(rows_new[part]), classes))
    return _AreaChanges(pa.concat_tables(changed), old.filter(pa.array(~both)), new.filter(pa.array(~taken)))


def _changes(old: pa.Table, new: pa.Table, classes: _ClassMapping) -> pa.Table:
    """The rows that differ, of two tables that hold the same objects in the same order."""
    p, q = classes.probabilities(old), classes.probabilities(new)
    before, after = classes.labels(old), classes.labels(new)
    flagged = _differ(old, new, _FLAGGED)
    of_kind = [
        before != after,
        (p != q).any(axis=1) | _differ(old, new, _PREDICTED),
        flagged,
        _differ(old, new, _PLACED),
        _differ(old, new, _READ),
    ]
    kind = np.select(of_kind, range(len(of_kind)), default=-1)
    rows = np.flatnonzero(kind >= 0)
    reason = _reasons(old, new, kind, (p[:, -1] != q[:, -1]) & flagged)
    return pa.table(
        {
            "object_id": new["object_id"].take(rows),
            "ra": new["ra"].take(rows),
            "dec": new["dec"].take(rows),
            "kind": _dictionary(kind[rows], KINDS),
            "reason": _dictionary(reason[rows], REASONS),
            "old_label": classes.label_names(before[rows]),
            "new_label": classes.label_names(after[rows]),
            "old_confidence": old["confidence"].take(rows),
            "new_confidence": new["confidence"].take(rows),
            "variation": np.minimum(np.abs(p[rows] - q[rows]).sum(axis=1) / 2, 1),  # above 1 by rounding alone
        },
        schema=_coded_schema(),
    )


def _differ(old: pa.Table, new: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Whether a column differs, bool (N,); NaN is equal to NaN."""
    different = np.zeros(old.num_rows, dtype=bool)
    for name in names:
        ours, theirs = (_values(table, name) for table in (old, new))
        nan = (ours != ours) & (theirs != theirs)
        different |= (ours != theirs) & ~nan
    return different


def _values(table: pa.Table, name: str) -> np.ndarray:
    column = table[name]
    return np.asarray((column.cast(pa.string()) if name in _TEXTS else column).to_numpy())


def _reasons(old: pa.Table, new: pa.Table, kind: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Number in `REASONS` for each pair, int64 (N,). `masked`: gained or lost its label, and has other flags."""
    pixels, model = _differ(old, new, ["input_digest"]), _differ(old, new, ["model_id"])
    bits = _values(old, "quality_flags") ^ _values(new, "quality_flags")
    predicted = (kind <= 1) & ~masked
    # Flags that a prediction sets can change although its rounded numbers stay the same.
    predicted |= (kind == 2) & ((bits & ~_OF_PREDICTION) == 0) & ~_differ(old, new, ["maskbits"])
    cases = {
        "pixels and model": predicted & pixels & model,
        "pixels": pixels,
        "model": predicted & model,
        "calibration": predicted,
        "mask": kind <= 2,
        "position": kind == 3,
    }
    numbers = [REASONS.index(name) for name in cases]
    return np.select(list(cases.values()), numbers, default=REASONS.index("input"))


# --- objects of one release only ------------------------------------------------------------------------------------


def _added_or_removed(kind: str, rows: pa.Table, classes: _ClassMapping, reasons: Sequence[str]) -> pa.Table:
    labels = classes.label_names(classes.labels(rows))
    none = classes.label_names(np.full(rows.num_rows, len(classes.slugs)))
    zero = np.zeros(rows.num_rows, dtype=np.float32)
    gone = kind == "gone"
    return pa.table(
        {
            "object_id": rows["object_id"],
            "ra": rows["ra"],
            "dec": rows["dec"],
            "kind": _dictionary(np.full(rows.num_rows, KINDS.index(kind)), KINDS),
            "reason": pa.array(reasons, pa.string()).dictionary_encode(),
            "old_label": labels if gone else none,
            "new_label": none if gone else labels,
            "old_confidence": rows["confidence"] if gone else zero,
            "new_confidence": zero if gone else rows["confidence"],
            "variation": np.full(rows.num_rows, np.nan, dtype=np.float32),
        },
        schema=_coded_schema(),
    )


def _tile_or_input(rows: pa.Table, other: ReleaseLayout) -> list[str]:
    known = set(pq.read_table(other.provenance / "tiles.parquet", columns=["tile_id"])["tile_id"].to_pylist())
    return ["input" if tile in known else "tile" for tile in rows["tile_id"].to_pylist()]


def _reasons_gone(rows: pa.Table, files: Sequence[Path], new: ReleaseLayout) -> list[str]:
    """`tile`, what the new quarantine says, or `input`. Source names are read, from `leaves`, only when they matter."""
    if rows.num_rows == 0:
        return []
    reasons = _tile_or_input(rows, new)
    entries = pq.read_table(new.provenance / "quarantine.parquet", columns=["source_name", "reason"]).to_pydict()
    refused = dict(zip(entries["source_name"], entries["reason"], strict=True))
    if not refused:
        return reasons
    names = _source_names(files, rows["object_id"])
    for number, object_id in enumerate(rows["object_id"].to_pylist()):
        why = refused.get(names.get(object_id, ""))
        if why is not None:
            reasons[number] = f"quarantine: {why}"
    return reasons


def _source_names(files: Sequence[Path], object_ids: pa.ChunkedArray) -> dict[int, str]:
    names: dict[int, str] = {}
    wanted = object_ids.combine_chunks()
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_SLICE, columns=["object_id", "source_name"]):
                found = batch.filter(pc.is_in(batch.column("object_id"), value_set=wanted))
                names.update(zip(*(column.to_pylist() for column in found.columns), strict=True))
    return names
