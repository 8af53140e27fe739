"""A small release with everything that an audit looks at, and ways to damage a copy of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.healpix import healpix_29
from catalogs.paths import Partition, ReleaseLayout
from catalogs.releases.build import publish
from catalogs.releases.registry import layout_of
from catalogs.schema import count_classified
from catalogs.tiles import commit
from tests.catalogs.conftest import MODEL, make_stamp, make_table

Change = Callable[[pa.Table], pa.Table]


def commit_rows(catalog: Path, table: pa.Table, **stamp: Any) -> Path:
    """Commit a table of one tile, whose counts follow from it."""
    tile_id, classified = table["tile_id"][0].as_py(), count_classified(table)
    return commit(catalog, table, make_stamp(tile_id, classified, table.num_rows - classified, **stamp))


def make_release(catalog: Path, max_rows: int = 10) -> ReleaseLayout:
    """Publish three tiles with objects of two tiles, without a label, in quarantine, set aside, beside a border."""
    around = np.array([44.999, 45.001, 45.001, 44.999, 134.999])  # four base pixels meet at 45°, 0°
    dec = np.array([0.0, 0.0, 0.0015, 0.0015, 0.0])
    ids = [101, 102, 103, 104, 105]
    border = make_table("c-tile", ids, ra=around, dec=dec, _healpix_29=healpix_29(around, dec))
    commit_rows(catalog, make_table("a-tile", range(1, 21), unclassified=[12]), found=24, set_aside={"too_faint": 4})
    commit_rows(catalog, make_table("b-tile", [*range(18, 30)]), quarantined=2)
    commit_rows(catalog, border)
    return published(catalog, max_rows)


def published(catalog: Path, max_rows: int = 10) -> ReleaseLayout:
    """Publish what is committed."""
    info = publish(catalog, MODEL, max_rows=max_rows, exports=False)
    assert info is not None
    return layout_of(catalog, info.release)


def a_leaf(layout: ReleaseLayout) -> Path:
    """The partition file with the most rows."""
    largest = max(layout.partitions(), key=lambda partition: partition.rows)
    assert largest.rows > 2
    return layout.partition_file(largest.order, largest.pixel)


def rewrite(path: Path, change: Change) -> None:
    """Change the rows of a Parquet file and leave its metadata as they are."""
    table = pq.ParquetFile(path).read()
    changed = change(table)
    path.unlink()  # it may have links elsewhere
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path, compression="zstd")


def with_value(name: str, value: Any, row: int = 0) -> Change:
    """Put a value into one row of a column."""

    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        return with_column(table, name, pa.array(values, table.schema.field(name).type))

    return change


def with_column(table: pa.Table, name: str, values: pa.Array, nullable: bool = False) -> pa.Table:
    """Replace a column; its type may be another one."""
    at = table.schema.get_field_index(name)
    return table.set_column(at, pa.field(name, values.type, nullable=nullable), values)


def all_rows(layout: ReleaseLayout) -> pa.Table:
    """Every row of a release."""
    files = [layout.partition_file(p.order, p.pixel) for p in layout.partitions()]
    return pa.concat_tables([pq.ParquetFile(file).read().replace_schema_metadata(None) for file in files])


def pixels(layout: ReleaseLayout) -> list[Partition]:
    """The partitions with more than one row."""
    return [partition for partition in layout.partitions() if partition.rows > 1]
