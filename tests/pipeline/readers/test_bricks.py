"""Bricks: where the object is in its stamp, what the planes and the row say of it, and what becomes of damage."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.table import Table
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs.schema import QualityFlag
from catalogs.tiles import QuarantineEntry
from pipeline.config.inputs import InputSettings, ReadingSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.ingest.discovery import brick_tile
from pipeline.readers.bricks.positions import read_list, write_prepared
from pipeline.readers.bricks.reader import read_brick
from pipeline.readers.stamps import Stamp, TileNote
from tests.pipeline.brick_makers import (
    BRICK,
    PIXSCALE,
    READING,
    SIDE,
    STAMP,
    coadd,
    cut,
    mosaic,
    on_sky_at,
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

MIDDLE = 100.2  # a place in the brick, column and row
UNUSABLE = int(QualityFlag.MISSING_BAND | QualityFlag.UNCLASSIFIED)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of one brick, nothing else."""
    return write_brick(tmp_path_factory.mktemp("images") / BRICK)


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """A brick with one galaxy in its middle, which a test may change."""
    home = Path(shutil.copytree(images, tmp_path / BRICK))
    write_rows(tractor_path(home), rows([MIDDLE], [MIDDLE]))
    return home


def aside(folder: Path, product: str, pixels: np.ndarray, band: str = "") -> Path:
    return write_plane(plane_path(folder, BRICK, product, band), pixels)


def test_a_stamp_carries_what_the_row_says(folder: Path) -> None:
    stamp = outcome(folder).only
    np.testing.assert_array_equal(stamp.pixels, cut(mosaic(), MIDDLE, MIDDLE))
    assert stamp.pixels.dtype == np.float32 and stamp.pixels.dtype.isnative
    ra, dec = on_sky_at(MIDDLE, MIDDLE)
    assert (stamp.ra, stamp.dec) == pytest.approx((float(ra), float(dec)), abs=1e-12)
    assert stamp.source_name == f"{BRICK}/{BRICK}#0" and stamp.rendering == ""
    assert stamp.object_id == (9010 << 42) + (1000 << 22)
    assert stamp.mag_r == pytest.approx(22.5 - 2.5 * np.log10(100 / np.float32(0.9)))
    assert (stamp.quality, stamp.bad_pixel_fraction, stamp.maskbits, stamp.psfsize) == (0, 0, 0, 1.25)
    assert stamp.pixscale == pytest.approx(PIXSCALE) and stamp.survey_layer == "ls-dr9-south-grz"


def test_rice_compressed_images_are_read_as_astropy_reads_them(tmp_path: Path) -> None:
    write_brick(tmp_path / BRICK, packed="rice")
    write_rows(tractor_path(tmp_path / BRICK), rows([MIDDLE], [MIDDLE]))
    pixels = outcome(tmp_path / BRICK).only.pixels
    y0 = int(np.floor(MIDDLE - STAMP / 2 + 1))
    for plane, band in zip(pixels, "grz", strict=True):
        whole = fits.getdata(plane_path(tmp_path / BRICK, BRICK, "image", band, ".fits.fz"), 1)
        np.testing.assert_array_equal(plane, whole[y0 : y0 + STAMP, y0 : y0 + STAMP])
    assert not (pixels == cut(mosaic(), MIDDLE, MIDDLE)).all()


@pytest.mark.parametrize("large", [False, True])
def test_the_object_is_in_the_middle_of_its_stamp(tmp_path: Path, large: bool) -> None:
    """Pixels that hold their own column (g) and row (r): their mean over a stamp is where its middle is."""
    places = np.random.default_rng(5).uniform(66, 134, (2, 40))
    header = tangent_plane(150.0, 60.0, side=SIDE)
    ra, dec = on_sky_at(*places, header)
    row, column = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 1
    write_brick(tmp_path / BRICK, BRICK, np.stack([column, row, row]), header)
    write_rows(tractor_path(tmp_path / BRICK), rows(*places, header))
    found = outcome(tmp_path / BRICK, settings=reading(large_radius=1.0 if large else 0)).stamps
    middles = np.array([stamp.pixels[:2].mean(axis=(1, 2), dtype=float) - 1 for stamp in found.values()]).T
    offsets = middles - WCS(header).all_world2pix(ra, dec, 0)
    assert 0.4 < np.abs(offsets).max() <= 0.5 + 1e-6
    assert np.abs(offsets.mean(axis=1)).max() < 0.15  # no shift to one side
    assert all(stamp.pixels.shape == (3, STAMP, STAMP) for stamp in found.values())


def test_a_large_galaxy_is_averaged_two_by_two(folder: Path) -> None:
    """As the viewer's images at 0.524 arcsec: surface brightness stays; a blank pixel makes its mean blank."""
    path = plane_path(folder, BRICK, "image", "g")
    sky = mosaic()[0, :SIDE, :SIDE].copy()
    sky[90, 80] = 0
    header = tangent_plane()
    header["BRICKNAM"] = BRICK
    write_plane(path, sky, header)
    write_rows(tractor_path(folder), rows([MIDDLE] * 2, [MIDDLE] * 2, shape_r=[10.0, 9.9]))
    large, small = outcome(folder, settings=reading(large_radius=10.0)).stamps.values()
    assert large.pixscale == pytest.approx(0.524) and small.pixscale == pytest.approx(0.262)
    whole = np.stack([sky, *mosaic()[1:, :SIDE, :SIDE]])
    first = int(np.floor(MIDDLE - (2 * STAMP - 1) / 2 + 0.5))
    window = whole[:, first : first + 2 * STAMP, first : first + 2 * STAMP].astype(float)
    mean = (window[:, ::2, ::2] + window[:, 1::2, ::2] + window[:, ::2, 1::2] + window[:, 1::2, 1::2]) / 4
    blank = ((90 - first) // 2, (80 - first) // 2)
    mean[0][blank] = 0
    np.testing.assert_allclose(large.pixels, mean, atol=1e-8)
    assert large.pixels[0][blank] == 0
    np.testing.assert_array_equal(small.pixels, cut(whole, MIDDLE, MIDDLE))


# What the planes beside the images say.


@pytest.mark.parametrize(
    ("bit", "flag"),
    [
        (0, 0),
        (1, QualityFlag.BRIGHT_STAR),
        (2, QualityFlag.SATURATED),
        (4, QualityFlag.SATURATED),
        (12, QualityFlag.LARGE_GALAXY_MASK),
        (13, QualityFlag.CLUSTER_MASK),
    ],
)
def test_masks_count_within_the_aperture_only(folder: Path, bit: int, flag: int) -> None:
    """The aperture reaches 5 arcsec, 19 pixels, from the object."""
    for distance, inside in ((19.5, False), (18.5, True)):
        bits = np.zeros((SIDE, SIDE), np.int16)
        row, column = np.mgrid[:SIDE, :SIDE] - MIDDLE
        far = np.hypot(row, column)
        ring = (far > distance - 0.4) & (far < distance + 0.4) if inside else far > distance + 0.8
        bits[ring] = 1 << bit
        aside(folder, "maskbits", bits)
        stamp = outcome(folder).only
        assert (stamp.maskbits, stamp.quality) == ((1 << bit, int(flag)) if inside else (0, 0)), distance


def test_the_mask_bits_of_the_row_count_where_there_is_no_plane(folder: Path) -> None:
    write_rows(tractor_path(folder), rows([MIDDLE], [MIDDLE], maskbits=np.array([1 << 13 | 1 << 5], "i2")))
    stamp = outcome(folder).only
    assert stamp.maskbits == 1 << 13 | 1 << 5 and stamp.quality == QualityFlag.CLUSTER_MASK
    aside(folder, "maskbits", np.zeros((SIDE, SIDE), np.int16))
    assert outcome(folder).only.maskbits == 0
    write_rows(tractor_path(folder), rows([MIDDLE], [MIDDLE], maskbits=None))
    plane_path(folder, BRICK, "maskbits").unlink()
    assert outcome(folder).only.maskbits == -1


def test_which_bits_mean_what_is_a_setting(folder: Path) -> None:
    aside(folder, "maskbits", np.full((SIDE, SIDE), 1 << 11, np.int16))
    assert outcome(folder).only.quality == 0
    other = ReadingSettings(input=InputSettings(bright_star_bits=(1, 11)), bricks=READING.bricks)
    assert outcome(folder, settings=other).only.quality == QualityFlag.BRIGHT_STAR


@pytest.mark.parametrize(
    ("exposures", "changed", "low"), [(2, {}, False), (1, {}, True), (0, {}, True), (1, {"least_exposures": 1}, False)]
)
def test_few_exposures_in_a_band_are_low_depth(
    folder: Path, exposures: int, changed: dict[str, Any], low: bool
) -> None:
    for band in "grz":
        few = np.full((SIDE, SIDE), 5, np.int16)
        few[80:120, 80:120] = exposures if band == "z" else 5
        aside(folder, "nexp", few, band)
    assert outcome(folder, settings=reading(**changed)).only.quality == (QualityFlag.LOW_DEPTH if low else 0)


@pytest.mark.parametrize(("magnitude", "low"), [(23.3, True), (23.5, False), (-np.inf, True), (np.nan, False)])
def test_a_shallow_band_is_low_depth(folder: Path, magnitude: float, low: bool) -> None:
    inverse = 25 * 10 ** (0.8 * (magnitude - 22.5)) if np.isfinite(magnitude) else 0.0 if magnitude < 0 else np.nan
    write_rows(tractor_path(folder), rows([MIDDLE], [MIDDLE], psfdepth_r=np.array([inverse])))
    assert outcome(folder).only.quality == (QualityFlag.LOW_DEPTH if low else 0)


def test_the_depth_of_a_band_that_is_not_there_does_not_count(folder: Path) -> None:
    write_rows(tractor_path(folder), rows([MIDDLE], [MIDDLE], psfdepth_z=np.array([0.0])))
    assert outcome(folder).only.quality == QualityFlag.LOW_DEPTH
    plane_path(folder, BRICK, "image", "z").unlink()
    assert outcome(folder).only.quality == QualityFlag.MISSING_BAND


def test_the_seeing_comes_from_the_row_else_from_the_plane(folder: Path) -> None:
    seeing = np.full((SIDE, SIDE), 9.0, np.float32)
    seeing[80:120, 80:120] = 1.5
    aside(folder, "psfsize", seeing, "r")
    assert outcome(folder).only.psfsize == 1.25
    write_rows(tractor_path(folder), rows([MIDDLE], [MIDDLE], psfsize_r=np.array([0.0])))
    assert outcome(folder).only.psfsize == 1.5
    aside(folder, "psfsize", np.zeros((SIDE, SIDE), np.float32), "r")
    assert np.isnan(outcome(folder).only.psfsize)


def test_pixels_without_weight_are_bad_pixels(folder: Path) -> None:
    sky = mosaic()[:, :SIDE, :SIDE].copy()
    sky[0, 100:110, 100:110] = 0  # blank, and without weight as well: counted once
    write_brick(folder, BRICK, sky, tangent_plane())
    for band, weightless in zip("grz", (20, 10, 0), strict=True):
        invvar = np.ones((SIDE, SIDE), np.float32)
        invvar[100 : 100 + weightless, 100:110] = 0
        invvar[:20] = 0  # outside of the stamp
        aside(folder, "invvar", invvar, band)
    stamp = outcome(folder).only
    assert stamp.bad_pixel_fraction == pytest.approx((20 * 10 + 10 * 10) / (3 * STAMP**2))


# Names of layers.


@pytest.mark.parametrize(
    ("release", "changed", "cards", "layer"),
    [
        (9011, {}, {}, "ls-dr9-north-grz"),
        (10000, {}, {"DRVERSIO": 6000}, "ls-dr10-south-grz"),
        (7000, {}, {}, "ls-dr7-grz"),
        (None, {}, {"DRVERSIO": 6000}, "ls-dr6-grz"),
        (None, {"release": 11000, "release_layers": {"11000": "ls-dr11-south"}}, {}, "ls-dr11-south-grz"),
        (None, {}, {}, "ls-unknown-grz"),
        (9010, {"layer": "ls-dr11-north"}, {}, "ls-dr11-north-grz"),
        (9010, {"layer": "ls-dr11-north"}, {"SIMULATD": True}, "simulated-grz"),
    ],
)
def test_layer_by_settings_row_and_header(
    tmp_path: Path, release: int | None, changed: dict[str, Any], cards: dict[str, Any], layer: str
) -> None:
    write_brick(tmp_path / BRICK, **cards)
    released = None if release is None else np.array([release], "i4")
    write_rows(tractor_path(tmp_path / BRICK), rows([MIDDLE], [MIDDLE], release=released))
    stamp = outcome(tmp_path / BRICK, settings=reading(**changed)).only
    assert stamp.survey_layer == layer
    assert stamp.survey_keys[0] == (release or changed.get("release", -1))


def test_the_image_may_be_named_by_its_hdu(folder: Path) -> None:
    for band in "grz":
        path = plane_path(folder, BRICK, "image", band)
        with fits.open(path) as hdus:
            pixels, header = hdus[0].data.copy(), hdus[0].header.copy()
        decoy, image = fits.ImageHDU(pixels * 0 + 7, header, name="MODEL"), fits.ImageHDU(pixels, header, name="COADD")
        fits.HDUList([fits.PrimaryHDU(), decoy, image]).writeto(path, overwrite=True)
    assert (outcome(folder).only.pixels == 7).all()
    for hdu in ("coadd", "2"):
        stamp = outcome(folder, settings=reading(image_hdu=hdu)).only
        np.testing.assert_array_equal(stamp.pixels, cut(mosaic(), MIDDLE, MIDDLE))


# Damage.


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60_000])


def other_shape(path: Path) -> None:
    header = fits.getheader(path)
    write_plane(path, mosaic()[0, :50, :50], header)


def other_brick(path: Path) -> None:
    fits.setval(path, "BRICKNAM", value="1498p000")


def other_brick_of_today(path: Path) -> None:
    fits.delval(path, "BRICKNAM")
    fits.setval(path, "BRICK", value="1498p000")


def vanish(path: Path) -> None:
    path.unlink()


DAMAGE = [cut_short, other_shape, other_brick, other_brick_of_today, vanish]


@pytest.mark.parametrize("band", "gr")
@pytest.mark.parametrize("damage", DAMAGE)
def test_one_band_that_is_of_no_use_costs_only_itself(folder: Path, damage: Callable[[Path], None], band: str) -> None:
    path = plane_path(folder, BRICK, "image", band)
    damage(path)
    found = outcome(folder)
    left = ["grz".index(other) for other in "grz" if other != band]
    np.testing.assert_array_equal(found.only.pixels[left], cut(mosaic(), MIDDLE, MIDDLE)[left])
    assert not found.only.pixels["grz".index(band)].any()
    assert found.only.quality == QualityFlag.MISSING_BAND
    assert found.only.survey_layer == f"ls-dr9-south-{'grz'.replace(band, '')}"
    assert found.only.bad_pixel_fraction == pytest.approx(1 / 3)
    (remark,) = found.remarks
    assert f"band {band}" in remark and (damage is vanish or str(path) in remark)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_short, Reason.UNREADABLE_FILE),
        (other_brick, Reason.BRICK_MISMATCH),
        (other_brick_of_today, Reason.BRICK_MISMATCH),
        (vanish, Reason.WRONG_BANDS),
    ],
)
def test_without_any_band_each_object_is_refused(folder: Path, damage: Callable[[Path], None], reason: Reason) -> None:
    write_rows(tractor_path(folder), rows([50, 90, 500], [50, 60, 70], type=["EXP", "PSF", "DEV"]))
    for band in "grz":
        damage(plane_path(folder, BRICK, "image", band))
    found = outcome(folder)
    assert found.stamps == {} and set(found.refused) == {"0", "2"} and found.set_aside == {"type_psf": 1}
    for entry in found.refused.values():
        assert entry.reason == reason and str(folder) in entry.detail and entry.file == str(folder)


@pytest.mark.parametrize("cards", [{"CTYPE1": "LINEAR"}, {"CRVAL1": None}, {"CD1_1": 0.0, "CD2_2": 0.0}])
def test_images_that_do_not_say_where_they_are(tmp_path: Path, cards: dict[str, Any]) -> None:
    header = tangent_plane()
    for name, value in cards.items():
        if value is None:
            del header[name]
        else:
            header[name] = value
    write_brick(tmp_path / BRICK, BRICK, mosaic()[:, :SIDE, :SIDE], header)
    write_rows(tractor_path(tmp_path / BRICK), rows([MIDDLE], [MIDDLE]))
    (entry,) = outcome(tmp_path / BRICK).refused.values()
    assert entry.reason in (Reason.NO_WCS, Reason.UNREADABLE_FILE) and BRICK in entry.detail


def refusal(folder: Path) -> BadInput:
    with pytest.raises(BadInput) as bad:
        outcome(folder)
    return bad.value


def test_without_its_catalogue_or_with_that_of_another_brick_a_tile_is_refused(folder: Path) -> None:
    table = tractor_path(folder)
    write_rows(table, rows([MIDDLE], [MIDDLE], brickname=["1498p000"]))
    bad = refusal(folder)
    assert bad.reason is Reason.BRICK_MISMATCH and str(table) in bad.detail
    table.unlink()
    bad = refusal(folder)
    assert bad.reason is Reason.MISSING_CATALOGUE and f"tractor-{BRICK}.fits" in bad.detail


def test_an_empty_catalogue_and_one_without_galaxies_give_nothing(folder: Path) -> None:
    write_rows(tractor_path(folder), rows([], []))
    found = outcome(folder)
    assert (found.stamps, found.refused, found.set_aside, found.remarks) == ({}, {}, {}, [])
    write_rows(tractor_path(folder), rows([50, 60], [50, 60], type=["PSF", "DUP"]))
    assert outcome(folder).set_aside == {"type_psf": 1, "type_dup": 1}


@pytest.mark.parametrize("product", ["invvar", "nexp", "maskbits", "psfsize"])
def test_a_plane_of_no_use_costs_only_what_it_says(folder: Path, product: str) -> None:
    band = "" if product == "maskbits" else "r"
    write_rows(tractor_path(folder), rows([MIDDLE], [MIDDLE], psfsize_r=None))
    path = aside(folder, product, np.zeros((SIDE, SIDE - 1), np.int16), band)
    for content in (path.read_bytes(), path.read_bytes()[:4000]):
        path.write_bytes(content)
        found = outcome(folder)
        assert found.only.quality == 0 and found.only.maskbits == 0
        (remark,) = found.remarks
        assert remark.startswith(f"{product} {band}".strip()) and str(path) in remark


def test_objects_outside_the_images_and_where_the_survey_has_no_pixels(folder: Path) -> None:
    sky = mosaic()[:, :SIDE, :SIDE].copy()
    sky[:, :, :90] = 0
    write_brick(folder, BRICK, sky, tangent_plane())
    write_rows(tractor_path(folder), rows([40.2, 75.2, 199.4, 199.6, 5000, MIDDLE], [MIDDLE] * 6))
    found = outcome(folder)
    assert set(found.refused) == {"0", "3", "4"} and set(found.stamps) == {"1", "2", "5"}
    assert {entry.reason for entry in found.refused.values()} == {Reason.OUT_OF_FOOTPRINT}
    assert "no pixels" in found.refused["0"].detail and "not within" in found.refused["3"].detail
    assert found.stamps["1"].quality & UNUSABLE == UNUSABLE
    assert found.stamps["5"].quality == QualityFlag.EDGE_OR_OFF_FOOTPRINT


def test_the_other_side_of_the_sky_is_not_in_the_images(folder: Path) -> None:
    """A tangent plane maps what lies behind the observer as well."""
    ra, dec = on_sky_at(MIDDLE, MIDDLE)
    write_rows(tractor_path(folder), rows([0, 0], [0, 0], ra=[ra, ra + 180], dec=[dec, -dec]))
    found = outcome(folder)
    assert set(found.stamps) == {"0"} and found.refused["1"].reason == Reason.OUT_OF_FOOTPRINT


PLACE = st.one_of(st.integers(-20, SIDE + 20).map(lambda n: n + 0.3), st.sampled_from([np.nan, 1e5, -1e5]))
ROW = st.tuples(PLACE, PLACE, st.sampled_from([BRICK] * 4 + ["1498p000"]), st.sampled_from(["PSF", "EXP", "SER"]))
ROWS = st.lists(st.tuples(ROW, st.sampled_from([1, 1, 1, 2])), min_size=1, max_size=10)


@given(ROWS)
@settings(max_examples=20, deadline=None)
def test_no_row_is_lost(images: Path, tmp_path_factory: pytest.TempPathFactory, table: list[Any]) -> None:
    """Rows at any place, of any brick, some of them twice: each is a stamp, a refusal or left out by its type."""
    table = [row for row, copies in table for _ in range(copies)]
    column, row, names, kinds = (np.array(values) for values in zip(*table, strict=True))
    at_all = np.isfinite(column) & np.isfinite(row)
    ra, dec = on_sky_at(np.where(at_all, column, 0), np.where(at_all, row, 0))
    columns = rows(column * 0, column * 0, ra=np.where(at_all, ra, np.nan), dec=dec, type=kinds, brickname=names)
    path = write_rows(tmp_path_factory.getbasetemp() / f"tractor-{BRICK}.fits", columns)
    tile = brick_tile(images, BRICK, READING, path)
    if BRICK not in names:
        with pytest.raises(BadInput):
            list(read_brick(tile, READING))
        return
    items = list(read_brick(tile, READING))
    count = Counter(type(item) for item in items)
    out = Counter(item.reason for item in items if isinstance(item, QuarantineEntry))
    aside = sum(sum(item.set_aside.values()) for item in items if isinstance(item, TileNote))
    assert count[Stamp] + count[QuarantineEntry] + aside == len(table)
    own = names == BRICK
    assert out[Reason.BRICK_MISMATCH] == (~own).sum()
    assert out[Reason.NO_POSITION] == (own & ~at_all).sum()
    inside = (np.abs(column - (SIDE - 1) / 2) < SIDE / 2) & (np.abs(row - (SIDE - 1) / 2) < SIDE / 2)
    assert count[Stamp] == (own & inside & (kinds != "PSF")).sum()


def test_the_real_brick_without_r_and_without_a_catalogue(shared: Path, tmp_path: Path) -> None:
    """Its stamps are those of astropy's Cutout2D on the same files; r is missing."""
    folder, brick = shared / "data/fits/bricks/0959p805_dr6_gz", "0959p805"
    tile = brick_tile(folder, brick, READING)
    with pytest.raises(BadInput) as bad:
        list(read_brick(tile, READING))
    assert bad.value.reason is Reason.MISSING_CATALOGUE
    with fits.open(folder / f"legacysurvey-{brick}-image-g.fits.fz") as hdus:
        header, g = hdus[1].header, hdus[1].data
    with fits.open(folder / f"legacysurvey-{brick}-image-z.fits.fz") as hdus:
        z = hdus[1].data
    lit = [np.argwhere(plane[64:-64:37, 64:-64:37]) * 37 + 64.2 for plane in (g, z)]
    seen = np.concatenate([places[:: len(places) // 4 + 1] for places in lit])
    dark = np.argwhere((g[::37, ::37] == 0) & (z[::37, ::37] == 0))[:1] * 37.0
    row, column = np.concatenate([seen, dark]).T
    ra, dec = WCS(header).all_pix2world(column, row, 0)
    listed = tmp_path / "list.csv"
    Table({"name": [f"o{i}" for i in range(len(ra))], "ra": ra, "dec": dec}).write(listed)
    found = outcome(folder, brick, table=write_prepared(read_list(listed), tmp_path))
    assert len(found.stamps) >= len(seen) >= 4 and len(found.stamps) + len(found.refused) == len(ra)
    for i in range(len(seen)):
        stamp = found.stamps[f"o{i}"]
        for plane, whole in ((stamp.pixels[0], g), (stamp.pixels[2], z)):
            np.testing.assert_array_equal(plane, Cutout2D(whole, (column[i], row[i]), STAMP).data)
        assert stamp.quality & QualityFlag.MISSING_BAND and not stamp.pixels[1].any()
        assert stamp.survey_layer == "ls-dr6-gz" and stamp.source_name == f"list.csv#o{i}"
    assert found.remarks == ["no image of band r"]


def test_the_layout_of_the_survey_gives_the_stable_name(images: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(images, coadd(tmp_path / "dr9-south", BRICK)))
    write_rows(tractor_path(tmp_path / "dr9-south" / "tractor" / BRICK[:3]), rows([MIDDLE], [MIDDLE]))
    assert outcome(home).only.source_name == f"dr9-south/{BRICK}#0"
