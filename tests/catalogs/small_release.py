"""A published release in a few lines, written by pyarrow alone: what readers need of one, without what builds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.paths import Partition, ReleaseLayout
from catalogs.releases.registry import ReleaseInfo
from tests.catalogs.conftest import MODEL, SLUGS


def write_release(
    catalog: Path, table: pa.Table, name: str = "2026.11.0", *, order: int = 1, **sidecars: pa.Table
) -> ReleaseLayout:
    """A release of these rows, which readers see from now on.

    Pixels of `order` are partition files, but those of the first base pixel, which are one partition file of order 0.
    """
    layout = ReleaseLayout(catalog / "releases" / name)
    table = table.sort_by("_healpix_29")
    index = table["_healpix_29"].to_numpy()
    orders = np.where(index >> 58 == 0, 0, order)
    pixels = index >> 2 * (29 - orders)
    partitions = []
    for level, pixel in sorted(set(zip(orders.tolist(), pixels.tolist(), strict=True))):
        rows = table.filter(pa.array((orders == level) & (pixels == pixel)))
        layout.partition_file(level, pixel).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, layout.partition_file(level, pixel), row_group_size=64)
        partitions.append(Partition(level, pixel, rows.num_rows))
    _write_index(layout, table, orders, pixels)
    (layout.primary / "dataset").mkdir(parents=True, exist_ok=True)
    pq.write_metadata(table.schema, layout.primary / "dataset" / "_common_metadata")
    lines = [f"{p.order},{p.pixel},{p.rows}" for p in partitions]
    (layout.primary / "partition_info.csv").write_text("\n".join(["Norder,Npix,num_rows", *lines]))
    layout.provenance.mkdir()
    for sidecar, rows in sidecars.items():
        pq.write_table(rows, layout.provenance / f"{sidecar}.parquet")
    info = ReleaseInfo(
        release=name,
        created="2026-11-20T00:00:00+00:00",
        model_id=MODEL,
        content=name,
        tiles=1,
        objects=table.num_rows,
        classified=table.num_rows,
        unclassified=0,
        quarantined=0,
        duplicates=0,
        simulated_objects=0,
        class_slugs=SLUGS,
    )
    layout.info.write_text(info.model_dump_json())
    (catalog / "CURRENT").write_text(name + "\n")
    return layout


def _write_index(layout: ReleaseLayout, table: pa.Table, orders: np.ndarray, pixels: np.ndarray) -> None:
    folder = layout.index / "dataset" / "index"
    folder.mkdir(parents=True)
    index = pa.table({"object_id": table["object_id"], "Norder": orders.astype(np.int32), "Npix": pixels})
    if index.num_rows:
        pq.write_table(index.sort_by("object_id"), folder / "part.00000.parquet", row_group_size=64)
