"""Stamps that reach beyond their brick: completed from the neighbours that are there, else flagged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from catalogs.schema import QualityFlag
from pipeline.readers.stamps import Stamp
from pipeline.tiles.brick_grid import brick_of, centre, neighbours
from tests.pipeline.brick_makers import (
    BLOCK,
    BRICK,
    SIDE,
    STAMP,
    WHOLE,
    coadd,
    cut,
    mosaic,
    outcome,
    plane_path,
    reading,
    rows,
    tangent_plane,
    tractor_path,
    write_brick,
    write_plane,
    write_rows,
)

EDGE = int(QualityFlag.EDGE_OR_OFF_FOOTPRINT)
AT = {  # places of the mosaic in the first brick of the block: in its middle, at its edges to the others, in its corner
    "middle": (100.3, 100.2),
    "west": (195.2, 90.3),
    "north": (90.3, 197.4),
    "corner": (196.6, 195.3),
    "outer corner": (5.2, 8.3),
}
COLUMN, ROW = np.array(list(AT.values())).T


def pixels(found: dict[str, Stamp], name: str) -> np.ndarray:
    return found[str(list(AT).index(name))].pixels


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two by two bricks in the layout of the surveys, every other one compressed, with objects in the first."""
    root = tmp_path_factory.mktemp("block") / "south"
    for i, brick in enumerate(BLOCK):
        write_brick(coadd(root, brick), brick, packed="lossless" if i % 2 else "")
    write_rows(tractor_path(root / "tractor" / BRICK[:3]), rows(COLUMN, ROW))
    return root


@pytest.fixture
def own_block(block: Path, tmp_path: Path) -> Path:
    """A copy of the block that a test may change."""
    return Path(shutil.copytree(block, tmp_path / "south"))


def flat(block: Path, root: Path, *, together: bool) -> Path:
    """The files of the block in one folder, or each brick in a folder beside the others; returns the first brick's."""
    for brick in BLOCK:
        folder = root / ("all" if together else brick)
        folder.mkdir(parents=True, exist_ok=True)
        for path in coadd(block, brick).iterdir():
            shutil.copy(path, folder / path.name)
    home = root / ("all" if together else BRICK)
    shutil.copy(tractor_path(block / "tractor" / BRICK[:3]), home)
    return home


@pytest.mark.parametrize("layout", ["of the survey", "one folder a brick", "one folder"])
def test_stamps_across_edges_are_those_of_the_mosaic_bit_by_bit(block: Path, tmp_path: Path, layout: str) -> None:
    home = coadd(block, BRICK)
    if layout != "of the survey":
        home = flat(block, tmp_path, together=layout == "one folder")
    found = outcome(home)
    assert found.refused == {} and found.remarks == []
    for name, (column, row) in AT.items():
        if name != "outer corner":
            np.testing.assert_array_equal(pixels(found.stamps, name), cut(mosaic(), column, row), err_msg=name)
    flags = [found.stamps[str(i)].quality for i in range(len(AT))]
    assert flags[:4] == [0, 0, 0, 0] and flags[4] & EDGE


def test_every_brick_of_the_block_gives_the_same_pixels_of_the_place_where_all_meet(
    block: Path, tmp_path: Path
) -> None:
    column, row = 170.3, 168.4
    for brick in BLOCK:
        home = coadd(tmp_path, brick)
        for other in BLOCK:
            shutil.copytree(coadd(block, other), coadd(tmp_path, other), dirs_exist_ok=True)
        write_rows(tractor_path(home, brick), rows([column], [row]))
        np.testing.assert_array_equal(outcome(home, brick).only.pixels, cut(mosaic(), column, row), err_msg=brick)


def test_without_neighbours_the_part_beyond_is_blank_and_flagged(block: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(coadd(block, BRICK), tmp_path / "alone"))
    write_rows(tractor_path(home), rows(COLUMN, ROW))
    alone = outcome(home).stamps
    padded = np.pad(mosaic()[:, :SIDE, :SIDE], ((0, 0), (STAMP, STAMP), (STAMP, STAMP)))
    for i, (name, (column, row)) in enumerate(AT.items()):
        expected = cut(padded, column + STAMP, row + STAMP)
        np.testing.assert_array_equal(alone[str(i)].pixels, expected, err_msg=name)
        centre_blank = (expected[0, 16:48, 16:48] == 0).mean() > 0.5
        nothing = int(QualityFlag.MISSING_BAND | QualityFlag.UNCLASSIFIED) if centre_blank else 0
        assert alone[str(i)].quality == (0 if name == "middle" else EDGE | nothing), name
        assert centre_blank == (name == "corner"), name
        assert alone[str(i)].bad_pixel_fraction == pytest.approx((expected == 0).mean()), name


def test_edges_are_left_alone_when_the_settings_say_so(block: Path) -> None:
    found = outcome(coadd(block, BRICK), settings=reading(complete_edges=False)).stamps
    np.testing.assert_array_equal(pixels(found, "middle"), cut(mosaic(), *AT["middle"]))
    corner = pixels(found, "corner")
    assert not corner[:, :, 40:].any() and not corner[:, 40:].any()
    np.testing.assert_array_equal(corner[:, :30, :30], cut(mosaic(), *AT["corner"])[:, :30, :30])


def test_one_neighbour_of_three_completes_its_part(own_block: Path) -> None:
    for brick in ("1498p000", "1498p002"):
        shutil.rmtree(coadd(own_block, brick))
    found = outcome(coadd(own_block, BRICK))
    np.testing.assert_array_equal(pixels(found.stamps, "north"), cut(mosaic(), *AT["north"]))
    corner, expected = pixels(found.stamps, "corner"), cut(mosaic(), *AT["corner"])
    inside = SIDE - int(np.floor(AT["corner"][0] - STAMP / 2 + 1))
    np.testing.assert_array_equal(corner[:, :, :inside], expected[:, :, :inside])
    assert not corner[:, :, inside:].any()


@pytest.mark.parametrize("damage", ["cut short", "another brick", "no fits", "no wcs", "other sides"])
def test_a_damaged_neighbour_costs_a_remark_and_nothing_else(own_block: Path, damage: str) -> None:
    whole = outcome(coadd(own_block, BRICK)).stamps
    other, place = "1498p000", coadd(own_block, "1498p000")
    path = next(path for path in place.iterdir() if "-image-r" in path.name)
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "no fits":
        path.write_bytes(b"<html>not found</html>")
    else:
        path.unlink()
        sky, header = mosaic()[:, :SIDE, WHOLE - SIDE :], tangent_plane(x0=WHOLE - SIDE)
        if damage == "other sides":
            sky = sky[:, :3, :3]
        if damage == "no wcs":
            header = fits.Header()
        write_brick(place, other, sky, header, bands="r", BRICKNAM="0001p000" if damage == "another brick" else other)
    found = outcome(coadd(own_block, BRICK))
    assert set(found.stamps) == set(whole) and found.refused == {}
    for name in ("middle", "north"):
        np.testing.assert_array_equal(pixels(found.stamps, name), pixels(whole, name))
    west = pixels(found.stamps, "west")
    np.testing.assert_array_equal(west[[0, 2]], pixels(whole, "west")[[0, 2]])
    assert (west[1] == 0).sum() > 1000
    if damage == "other sides":
        assert found.remarks == []  # it is a good file, only small
    else:
        (remark,) = found.remarks
        assert f"not completed from brick {other}" in remark and path.name.removesuffix(".fz") in remark


def test_a_neighbour_without_a_band_completes_the_others(own_block: Path) -> None:
    for brick in BLOCK:
        if brick != BRICK:
            next(path for path in coadd(own_block, brick).iterdir() if "-image-z" in path.name).unlink()
    found = outcome(coadd(own_block, BRICK))
    west, expected = pixels(found.stamps, "west"), cut(mosaic(), *AT["west"])
    np.testing.assert_array_equal(west[:2], expected[:2])
    assert not west[2, :, 40:].any() and found.remarks == []


def test_nothing_that_is_not_finite_comes_from_a_neighbour(own_block: Path) -> None:
    sky = mosaic()[:, :SIDE, WHOLE - SIDE :].copy()
    sky[:, :, 70:75] = np.array([np.nan, np.inf, -np.inf])[:, None, None]
    for path in coadd(own_block, "1498p000").iterdir():
        path.unlink()
    write_brick(coadd(own_block, "1498p000"), "1498p000", sky, tangent_plane(x0=WHOLE - SIDE))
    west = pixels(outcome(coadd(own_block, BRICK)).stamps, "west")
    assert np.isfinite(west).all()
    first = int(np.floor(AT["west"][0] - STAMP / 2 + 1))
    assert not west[:, :, WHOLE - SIDE + 70 - first : WHOLE - SIDE + 75 - first].any()


# Neighbours as in the survey, each with its own tangent point. Coarse pixels make small bricks of a quarter degree.

COARSE = 5.2  # arcsec
WIDE = 200  # px: 0.289 degrees


def analytic_sky(ra: np.ndarray, dec: np.ndarray, around: tuple[float, float]) -> np.ndarray:
    """A smooth simulated sky by position: waves of an arcmin, 11 px, between 0.2 and 1 nanomaggy; float32."""
    east = (ra - around[0]) * np.cos(np.radians(around[1])) * 60  # arcmin
    north = (dec - around[1]) * 60
    wave = np.sin(2 * np.pi * (east + 0.3 * north) / 0.95) * np.cos(2 * np.pi * (north - 0.2 * east) / 1.1)
    return (0.6 + 0.4 * wave).astype(np.float32)


def own_plane(brick: str) -> fits.Header:
    return tangent_plane(*centre(brick), side=WIDE, pixscale=COARSE)


def sky_of(brick: str, around: str) -> np.ndarray:
    row, column = np.mgrid[:WIDE, :WIDE]
    ra, dec = WCS(own_plane(brick), naxis=2).all_pix2world(column.ravel(), row.ravel(), 0)
    return analytic_sky(ra, dec, centre(around)).reshape(WIDE, WIDE)


@pytest.mark.parametrize("brick", ["1498p000", "0959p805", brick_of(359.99, -61.0)])
def test_margins_from_rotated_neighbours_agree_with_the_sky(tmp_path: Path, brick: str) -> None:
    """At declination 80 neighbours are turned against each other by 1.5 degrees."""
    for name in (brick, *neighbours(brick)):
        write_brick(coadd(tmp_path, name), name, np.stack([sky_of(name, brick)] * 3), own_plane(name))
    column, row = np.array([[4.2, 100.3], [100.3, 4.2], [195.3, 100.2], [100.3, 196.3], [195.3, 195.2]]).T
    write_rows(tractor_path(coadd(tmp_path, brick), brick), rows(column, row, own_plane(brick)))
    found = outcome(coadd(tmp_path, brick), brick)
    assert len(found.stamps) == 5 and found.remarks == []
    grid_row, grid_column = np.mgrid[:STAMP, :STAMP]
    for i, stamp in enumerate(found.stamps.values()):
        x0, y0 = (int(np.floor(at - STAMP / 2 + 1)) for at in (column[i], row[i]))
        ra, dec = WCS(own_plane(brick), naxis=2).all_pix2world(grid_column.ravel() + x0, grid_row.ravel() + y0, 0)
        expected = analytic_sky(ra, dec, centre(brick)).reshape(STAMP, STAMP)
        assert np.abs(stamp.pixels - expected).max() < 0.01, i  # of a peak of 1
        assert stamp.quality & EDGE == 0


def test_what_is_blank_in_a_rotated_neighbour_stays_blank(tmp_path: Path) -> None:
    brick, east = "0959p805", next(name for name in neighbours("0959p805") if name.endswith("p805") and name > "0959")
    sky = sky_of(east, brick)
    sky[:, WIDE - 42 :] = 0  # its western part, within the brick and just beyond
    write_brick(coadd(tmp_path, brick), brick, np.stack([sky_of(brick, brick)] * 3), own_plane(brick))
    write_brick(coadd(tmp_path, east), east, np.stack([sky] * 3), own_plane(east))
    write_rows(tractor_path(coadd(tmp_path, brick), brick), rows([4.3], [100.2], own_plane(brick)))
    stamp = outcome(coadd(tmp_path, brick), brick).only
    beyond = stamp.pixels[:, :, : STAMP // 2 - 5]
    lit = beyond[beyond != 0]
    assert stamp.quality & EDGE
    assert 0.1 < len(lit) / beyond.size < 0.9 and lit.min() > 0.1 and lit.max() < 1.2  # little ringing at the border


def test_planes_beside_the_images_end_where_the_brick_ends(own_block: Path) -> None:
    """Masks are not completed: at the edge they count as far as they are known."""
    bits = np.zeros((SIDE, SIDE), np.int16)
    bits[195:, 195:] = 1 << 12
    write_plane(plane_path(coadd(own_block, BRICK), BRICK, "maskbits"), bits)
    found = outcome(coadd(own_block, BRICK)).stamps
    assert [found[str(i)].maskbits for i in range(len(AT))] == [0, 0, 0, 1 << 12, 0]
