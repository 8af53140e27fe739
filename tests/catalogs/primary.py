"""A small primary catalogue of chosen positions, cut into pixels of the orders that its rows ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.healpix import healpix_29
from catalogs.paths import Partition, ReleaseLayout
from catalogs.releases.hats_metadata import write_primary
from catalogs.releases.partitioning import adaptive_partitions, pixel_range
from tests.catalogs.conftest import make_table

METADATA = {b"kept": b"in every file"}


def primary_catalogue(root: Path, ra: np.ndarray, dec: np.ndarray, most_rows: int) -> ReleaseLayout:
    """Write a primary catalogue of objects 0, 1, ... at positions in degrees; at most `most_rows` in a pixel."""
    layout = ReleaseLayout(root)
    index = healpix_29(ra, dec)
    order = np.argsort(index, kind="stable")
    table = make_table("a-tile", range(len(ra)), ra=ra, dec=dec, _healpix_29=index).take(pa.array(order))
    table = table.replace_schema_metadata(METADATA)
    partitions = adaptive_partitions(index, most_rows)
    for part in partitions:
        first, last = np.searchsorted(index[order], pixel_range(part))
        path = layout.partition_file(part.order, part.pixel)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = table.slice(first, last - first).replace_schema_metadata({**METADATA, b"own": b"of one partition file"})
        pq.write_table(file, path, row_group_size=max(2, most_rows // 3))
    cells, counts = np.unique(index >> 38, return_counts=True)
    write_primary(
        layout, partitions, table.schema, cells, counts, title="test", description="simulated", max_rows=most_rows
    )
    return layout


def pixels_of(layout: ReleaseLayout, ra: np.ndarray, dec: np.ndarray) -> list[Partition]:
    """The partition that each position lies in."""
    partitions = layout.partitions()
    first = np.array([pixel_range(part)[0] for part in partitions])
    ascending = np.argsort(first)
    found = np.searchsorted(first[ascending], healpix_29(ra, dec), side="right") - 1
    return [partitions[ascending[i]] for i in found]
