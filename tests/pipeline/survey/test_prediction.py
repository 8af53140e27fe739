"""Predictions of the commit before: found by object and pixels, given back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from catalogs.schema import CERTAINTY_FLAGS, QualityFlag
from catalogs.tiles import commit, read_tile_metadata
from pipeline.survey.prediction import PreviousPredictions
from tests.catalogs.conftest import MODEL, commit_tile, make_stamp, make_table

RECIPE = "r" * 16
IDS = [14, 11, 13, 12]


@pytest.fixture
def tile(tmp_path: Path) -> Path:
    """Four objects in no order of their ids, whose digest is ten times the id; number 12 has no label."""
    flags = np.array([1, 2, 4, 8], np.int32) | int(QualityFlag.HIGH_OOD | QualityFlag.RESAMPLED)
    table = make_table("t", IDS, unclassified=[12], input_digest=np.array(IDS) * 10, quality_flags=flags)
    return commit(tmp_path, table, make_stamp("t", 3, 1))


def test_an_object_is_found_by_its_id_and_its_pixels(tile: Path) -> None:
    found = PreviousPredictions.from_tile(tile, MODEL, RECIPE)
    assert found is not None
    ids, digests = np.array([11, 99, 14, 13, 12, -5]), np.array([110, 990, 140, 131, 120, -50])
    rows = found.lookup(ids, digests)
    assert rows.dtype == np.int64 and (rows >= 0).tolist() == [True, False, True, False, False, False]
    assert found.object_ids[rows[[0, 2]]].tolist() == [11, 14]
    assert found.lookup(ids[:0], digests[:0]).shape == (0,)


def test_a_prediction_comes_back_as_it_was(tile: Path) -> None:
    found = PreviousPredictions.from_tile(tile, MODEL, RECIPE)
    assert found is not None
    before = pq.read_table(tile).to_pandas().set_index("object_id")
    kept = found.take(found.lookup(np.array([14, 11]), np.array([140, 110])))
    of_the_reader = {"_healpix_29", "source_name", "ra", "dec", "release", "brickid", "objid", "tile_id", "model_id"}
    of_the_reader |= {"is_reliable", "bad_pixel_fraction", "maskbits", "pixscale", "mag_r", "survey_layer"}
    assert set(kept) == set(before) - of_the_reader - {"input_digest"}
    for name, values in kept.items():
        expected = before.loc[[14, 11], name].to_numpy()
        if name == "quality_flags":
            expected = expected & int(CERTAINTY_FLAGS)
            assert expected.tolist() == [int(QualityFlag.HIGH_OOD)] * 2
        assert values.dtype == expected.dtype and (values == expected).all(), name


def test_nothing_is_taken_from_another_model_recipe_or_catalogue(tile: Path, tmp_path: Path) -> None:
    assert PreviousPredictions.from_tile(tile, "other", RECIPE) is None
    assert PreviousPredictions.from_tile(tile, MODEL, "x" * 16) is None
    assert PreviousPredictions.from_tile(tmp_path / "none.parquet", MODEL, RECIPE) is None
    table = pq.read_table(tile)
    older = tmp_path / "older.parquet"
    pq.write_table(table.drop_columns(["maskbits"]), older)
    assert PreviousPredictions.from_tile(older, MODEL, RECIPE) is None
    data = bytearray(tile.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[4:footer] = b"\xff" * (footer - 4)
    tile.write_bytes(data)
    assert read_tile_metadata(tile) is not None
    assert PreviousPredictions.from_tile(tile, MODEL, RECIPE) is None


def test_a_tile_without_labels_gives_nothing(tmp_path: Path) -> None:
    found = PreviousPredictions.from_tile(commit_tile(tmp_path, "u", [1, 2], unclassified=[1, 2]), MODEL, RECIPE)
    assert found is not None and found.lookup(np.array([1, 2]), np.array([1, 2])).tolist() == [-1, -1]
