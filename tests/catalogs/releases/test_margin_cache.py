"""Margins against a calculation of its own, by distances to the drawn border of each pixel; then with hats and lsdb."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import Angle
from cdshealpix.nested import vertices
from scipy.spatial import cKDTree

from catalogs.errors import CatalogError
from catalogs.healpix import close_pairs
from catalogs.paths import MARGIN_ARCSEC, Partition, ReleaseLayout, partition_path
from catalogs.releases.hats_metadata import write_collection
from catalogs.releases.id_index import write_id_index
from catalogs.releases.margin_cache import SLACK_ARCSEC, finish_margin, write_margin_file
from tests.catalogs.primary import METADATA, pixels_of, primary_catalogue

ARCSEC = np.radians(1 / 3600)
# The poles, ra 0 = 360 within a base pixel, where three base pixels meet, and a place like any other.
PLACES = ((10.0, 90.0), (200.0, -90.0), (0.0, 0.3), (0.0, np.degrees(np.arcsin(2 / 3))), (123.4, 33.3))


def unit(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    lon, lat = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def scattered(seed: int, count: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions around each of PLACES, dense in the middle; `spread` in arcsec."""
    rng = np.random.default_rng(seed)
    xyz = np.concatenate(
        [
            unit(*np.array(place)) + rng.normal(size=(count, 3)) * spread * ARCSEC * rng.uniform(0.1, 1, (count, 1))
            for place in PLACES
        ]
    )
    ra = np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0])) % 360
    return ra, np.degrees(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1])))


def border_distance(ra: np.ndarray, dec: np.ndarray, part: Partition) -> np.ndarray:
    """Arcsec from positions to the border of a pixel, which is drawn as straight pieces of at most about 26 arcsec."""
    step = max(64, 2 ** (13 - part.order))  # near a pole borders are curved, about as much as pixels are wide
    lon, lat = vertices(np.array([part.pixel], np.uint64), part.order, step=step)
    ends = unit(Angle(lon).deg[0], Angle(lat).deg[0])
    _, near = cKDTree(ends).query(unit(ra, dec), k=4)
    piece = np.concatenate([near - 1, near], axis=1)
    start, line = ends[piece], ends[(piece + 1) % len(ends)] - ends[piece]
    away = unit(ra, dec)[:, None] - start
    along = np.clip((away * line).sum(-1) / (line**2).sum(-1), 0, 1)
    return np.linalg.norm(away - along[..., None] * line, axis=-1).min(axis=1) / ARCSEC


def with_margin(layout: ReleaseLayout) -> dict[tuple[int, int], int]:
    partitions = layout.partitions()
    rows = {(p.order, p.pixel): write_margin_file(layout, partitions, p.order, p.pixel) for p in partitions}
    finish_margin(layout, rows)
    return rows


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReleaseLayout, np.ndarray, np.ndarray]:
    """A small collection with margin and index, and the positions of its objects 0, 1, ..."""
    ra, dec = scattered(seed=5, count=90, spread=60)
    layout = primary_catalogue(tmp_path_factory.mktemp("release"), ra, dec, most_rows=40)
    with_margin(layout)
    write_id_index(layout, layout.partitions())
    write_collection(layout)
    return layout, ra, dec


def test_the_margin_of_every_pixel_is_what_lies_within_ten_arcsec_of_it(sky):
    layout, ra, dec = sky
    owners = pixels_of(layout, ra, dec)
    partitions = layout.partitions()
    assert {p.order for p in partitions} >= {1, 9, 11, 12}  # neighbours of different orders
    wanted_anywhere = 0
    for part in partitions:
        path = partition_path(layout.margin, part.order, part.pixel)
        table = pq.read_table(path, partitioning=None) if path.exists() else None
        found = set(table["object_id"].to_pylist()) if table is not None else set()
        assert table is None or table.num_rows == len(found) > 0
        others = np.array([owner != part for owner in owners])
        distance = border_distance(ra, dec, part)
        wanted = set(np.flatnonzero(others & (distance <= MARGIN_ARCSEC)).tolist())
        allowed = set(np.flatnonzero(others & (distance <= MARGIN_ARCSEC + SLACK_ARCSEC + 0.01)).tolist())
        assert wanted <= found <= allowed, part
        wanted_anywhere += len(wanted)
    assert wanted_anywhere > 100


def test_margin_leaves_are_like_primary_leaves(sky):
    layout, _, _ = sky
    primary = pq.read_schema(layout.primary / "dataset" / "_common_metadata")
    files = sorted((layout.margin / "dataset").rglob("*.parquet"))
    assert files
    for path in files:
        table = pq.read_table(path, partitioning=None)
        assert table.schema.equals(primary) and table.schema.metadata == METADATA
        assert (np.diff(table["_healpix_29"].to_numpy()) >= 0).all()
    assert pq.read_schema(layout.margin / "dataset" / "_common_metadata").equals(primary, check_metadata=True)


def test_a_pixel_without_neighbours_has_no_margin_and_an_old_one_is_removed(tmp_path):
    layout = primary_catalogue(tmp_path, np.array([10.0, 200.0]), np.array([20.0, -30.0]), most_rows=1)
    part = layout.partitions()[0]
    old = partition_path(layout.margin, part.order, part.pixel)
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    assert set(with_margin(layout).values()) == {0} and not old.exists()
    assert (layout.margin / "partition_info.csv").read_text().split() == ["Norder,Npix,num_rows"]


def test_pixels_smaller_than_the_margin_are_refused(tmp_path):
    with pytest.raises(CatalogError, match="order 13 are too small"):
        write_margin_file(ReleaseLayout(tmp_path), [Partition(13, 5, 1)], 13, 5)


def test_rows_that_got_lost_are_noticed(sky, tmp_path):
    layout, _, _ = sky
    path = sorted((layout.margin / "dataset").rglob("*.parquet"))[0]
    order, pixel = int(path.parts[-3].split("=")[1]), int(path.stem.split("=")[1])
    with pytest.raises(CatalogError, match="build the release again"):
        finish_margin(layout, {(order, pixel): pq.read_metadata(path).num_rows + 1})


def test_hats_finds_the_collection_strictly_valid(sky):
    from hats import read_hats
    from hats.io.validation import is_valid_collection

    layout, _, _ = sky
    assert is_valid_collection(layout.collection, strict=True)
    margin = read_hats(layout.margin)
    rows = sum(pq.read_metadata(path).num_rows for path in (layout.margin / "dataset").rglob("*.parquet"))
    assert margin.catalog_info.margin_threshold == MARGIN_ARCSEC
    assert margin.catalog_info.total_rows == rows > 0


@pytest.mark.slow
def test_lsdb_crossmatches_across_borders_and_searches_ids(sky):
    import lsdb

    layout, ra, dec = sky
    catalogue = lsdb.open_catalog(layout.collection)
    pairs = catalogue.crossmatch(catalogue, radius_arcsec=9, n_neighbors=400, suffixes=("_a", "_b")).compute()
    found = {(a, b) for a, b in zip(pairs["object_id_a"], pairs["object_id_b"], strict=True) if a < b}
    wanted = {(min(a, b), max(a, b)) for a, b in close_pairs(ra, dec, 9).tolist()}
    owners = pixels_of(layout, ra, dec)
    assert found == wanted
    assert sum(owners[a] != owners[b] for a, b in wanted) > 100

    some = catalogue.id_search(values={"object_id": [3, 200]})
    assert {(p.order, p.pixel) for p in some.get_healpix_pixels()} == {
        (owners[i].order, owners[i].pixel) for i in (3, 200)
    }
    assert sorted(some.compute()["object_id"]) == [3, 200]
