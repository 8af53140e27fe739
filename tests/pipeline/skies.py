"""Nights of simulated objects in chosen regions of the sky, and releases that hold the nights so far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalogs.healpix import cell_centres, healpix_29
from catalogs.paths import ReleaseLayout
from catalogs.releases.registry import ReleaseInfo
from catalogs.schema import QualityFlag
from tests.catalogs.conftest import make_table
from tests.catalogs.released import with_column
from tests.catalogs.small_release import write_release

ORDER = 2
_FRACTIONS = (0.5, 0.3, 0.2)


def night(
    run_id: str,
    cells: Sequence[int],
    seed: int,
    *,
    tiles: int = 6,
    objects: int = 60,
    alike: float = 0.0,
    noisy: Sequence[int] = (),
) -> pa.Table:
    """Tiles of objects in some cells of `ORDER`; in `noisy` ones their labels are drawn evenly, and they are unsure.

    `alike` is by how much the fractions of a tile scatter about those of the sky.
    """
    rng = np.random.default_rng(seed)
    cell = np.repeat(np.asarray(cells), tiles * objects)
    tile = np.repeat(np.arange(len(cells) * tiles), objects)
    count, bad = len(cell), np.isin(cell, list(noisy))
    fractions = np.array(_FRACTIONS) * np.exp(alike * rng.standard_normal((tile.max() + 1, 3)))
    fractions = np.where(bad[::objects, None], 1, fractions)
    edges = np.cumsum(fractions / fractions.sum(1, keepdims=True), axis=1)
    label = (rng.random(count)[:, None] > edges[tile]).sum(1).clip(max=2)
    novelty = rng.random(count) * np.where(bad, 1.5, 1.0)
    unclassified = rng.random(count) < 0.02
    flags = np.where(novelty > 0.97, int(QualityFlag.HIGH_OOD), 0) + (rng.random(count) < 0.1) * int(
        QualityFlag.BRIGHT_STAR
    )
    ra, dec = cell_centres(cell, ORDER)
    ra, dec = ra + rng.uniform(-3, 3, count), dec + rng.uniform(-3, 3, count)
    values: dict[str, Any] = {
        "run_id": [run_id] * count,
        "ra": ra,
        "dec": dec,
        "_healpix_29": healpix_29(ra, dec),
        "label_id": np.where(unclassified, -1, label).astype(np.int16),
        "confidence": np.where(unclassified, 0, rng.uniform(0.3, np.where(bad, 0.7, 1.0))).round(4).astype(np.float32),
        "ood_score": np.where(unclassified, -1, novelty.clip(max=1)).round(4).astype(np.float32),
        "quality_flags": (flags + unclassified * int(QualityFlag.UNCLASSIFIED)).astype(np.int32),
    }
    ids = int(run_id.rpartition("-")[2]) * 1_000_000 + np.arange(count)
    return with_column(make_table("", ids, **values), "tile_id", pa.array([f"{run_id}-{number}" for number in tile]))


def stamps_of(table: pa.Table, quarantined: int = 0) -> pa.Table:
    """The provenance table of tiles for some rows, each tile of a run, with so many inputs of each in quarantine."""
    rows = table.select(["tile_id", "run_id", "label_id"]).to_pandas()
    rows["labelled"] = rows["label_id"] >= 0
    counts = rows.groupby(["tile_id", "run_id"])["labelled"].agg(["sum", "size"]).astype(int).reset_index()
    return pa.table(
        {
            "tile_id": pa.array(counts["tile_id"], pa.string()),
            "run_id": pa.array(counts["run_id"], pa.string()),
            "classified": counts["sum"],
            "unclassified": counts["size"] - counts["sum"],
            "quarantined": np.full(len(counts), quarantined),
        }
    )


def release(
    catalog: Path, number: int, nights: Sequence[pa.Table], stamps: Sequence[pa.Table] | None = None, **info: Any
) -> ReleaseLayout:
    """The release that holds these nights; `stamps` are the tiles of each, `info` what it says of itself."""
    table = pa.concat_tables(nights)
    tiles = pa.concat_tables(stamps or [stamps_of(each) for each in nights])
    runs = sorted({*table["run_id"].to_pylist(), *tiles["run_id"].to_pylist()})
    layout = write_release(catalog, table, f"2026.11.{number}", tiles=tiles, runs=pa.table({"run_id": runs}))
    said = ReleaseInfo.model_validate_json(layout.info.read_bytes())
    layout.info.write_text(said.model_copy(update=info).model_dump_json())
    return layout
