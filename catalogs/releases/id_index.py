"""Where each object id is: the index of a release from object ids to pixels, as a HATS index catalogue.

Sorted by object id over all its parts, so that a look-up reads one row group. Knows the layout of a release and the
column object_id, nothing of positions or labels.
"""

from __future__ import annotations

import shutil
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.atomic import atomic_write, fsync
from catalogs.errors import CatalogError
from catalogs.paths import INDEX_NAME, NAME, Partition, ReleaseLayout

COLUMN = "object_id"
PART_ROWS = 4_000_000  # a part is sorted in memory, at about 100 bytes a row
SAMPLE = 1_000  # of so many ids one is drawn
_ROW_GROUP = 65_536
_SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in ((COLUMN, pa.int64()), ("Norder", pa.int32()), ("Dir", pa.int64()), ("Npix", pa.int64()))
    ]
)


def write_id_index(
    layout: ReleaseLayout, partitions: Sequence[Partition], *, part_rows: int = PART_ROWS, sample: int = SAMPLE
) -> None:
    """Write the index of the primary catalogue: a folder that is there whole or not at all; it replaces an older one.

    A part holds a range of ids, `part_rows` of them or nearly: the ranges are quantiles of every `sample`-th id. For
    each part the ids of all partition files are read again, so that memory is bounded by the size of a part. The
    primary catalogue must be complete: provenance is taken over from its properties.

    Raises
    ------
    CatalogError : the partition files hold another number of rows than the partitions say.
    """
    with atomic_write(layout.index) as beside:
        dataset = beside / "dataset"
        (dataset / "index").mkdir(parents=True)
        footers = []
        divisions = _divisions(layout, partitions, part_rows, sample)
        for number in range(len(divisions) + 1):
            ids, where = _part(layout, partitions, divisions, number)
            if len(ids):
                path = dataset / "index" / f"part.{number:05d}.parquet"
                footers.append(_write_part(ids, where, partitions, path))
                footers[-1].set_file_path(str(path.relative_to(dataset)))
        total, expected = sum(footer.num_rows for footer in footers), sum(part.rows for part in partitions)
        if total != expected:
            raise CatalogError(
                f"{layout.primary}: {total} rows in its partition files, {expected} in partition_info.csv"
            )
        pq.write_metadata(_SCHEMA, dataset / "_common_metadata")
        pq.write_metadata(_SCHEMA, dataset / "_metadata", metadata_collector=footers)
        _write_properties(layout, beside, total)
        if layout.index.exists():
            shutil.rmtree(layout.index)


def find(layout: ReleaseLayout, object_id: int) -> tuple[int, int] | None:
    """The pixel (order, pixel) of the primary catalogue that holds an object; None if no pixel does. Milliseconds.

    Raises
    ------
    CatalogError : the release has no id index.
    """
    folder = layout.index / "dataset" / "index"
    if not folder.is_dir():
        raise CatalogError(f"{layout.index}: the release has no id index; build it again")
    parts = sorted(folder.glob("part.*.parquet"))
    number = bisect_left(parts, object_id, key=_last_id)
    if number == len(parts):
        return None
    with pq.ParquetFile(parts[number]) as file:
        groups = range(file.num_row_groups)
        group = bisect_left(groups, object_id, key=lambda g: file.metadata.row_group(g).column(0).statistics.max)
        rows = file.read_row_group(group, use_threads=False)
    at = int(np.searchsorted(rows[COLUMN].to_numpy(), object_id))
    row = rows.slice(at, 1).to_pylist()[0]
    return (row["Norder"], row["Npix"]) if row[COLUMN] == object_id else None


def _last_id(part: Path) -> int:
    footer = pq.read_metadata(part)
    return int(footer.row_group(footer.num_row_groups - 1).column(0).statistics.max)


def _divisions(layout: ReleaseLayout, partitions: Sequence[Partition], part_rows: int, sample: int) -> np.ndarray:
    """Ids at which parts after the first begin, ascending int64 (K,): quantiles of a sample of all ids."""
    count = -(-sum(part.rows for part in partitions) // part_rows)
    if count <= 1:
        return np.empty(0, np.int64)
    drawn = np.sort(np.concatenate([ids[::sample] for ids in _ids(layout, partitions)]))
    return np.unique(drawn[len(drawn) * np.arange(1, count) // count])


def _part(
    layout: ReleaseLayout, partitions: Sequence[Partition], divisions: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a part, ascending int64 (N,), and the numbers of their partitions, int32 (N,)."""
    found, where = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for position, ids in enumerate(_ids(layout, partitions)):
        mine = ids[np.searchsorted(divisions, ids, side="right") == number] if len(divisions) else ids
        found.append(mine)
        where.append(np.full(len(mine), position, np.int32))
    all_ids = np.concatenate(found)
    ascending = np.argsort(all_ids, kind="stable")
    return all_ids[ascending], np.concatenate(where)[ascending]


def _ids(layout: ReleaseLayout, partitions: Sequence[Partition]) -> Iterator[np.ndarray]:
    """The object ids int64 (N,) of each partition file, in the order of the partitions."""
    for part in partitions:
        with pq.ParquetFile(layout.partition_file(part.order, part.pixel)) as file:
            yield file.read([COLUMN], use_threads=False)[COLUMN].to_numpy()


def _write_part(ids: np.ndarray, where: np.ndarray, partitions: Sequence[Partition], path: Path) -> pq.FileMetaData:
    orders = np.array([part.order for part in partitions], np.int32)[where]
    pixels = np.array([part.pixel for part in partitions], np.int64)[where]
    table = pa.table([ids, orders, pixels // 10_000 * 10_000, pixels], schema=_SCHEMA)
    pq.write_table(
        table,
        path,
        compression="zstd",
        row_group_size=_ROW_GROUP,
        use_dictionary=["Norder", "Dir", "Npix"],
        column_encoding={COLUMN: "DELTA_BINARY_PACKED"},
        sorting_columns=[pq.SortingColumn(0)],
    )
    fsync(path)
    return pq.read_metadata(path)


def _write_properties(layout: ReleaseLayout, folder: Path, rows: int) -> None:
    from hats.catalog.dataset.table_properties import TableProperties  # takes a second to import

    primary = TableProperties.read_from_dir(layout.primary)
    TableProperties(
        catalog_name=INDEX_NAME,
        catalog_type="index",
        total_rows=rows,
        primary_catalog=NAME,
        indexing_column=COLUMN,
        **primary.provenance_dict(by_alias=True),
    ).to_properties_file(folder)
