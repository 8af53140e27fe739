"""Audit of the partition files of a release: schema, metadata, every row; one partition file at a time, batch by batch.

What many partition files have to say together (rows of a tile, ids of the index) is brought home as counts and sums.
Memory is bounded by the batches in work, one for each thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.healpix import ORDER
from catalogs.paths import Partition, ReleaseLayout
from catalogs.schema import arrow_schema
from catalogs.validation.findings import Findings
from catalogs.validation.rows import CODED, SUMMED, array, coded, outside, row_sums, wrong_rows

BATCH = 65_536
VO_KEYS = (b"IVOA.VOTable-Parquet.version", b"IVOA.VOTable-Parquet.content")
IDS_IN_MEMORY = 1 << 25  # of one pass over the object ids: 256 MB


@dataclass
class PartitionScan:
    """What a partition file holds. `tiles` and `index_sum` add up digests of rows modulo 2^64 (`rows.row_sums`).

    `tiles` : rows and sum of digests by tile id. `index_sum` : of the object ids. `readable` is False when rows could
    not be looked at; the other numbers then mean nothing.
    """

    partition: Partition
    findings: Findings = field(default_factory=Findings)
    readable: bool = False
    rows: int = 0
    classified: int = 0
    simulated: int = 0
    tiles: dict[str, tuple[int, int]] = field(default_factory=dict)
    index_sum: int = 0
    models: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    picked: list[pa.RecordBatch] = field(default_factory=list)


def scan_partition(
    layout: ReleaseLayout, partition: Partition, class_slugs: Sequence[str], wanted: np.ndarray
) -> PartitionScan:
    """Look at every row of a leaf.

    Parameters
    ----------
    wanted : int64 (M,) sorted; rows with these `_healpix_29` are kept whole in `picked`: copies of them are in margins.
    """
    scan = PartitionScan(partition)
    path = layout.partition_file(partition.order, partition.pixel)
    where = path.name if not path.is_relative_to(layout.root) else path.relative_to(layout.root).as_posix()
    try:
        with pq.ParquetFile(path, read_dictionary=list(CODED)) as file:
            _check_schema(pq.read_schema(path), class_slugs, where, scan.findings)
            scan.findings.expect("counts", where, "rows", file.metadata.num_rows, partition.rows)
            if "schema" not in scan.findings.counts:
                _scan_rows(file, scan, class_slugs, wanted, where)
                scan.readable = True
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        scan.findings.add("schema", f"{where}: cannot be read ({error})")
    return scan


def _check_schema(found: pa.Schema, class_slugs: Sequence[str], where: str, findings: Findings) -> None:
    wanted = arrow_schema(class_slugs)
    if not found.equals(wanted):
        missing = [name for name in wanted.names if name not in found.names]
        extra = [name for name in found.names if name not in wanted.names]
        other = [f for f in found if f.name in wanted.names and f != wanted.field(f.name)]
        differences = [f"no column {name}" for name in missing] + [f"unknown column {name}" for name in extra]
        differences += [f"{f.name} is {f.type}{'' if not f.nullable else ', nullable'}" for f in other]
        findings.add("schema", f"{where}: {'; '.join(differences[:3]) or 'columns in another order'}")
    metadata = found.metadata or {}
    for key in VO_KEYS:
        if not metadata.get(key):
            findings.add("metadata", f"{where}: no {key.decode()} in the footer")


def _scan_rows(
    file: pq.ParquetFile, scan: PartitionScan, class_slugs: Sequence[str], wanted: np.ndarray, where: str
) -> None:
    last = np.array([np.iinfo(np.int64).min])
    for batch in file.iter_batches(BATCH, use_threads=False):
        healpix = array(batch, "_healpix_29")
        before = np.concatenate([last, healpix])[: len(healpix)]
        last = healpix[-1:] if len(healpix) else last
        wrong = [
            ("order", "rows are not sorted by _healpix_29", healpix < before),
            (
                "order",
                "not in the pixel of its partition file",
                outside(healpix, scan.partition.order, scan.partition.pixel),
            ),
            *wrong_rows(batch, class_slugs),
        ]
        for check, what, rows in wrong:
            if rows.any():
                first = int(np.flatnonzero(rows)[0])
                example = f"{where}: {what}: {rows.sum()} rows, such as object {batch.column('object_id')[first]}"
                scan.findings.add(check, example, int(rows.sum()))
        _add_up(scan, batch)
        if len(wanted):
            at = np.searchsorted(wanted, healpix).clip(max=len(wanted) - 1)
            scan.picked.append(batch.filter(pa.array(wanted[at] == healpix)))


def _add_up(scan: PartitionScan, batch: pa.RecordBatch) -> None:
    scan.rows += batch.num_rows
    scan.classified += int((array(batch, "label_id") >= 0).sum())
    scan.index_sum = (scan.index_sum + int(row_sums([array(batch, "object_id")]).sum())) % 2**64
    for name, known in (("model_id", scan.models), ("run_id", scan.runs)):
        codes, values = coded(batch, name)
        known.update(values[code] for code in np.unique(codes))
    codes, layers = coded(batch, "survey_layer")
    scan.simulated += int(np.array([layer.startswith("simulated") for layer in layers], bool)[codes].sum())
    codes, tiles = coded(batch, "tile_id")
    counts, sums = sums_by(codes, len(tiles), row_sums([array(batch, name) for name in SUMMED]))
    for tile, count, total in zip(tiles, counts.tolist(), sums.tolist(), strict=True):
        if count:
            add_sum(scan.tiles, tile, count, total)


def sums_by(codes: np.ndarray, groups: int, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and sum of digests, modulo 2^64, of each group: int64 and uint64 (groups,)."""
    sums = np.zeros(groups, dtype=np.uint64)
    np.add.at(sums, codes, digests)
    return np.bincount(codes, minlength=groups), sums


def add_sum(totals: dict[str, tuple[int, int]], key: str, count: int, total: int) -> None:
    """Add rows and a sum of digests to those of a key."""
    before = totals.get(key, (0, 0))
    totals[key] = (before[0] + count, (before[1] + total) % 2**64)


def repeated_ids(layout: ReleaseLayout, partitions: Sequence[Partition]) -> tuple[int, list[int]]:
    """How many object ids of the readable partition files have more than one row, and some of them.

    Ids are dealt out by a digest into as many passes as keep `IDS_IN_MEMORY` of them in memory at a time.
    """
    passes = -(-sum(partition.rows for partition in partitions) // IDS_IN_MEMORY)
    count, some = 0, list[int]()
    for number in range(passes):
        parts = [ids if passes == 1 else _dealt(ids, passes, number) for ids in _ids(layout, partitions)]
        ids = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
        repeated = np.unique(ids[1:][ids[1:] == ids[:-1]])
        count += len(repeated)
        some += repeated[: 5 - len(some)].tolist()
    return count, some


def _dealt(ids: np.ndarray, passes: int, number: int) -> np.ndarray:
    return ids[row_sums([ids]) % np.uint64(passes) == number]


def _ids(layout: ReleaseLayout, partitions: Sequence[Partition]) -> Iterator[np.ndarray]:
    for partition in partitions:
        yield (
            pq.ParquetFile(layout.partition_file(partition.order, partition.pixel))
            .read(["object_id"])["object_id"]
            .to_numpy()
        )


def total_tiles(scans: Sequence[PartitionScan]) -> dict[str, tuple[int, int]]:
    """Rows and sums of digests by tile id, over all partition files."""
    totals: dict[str, tuple[int, int]] = {}
    for scan in scans:
        for tile, (count, total) in scan.tiles.items():
            add_sum(totals, tile, count, total)
    return totals


def partition_of(partitions: Sequence[Partition], healpix: np.ndarray) -> np.ndarray:
    """Number of the partition that holds each HEALPix index of order 29, int64 (N,); -1 where none does."""
    if not partitions:
        return np.full(len(healpix), -1)
    starts = np.array([p.pixel << 2 * (ORDER - p.order) for p in partitions], dtype=np.int64)
    ends = np.array([(p.pixel + 1) << 2 * (ORDER - p.order) for p in partitions], dtype=np.int64)
    by_start = np.argsort(starts)
    at = np.searchsorted(starts[by_start], healpix, side="right") - 1
    found = by_start[at.clip(min=0)]
    return np.where((at >= 0) & (healpix < ends[found]), found, -1)
