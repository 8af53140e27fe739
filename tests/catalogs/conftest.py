"""A catalogue in a few lines: tiles with exact columns, committed where a test wants them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalogs.healpix import healpix_29
from catalogs.schema import QualityFlag, arrow_schema, certainty_columns, is_reliable, label_columns
from catalogs.tiles import QuarantineEntry, TileMetadata, commit

SLUGS = ["round", "spiral", "edge_on"]
MODEL = "tiny-0001"


def make_table(
    tile_id: str, ids: Sequence[int], *, unclassified: Sequence[int] = (), layer: str = "ls-dr10-grz", **values: Any
) -> pa.Table:
    """Rows of the objects `ids`, whose position and probabilities follow from the id; `values` replace columns."""
    number = np.asarray(ids, dtype=np.int64)
    ra, dec = (number * 37.0) % 360, (number * 13.0) % 120 - 60
    classified = ~np.isin(number, list(unclassified))
    weights = np.stack([1 + (number * (3 + k)) % 7 for k in range(len(SLUGS))], axis=1).astype(np.float32) ** 2
    labels = label_columns(weights / weights.sum(1, keepdims=True), classified, SLUGS)
    sets = weights / weights.sum(1, keepdims=True) > 0.3
    certainty = certainty_columns(sets, np.zeros(len(number)), number % 97 / 97, 1, classified)
    flags = np.where(classified, 0, int(QualityFlag.UNCLASSIFIED))
    count = len(number)
    columns: dict[str, Any] = {
        "_healpix_29": healpix_29(ra, dec),
        "object_id": number,
        "source_name": [f"{tile_id}#{i}" for i in ids],
        "ra": ra,
        "dec": dec,
        "release": np.full(count, -1, np.int16),
        "brickid": np.full(count, -1, np.int32),
        "objid": np.full(count, -1, np.int32),
        "tile_id": [tile_id] * count,
        **labels,
        **certainty,
        "quality_flags": flags.astype(np.int32),
        "is_reliable": is_reliable(labels["confidence"], flags),
        "bad_pixel_fraction": np.zeros(count, np.float32),
        "maskbits": np.full(count, -1, np.int32),
        "pixscale": np.full(count, 0.262, np.float32),
        "mag_r": np.full(count, np.nan, np.float32),
        "survey_layer": [layer] * count,
        "model_id": [MODEL] * count,
        "run_id": ["run-1"] * count,
        "input_digest": number,
        "mjd_predicted": np.full(count, 61000.5),
        **values,
    }
    return pa.table(columns, schema=arrow_schema(SLUGS))


def make_stamp(
    tile_id: str, classified: int, unclassified: int = 0, quarantined: int = 0, **values: Any
) -> TileMetadata:
    usual: dict[str, Any] = {
        "tile_id": tile_id,
        "source": f"sky/{tile_id}",
        "fingerprint": "f" * 16,
        "model_id": MODEL,
        "recipe_digest": "r" * 16,
        "run_id": "run-1",
        "class_slugs": SLUGS,
        "classified": classified,
        "unclassified": unclassified,
        "quarantine": [
            QuarantineEntry(
                file=f"/sky/{tile_id}/{i}.fits", source_name=f"{tile_id}/{i}", reason="no_wcs", detail="no WCS"
            )
            for i in range(quarantined)
        ],
    }
    return TileMetadata(**{**usual, **values})


def quarantine_entry(name: str, reason: str = "no_wcs", **values: object) -> QuarantineEntry:
    return QuarantineEntry.model_validate(
        {
            "file": f"/sky/{name}",
            "source_name": f"sky/{name}",
            "reason": reason,
            "detail": f"{name}: {reason}",
            **values,
        }
    )


def commit_tile(
    catalog: Path,
    tile_id: str,
    ids: Sequence[int],
    *,
    unclassified: Sequence[int] = (),
    quarantined: int = 0,
    layer: str = "ls-dr10-grz",
    **stamp: Any,
) -> Path:
    table = make_table(tile_id, ids, unclassified=unclassified, layer=layer)
    without = len(set(unclassified) & set(ids))
    return commit(catalog, table, make_stamp(tile_id, len(ids) - without, without, quarantined, **stamp))


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Two tiles: four objects, one without a label; five objects and two inputs in quarantine."""
    root = tmp_path / "catalog"
    commit_tile(root, "b-tile", [11, 12, 13, 14], unclassified=[12])
    commit_tile(root, "a-tile", [21, 22, 23, 24, 25], quarantined=2)
    return root


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """All files under a folder with their bytes."""
    return lambda root: {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
