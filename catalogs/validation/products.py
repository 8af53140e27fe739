"""Audit of what hangs on the primary catalogue: counts in its properties, margin cache, id index, export.

Rows of the partition files were checked before (`partitions`); here they are compared with their copies elsewhere.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalogs.paths import Partition, ReleaseLayout, partition_path
from catalogs.releases.registry import ReleaseInfo
from catalogs.schema import arrow_schema
from catalogs.validation.findings import Findings
from catalogs.validation.partitions import BATCH, PartitionScan, add_sum, partition_of, sums_by
from catalogs.validation.rows import array, outside, row_sums


def check_counts(layout: ReleaseLayout, info: ReleaseInfo, partitions: Sequence[Partition], findings: Findings) -> None:
    """Rows by release.json, partition_info.csv, hats.properties, _metadata and export; files on disk; overlaps."""
    findings.expect("counts", "partition_info.csv", "rows", sum(p.rows for p in partitions), info.objects)
    findings.expect("counts", "hats.properties", "hats_nrows", stated_rows(layout.primary), info.objects)
    listed = {partition_path(Path(), p.order, p.pixel).as_posix() for p in partitions}
    there = {p.relative_to(layout.primary).as_posix() for p in (layout.primary / "dataset").rglob("*.parquet")}
    for name in sorted(there - listed):
        findings.add("counts", f"{name}: a partition file that partition_info.csv does not know")
    findings.expect("counts", "partition_info.csv", "pixels", len(listed), len(partitions))
    firsts = np.array([p.pixel << 2 * (29 - p.order) for p in partitions], dtype=np.int64)
    if len(partitions) and not np.array_equal(partition_of(partitions, firsts), np.arange(len(partitions))):
        findings.add("counts", "partition_info.csv: pixels overlap")
    files = [layout.primary / "dataset" / "_metadata"]
    files += [path for path in [layout.export / "morphology.parquet"] if path.exists()]
    for path in files:
        found = _rows_of_footer(path, findings)
        if found is not None:
            findings.expect("counts", path.relative_to(layout.root).as_posix(), "rows", found, info.objects)


def check_common_schema(layout: ReleaseLayout, class_slugs: Sequence[str], findings: Findings) -> None:
    """The schema that readers take for that of all partition files."""
    path = layout.primary / "dataset" / "_common_metadata"
    try:
        if not pq.read_schema(path).equals(arrow_schema(class_slugs)):
            findings.add("schema", "_common_metadata: its columns are not those of the contract")
    except (OSError, pa.ArrowException) as error:
        findings.add("schema", f"_common_metadata: cannot be read ({error})")


def stated_rows(catalogue: Path) -> int | None:
    """`hats_nrows` of the hats.properties of a HATS catalogue; None if it says nothing."""
    try:
        lines = (catalogue / "hats.properties").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = [value.strip() for key, _, value in (line.partition("=") for line in lines) if key.strip() == "hats_nrows"]
    return int(found[0]) if len(found) == 1 and found[0].isdecimal() else None


def _rows_of_footer(path: Path, findings: Findings) -> int | None:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:
        findings.add("counts", f"{path.name}: cannot be read ({error})")
        return None


# --- margin cache ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Margin:
    """All rows of the margin cache, and for each the number of the primary partition that holds it (−1: none)."""

    rows: pa.Table
    owner: np.ndarray

    def wanted(self, number: int) -> np.ndarray:
        """`_healpix_29`, int64 (M,) ascending, of the rows that a primary partition holds."""
        return np.unique(self.rows["_healpix_29"].to_numpy()[self.owner == number])


def read_margin(
    layout: ReleaseLayout, partitions: Sequence[Partition], class_slugs: Sequence[str], findings: Findings
) -> Margin | None:
    """The rows of the margin cache, a thousandth of a catalogue; None when there is none, or it cannot be read."""
    if not layout.margin.is_dir():
        return None
    tables, total = [arrow_schema(class_slugs).empty_table()], 0
    try:
        with (layout.margin / "partition_info.csv").open(newline="") as file:
            pixels = [(int(r["Norder"]), int(r["Npix"]), int(r["num_rows"])) for r in csv.DictReader(file)]
        for order, pixel, rows in pixels:
            table = pq.ParquetFile(partition_path(layout.margin, order, pixel)).read().replace_schema_metadata(None)
            name = f"margin Norder={order} Npix={pixel}"
            findings.expect("margin", name, "rows", table.num_rows, rows)
            total += rows
            if table.schema != tables[0].schema:
                findings.add("margin", f"{name}: its columns are not those of the contract")
                return None
            inside = ~outside(table["_healpix_29"].to_numpy(), order, pixel)
            if inside.any():
                findings.add("margin", f"{name}: {inside.sum()} rows lie in the pixel itself", int(inside.sum()))
            tables.append(table)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:  # KeyError, ValueError: of partition_info.csv
        findings.add("margin", f"{layout.margin.name}: cannot be read ({error})")
        return None
    findings.expect("margin", layout.margin.name, "hats_nrows", stated_rows(layout.margin), total)
    merged = pa.concat_tables(tables)
    return Margin(merged, partition_of(partitions, merged["_healpix_29"].to_numpy()))


def check_margin(margin: Margin, scans: Sequence[PartitionScan], findings: Findings) -> None:
    """Every row of the margin is in the primary catalogue, value for value."""
    for number in np.unique(margin.owner).tolist():
        rows = margin.rows.filter(pa.array(margin.owner == number))
        if number < 0:
            findings.add("margin", f"{_some(rows)}: in no pixel of the primary catalogue", rows.num_rows)
        elif scans[number].readable:
            wrong = rows.filter(pa.array(_not_copies(rows, scans[number].picked)))
            if wrong.num_rows:
                findings.add("margin", f"{_some(wrong)}: not as in the primary catalogue", wrong.num_rows)


def _not_copies(rows: pa.Table, picked: Sequence[pa.RecordBatch]) -> np.ndarray:
    """Which rows have no equal row among those picked from the partition file: bool (N,)."""
    primary = pa.Table.from_batches(picked).cast(rows.schema).sort_by("object_id")
    ids, known = rows["object_id"].to_numpy(), primary["object_id"].to_numpy()
    if not len(known):
        return np.ones(len(ids), dtype=bool)
    at = np.searchsorted(known, ids).clip(max=len(known) - 1)
    wrong = known[at] != ids
    for ours, theirs in zip(rows.columns, primary.take(pa.array(at)).columns, strict=True):
        if pa.types.is_floating(ours.type):  # NaN is equal to NaN here
            wrong |= ~np.isclose(ours.to_numpy(), theirs.to_numpy(), rtol=0, atol=0, equal_nan=True)
        else:
            wrong |= pc.not_equal(ours, theirs).to_numpy()
    return np.asarray(wrong)


def _some(rows: pa.Table) -> str:
    return f"{rows.num_rows} rows, such as object {rows['object_id'][0]}"


# --- id index -------------------------------------------------------------------------------------------------------


def check_index(layout: ReleaseLayout, scans: Sequence[PartitionScan], findings: Findings) -> None:
    """The index names every object once, sorted by id, with the pixel that holds it: by counts and sums of digests."""
    totals: dict[str, tuple[int, int]] = {}
    last = np.array([np.iinfo(np.int64).min])
    try:
        for path in sorted((layout.index / "dataset" / "index").glob("*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=["object_id", "Norder", "Dir", "Npix"]):
                last = _add_index(batch, last, totals, findings)
    except (OSError, KeyError, pa.ArrowException) as error:
        findings.add("index", f"{layout.index.name}: cannot be read ({error})")
        return
    total = sum(rows for rows, _ in totals.values())
    findings.expect("index", layout.index.name, "hats_nrows", stated_rows(layout.index), total)
    wanted = {f"{s.partition.order}/{s.partition.pixel}": (s.rows, s.index_sum) for s in scans if s.readable}
    unread = {f"{s.partition.order}/{s.partition.pixel}" for s in scans if not s.readable}
    for key in sorted((totals.keys() | wanted.keys()) - unread):
        (rows, digest), (held, expected) = totals.get(key, (0, 0)), wanted.get(key, (0, 0))
        if (rows, digest) != (held, expected):
            same = f", but other ids than the {held} there" if rows == held else f", {held} are there"
            findings.add("index", f"pixel {key} (order/number): {rows} ids{same}")


def _add_index(
    batch: pa.RecordBatch, last: np.ndarray, totals: dict[str, tuple[int, int]], findings: Findings
) -> np.ndarray:
    ids, orders, pixels = (array(batch, name) for name in ("object_id", "Norder", "Npix"))
    if not len(ids):
        return last
    unsorted = int((ids < np.concatenate([last, ids])[: len(ids)]).sum())
    if unsorted:
        findings.add("index", f"ids are not sorted, near {ids[0]}", unsorted)
    folders = int((array(batch, "Dir") != pixels // 10_000 * 10_000).sum())
    if folders:
        findings.add("index", f"Dir is not that of Npix, near id {ids[0]}", folders)
    keys, codes = np.unique(orders.astype(np.int64) << 58 | pixels, return_inverse=True)  # pixels: below 2^58
    counts, sums = sums_by(codes, len(keys), row_sums([ids]))
    for key, count, digest in zip(keys.tolist(), counts.tolist(), sums.tolist(), strict=True):
        add_sum(totals, f"{key >> 58}/{key & (1 << 58) - 1}", count, digest)
    return ids[-1:]
