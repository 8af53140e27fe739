"""The id index: every id is found in its pixel, in one part or in many, and hats reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from catalogs.errors import CatalogError
from catalogs.paths import Partition, ReleaseLayout
from catalogs.releases.id_index import find, write_id_index
from tests.catalogs.primary import pixels_of, primary_catalogue

COUNT = 400


@pytest.fixture(scope="module")
def positions() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.uniform(0, 360, COUNT), rng.uniform(-80, 80, COUNT)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, positions: tuple[np.ndarray, np.ndarray]) -> ReleaseLayout:
    return primary_catalogue(tmp_path_factory.mktemp("release"), *positions, most_rows=40)


def parts_of(layout: ReleaseLayout) -> list[Path]:
    return sorted((layout.index / "dataset" / "index").iterdir())


@pytest.mark.parametrize("part_rows", [1_000, 100, 70])
def test_every_id_is_found_in_its_pixel(layout, positions, part_rows):
    write_id_index(layout, layout.partitions(), part_rows=part_rows, sample=3)
    owners = pixels_of(layout, *positions)
    assert [find(layout, i) for i in range(COUNT)] == [(p.order, p.pixel) for p in owners]
    assert [find(layout, i) for i in (-1, COUNT, 2**62, -(2**63), 2**63 - 1)] == [None] * 5
    ids = np.concatenate([pq.read_table(path)["object_id"].to_numpy() for path in parts_of(layout)])
    assert ids.tolist() == list(range(COUNT))
    sizes = [pq.read_metadata(path).num_rows for path in parts_of(layout)]
    assert len(sizes) == -(-COUNT // part_rows) and max(sizes) < 1.3 * part_rows


def test_hats_finds_the_pixels_of_ids(layout, positions):
    from hats import read_hats

    write_id_index(layout, layout.partitions(), part_rows=150, sample=3)
    owners = pixels_of(layout, *positions)
    index = read_hats(layout.index)
    assert index.catalog_info.indexing_column == "object_id" and index.catalog_info.total_rows == COUNT
    found = {(p.order, p.pixel) for p in index.loc_partitions([0, 170, 399, 5_000])}
    assert found == {(owners[i].order, owners[i].pixel) for i in (0, 170, 399)}


def test_rows_that_are_missing_are_noticed_and_the_old_index_stays(layout):
    write_id_index(layout, layout.partitions())
    first, *others = layout.partitions()
    with pytest.raises(CatalogError, match="400 rows in its partition files, 401 in"):
        write_id_index(layout, [Partition(first.order, first.pixel, first.rows + 1), *others])
    assert find(layout, 0) is not None
    assert [path.name for path in layout.collection.iterdir() if path.name.startswith(".")] == []


def test_a_release_without_index_says_so(tmp_path):
    with pytest.raises(CatalogError, match="no id index"):
        find(ReleaseLayout(tmp_path), 1)
