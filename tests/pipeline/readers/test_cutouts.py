"""Viewer cutouts: what is read, what is flagged, what is refused and why."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from catalogs.schema import QualityFlag
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.readers.cutouts.reader import read_cutout, read_cutouts
from pipeline.readers.stamps import Stamp
from tests.pipeline.makers import cutout_header, galaxy, sorted_out, write_cutout

SETTINGS = InputSettings()


def read(path: Path) -> Stamp:
    return read_cutout(path, f"tile/{path.name}", SETTINGS)


def reason(path: Path) -> Reason:
    with pytest.raises(BadInput) as bad:
        read(path)
    assert str(path) in bad.value.detail
    return bad.value.reason


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.fits"


def test_pixels_come_in_native_order_as_they_were_written(path: Path) -> None:
    stamp = read(write_cutout(path))
    np.testing.assert_array_equal(stamp.pixels, galaxy())
    assert stamp.pixels.dtype == np.float32 and stamp.pixels.dtype.isnative
    assert stamp.quality == 0 and stamp.bad_pixel_fraction == 0
    assert stamp.survey_layer == "ls-dr9-south-grz"
    assert stamp.rendering == ""  # flux: the recipe renders it


@pytest.mark.parametrize(("ra", "dec"), [(150.0, 2.0), (0.0001, -30.0), (359.9999, 84.0)])
def test_the_position_is_that_of_the_centre_pixel(path: Path, ra: float, dec: float) -> None:
    stamp = read(write_cutout(path, ra=ra, dec=dec, pixscale=0.5))
    assert stamp.ra == pytest.approx(ra, abs=1e-9) and stamp.dec == pytest.approx(dec, abs=1e-9)
    assert stamp.pixscale == pytest.approx(0.5, rel=1e-6)


def test_a_reference_pixel_off_the_centre_is_followed(path: Path) -> None:
    """Ten pixels further in x, the centre lies ten pixels nearer to the east, where right ascension grows."""
    stamp = read(write_cutout(path, ra=150.0, dec=60.0, CRPIX1=12.5 + 10, CRPIX2=12.5 + 4))
    step = 0.262 / 3600
    assert stamp.ra == pytest.approx(150 + 10 * step / np.cos(np.radians(60)), abs=2e-7)
    assert stamp.dec == pytest.approx(60 - 4 * step, abs=2e-7)


@pytest.mark.parametrize("bands", ["zrg", "rzg", "griz", "zigr"])
def test_bands_are_told_by_name_not_by_place(path: Path, bands: str) -> None:
    data = galaxy(1, bands=len(bands))
    stamp = read(write_cutout(path, data, BANDS=bands))
    np.testing.assert_array_equal(stamp.pixels, data[[bands.index(b) for b in "grz"]])
    assert stamp.quality == 0 and stamp.survey_layer.endswith(bands)


def test_bands_named_one_by_one(path: Path) -> None:
    data = galaxy(1)
    stamp = read(write_cutout(path, data, BANDS=None, BAND0="z", BAND1="r", BAND2="g"))
    np.testing.assert_array_equal(stamp.pixels, data[::-1])


@pytest.mark.parametrize(("bands", "planes"), [("gr", 2), ("r", 1)])
def test_a_band_that_is_not_there_is_flagged(path: Path, bands: str, planes: int) -> None:
    stamp = read(write_cutout(path, galaxy(1, bands=planes), BANDS=bands))
    assert stamp.quality == QualityFlag.MISSING_BAND
    assert not stamp.pixels[2].any() and stamp.pixels[1].any()
    assert stamp.bad_pixel_fraction == pytest.approx((3 - planes) / 3)


def test_a_single_band_may_be_two_dimensional(path: Path) -> None:
    stamp = read(write_cutout(path, galaxy()[1], BANDS="r"))
    np.testing.assert_array_equal(stamp.pixels[1], galaxy()[1])
    assert stamp.quality == QualityFlag.MISSING_BAND


def test_a_blank_band_is_missing_and_three_leave_nothing_to_classify(path: Path) -> None:
    data = galaxy()
    data[0] = 0
    assert read(write_cutout(path, data)).quality == QualityFlag.MISSING_BAND
    stamp = read(write_cutout(path, data * 0))
    assert stamp.quality == QualityFlag.MISSING_BAND | QualityFlag.UNCLASSIFIED
    assert stamp.bad_pixel_fraction == 1


def test_pixels_that_are_no_number_are_flagged(path: Path) -> None:
    data = galaxy()
    data[1, 3, 3] = np.nan
    stamp = read(write_cutout(path, data))
    assert stamp.quality == QualityFlag.NAN_PIXELS
    assert stamp.bad_pixel_fraction == pytest.approx(1 / data.size)
    assert read(write_cutout(path, data * np.nan)).quality & QualityFlag.UNCLASSIFIED


def test_a_blank_border_is_an_edge(path: Path) -> None:
    data = galaxy()
    data[:, :, :4] = 0
    assert read(write_cutout(path, data)).quality == QualityFlag.EDGE_OR_OFF_FOOTPRINT


def test_the_survey_says_that_it_has_no_pixels(path: Path) -> None:
    assert read(write_cutout(path, OVERLAP=False)).quality == QualityFlag.EDGE_OR_OFF_FOOTPRINT
    assert read(write_cutout(path, OVERLAP=True)).quality == 0


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"CTYPE1": None}, Reason.NO_WCS),
        ({"CRVAL1": None}, Reason.NO_WCS),
        ({"CTYPE1": "LINEAR"}, Reason.NO_WCS),
        ({"CD1_1": 0.0, "CD2_2": 0.0}, None),
        ({"CPDIS1": "LOOKUP", "DP1.EXTVER": 1.0}, None),
        ({"BANDS": None}, Reason.WRONG_BANDS),
        ({"BANDS": "ugi"}, None),
        ({"BANDS": "gr"}, Reason.WRONG_BANDS),
        ({"BANDS": "ggg"}, Reason.WRONG_BANDS),
        ({"BANDS": "xyw"}, Reason.WRONG_BANDS),
        ({"BANDS": 3}, Reason.WRONG_BANDS),
    ],
)
def test_headers_that_are_not_those_of_a_cutout(path: Path, cards: dict[str, object], expected: Reason | None) -> None:
    write_cutout(path, **cards)
    if expected is not None:
        assert reason(path) == expected
    elif cards == {"BANDS": "ugi"}:
        assert read(path).quality == QualityFlag.MISSING_BAND
    else:
        assert reason(path) in (Reason.NO_WCS, Reason.UNREADABLE_FILE)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    whole = write_cutout(path).read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert reason(path) == Reason.UNREADABLE_FILE


def test_compressed_files_are_read_and_damage_to_them_is_seen(tmp_path: Path) -> None:
    plain = write_cutout(tmp_path / "a.fits").read_bytes()
    packed = bytearray(gzip.compress(plain))
    path = tmp_path / "a.fits.gz"
    path.write_bytes(packed)
    np.testing.assert_array_equal(read(path).pixels, galaxy())
    path.write_bytes(packed[: len(packed) // 2])
    assert reason(path) == Reason.UNREADABLE_FILE
    packed[len(packed) // 2] ^= 0xFF
    path.write_bytes(packed)
    assert reason(path) == Reason.UNREADABLE_FILE


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", Reason.EMPTY_FILE),
        (b"<html>502 Bad Gateway</html>" * 200, Reason.UNREADABLE_FILE),
        (b"PK\x03\x04" + b"x" * 5000, Reason.UNREADABLE_FILE),
        (b"\xfd7zXZ\x00" + b"x" * 5000, Reason.UNREADABLE_FILE),
        (b"BZh9" + b"x" * 5000, Reason.UNREADABLE_FILE),
        (b"\x1f\x8b" + b"x" * 5000, Reason.UNREADABLE_FILE),
        (b"\x1f\x9d" + b"x" * 5000, Reason.UNREADABLE_FILE),
        (b"\0" * 5760, Reason.UNREADABLE_FILE),
    ],
)
def test_what_is_not_fits_is_refused(path: Path, content: bytes, expected: Reason) -> None:
    path.write_bytes(content)
    assert reason(path) == expected


def test_a_vanished_file_and_a_link_to_nothing_are_refused(path: Path) -> None:
    assert reason(path) == Reason.UNREADABLE_FILE
    path.symlink_to("nowhere.fits")
    assert reason(path) == Reason.UNREADABLE_FILE


def header_only(path: Path, sides: list[int], bitpix: int = -32) -> None:
    """A file that claims sides it has no data for."""
    cards = {"SIMPLE": True, "BITPIX": bitpix, "NAXIS": len(sides)}
    cards |= {f"NAXIS{i + 1}": side for i, side in enumerate(sides)}
    path.write_bytes(fits.Header([*cards.items(), *cutout_header().items()]).tostring().encode() + b"\0" * 2880)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ([10**9, 10**9, 3], Reason.TOO_LARGE),
        ([10**6, 10**6, 3], Reason.TOO_LARGE),
        ([4096, 4096, 4096], Reason.TOO_LARGE),
        ([5000, 20, 3], Reason.TOO_LARGE),
        ([0, 20, 3], Reason.TOO_LARGE),
        ([20], Reason.WRONG_SHAPE),
        ([], Reason.WRONG_SHAPE),
        ([20, 20, 3, 2], Reason.WRONG_SHAPE),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(path: Path, sides: list[int], expected: Reason) -> None:
    header_only(path, sides)
    assert reason(path) == expected


def test_every_file_is_accounted_for_in_order(tmp_path: Path) -> None:
    names = ["a.fits", "b.fits", "c.fits"]
    for name in names:
        write_cutout(tmp_path / name)
    (tmp_path / "b.fits").write_bytes(b"")
    items = list(read_cutouts(tmp_path, names, "tile", SETTINGS))
    assert [item.source_name for item in items] == ["tile/a.fits", "tile/b.fits", "tile/c.fits"]
    stamps, refused = sorted_out(iter(items))
    assert len(stamps) == 2 and refused[0].reason == Reason.EMPTY_FILE and refused[0].file == str(tmp_path / "b.fits")


def test_a_name_that_is_no_text_can_still_be_written_down(tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xff.fits")
    write_cutout(tmp_path / name)
    (tmp_path / (name + "2.fits")).write_bytes(b"")
    good, bad = read_cutouts(tmp_path, [name, name + "2.fits"], "tile", SETTINGS)
    assert isinstance(good, Stamp) and good.object_id > 1 << 62
    assert good.source_name == "tile/bad\\udcff.fits"
    assert bad.model_dump_json()


def test_real_cutouts(shared: Path) -> None:
    folder = shared / "data/fits/decals_grz_cutouts"
    names = sorted(p.name for p in folder.glob("*.fits"))
    stamps, refused = sorted_out(read_cutouts(folder, names, "real", SETTINGS))
    assert not refused and len(stamps) == len(names) == 9
    flagged = {s.source_name: s.quality for s in stamps if s.quality}
    assert flagged["real/example_bad_pix.fits"] & QualityFlag.MISSING_BAND
    assert all(0.05 < s.pixscale < 1.1 and s.pixels.shape[0] == 3 for s in stamps)
    same = {s.source_name: s for s in stamps}
    small, fine = same["real/temp_small.fits"], same["real/example_a.fits"]
    assert small.pixscale == pytest.approx(0.262, rel=1e-3) and fine.pixscale == pytest.approx(0.10, rel=1e-2)
    assert small.ra == pytest.approx(fine.ra, abs=2e-3) and small.dec == pytest.approx(fine.dec, abs=2e-3)


def test_real_files_that_are_no_viewer_cutouts(shared: Path) -> None:
    data = shared / "data/fits"
    for path in sorted((data / "decam_mosaic_cuts").glob("*.fits")):
        assert reason(path) == Reason.WRONG_BANDS
    assert reason(next((data / "decals_dr9_subimage").glob("copsf*.fits"))) == Reason.NO_WCS
    assert reason(next((data / "bricks/0959p805_dr6_gz").glob("*image-g.fits.fz"))) == Reason.WRONG_SHAPE


def with_masks(path: Path, *, invvar: object = None, maskbits: object = None, **cards: object) -> Path:
    """A cutout with further HDUs as `&invvar` and `&maskbits` give them."""
    write_cutout(path, **cards)
    with fits.open(path, mode="append") as hdus:
        for product, data in (("invvar", invvar), ("maskbits", maskbits)):
            if data is not None:
                hdus.append(fits.ImageHDU(np.asarray(data), fits.Header({"IMAGETYP": product})))
    return path


def test_pixels_without_weight_are_bad_but_not_twice(path: Path) -> None:
    data, invvar = galaxy(), np.ones((3, 24, 24), "f4")
    data[0, 0, 0] = 0
    data[1, 0, :2] = np.nan
    invvar[:2, 0, :4] = 0
    stamp = read(with_masks(path, data=data, invvar=invvar))
    assert stamp.bad_pixel_fraction == pytest.approx(8 / data.size)
    assert stamp.maskbits == -1


def test_weights_of_one_band_each(path: Path) -> None:
    write_cutout(path)
    with fits.open(path, mode="append") as hdus:
        for band, bad in (("z", 5), ("g", 2), ("i", 9)):
            weights = np.ones((24, 24), "f4")
            weights[0, :bad] = 0
            hdus.append(fits.ImageHDU(weights, fits.Header({"EXTNAME": "INVVAR", "BAND": band})))
    assert read(path).bad_pixel_fraction == pytest.approx(7 / (3 * 24 * 24))


def test_maskbits_over_the_central_aperture(path: Path) -> None:
    maskbits = np.zeros((24, 24), "i4")
    maskbits[12, 12] = 1 << 3
    maskbits[12, 13] = 1 << 12
    maskbits[0, 0] = 1 << 1  # in the corner, four arcsec away
    stamp = read(with_masks(path, maskbits=maskbits))
    assert stamp.maskbits == (1 << 3) + (1 << 12) + (1 << 1)
    stamp = read_cutout(path, "x", InputSettings(aperture=2.0))
    assert stamp.maskbits == (1 << 3) + (1 << 12)
    assert stamp.quality == QualityFlag.SATURATED | QualityFlag.LARGE_GALAXY_MASK
    assert read(with_masks(path, maskbits=np.zeros((24, 24), "i2"))).maskbits == 0


@pytest.mark.parametrize(
    ("product", "data"),
    [
        ("maskbits", np.zeros((24, 23), "i4")),
        ("maskbits", np.zeros((2, 24, 24), "i4")),
        ("maskbits", np.zeros(24, "i4")),
        ("maskbits", np.zeros((24, 24), "f4")),
        ("invvar", np.zeros((3, 23, 24), "f4")),
        ("invvar", np.zeros((4, 24, 24), "f4")),
        ("invvar", np.zeros((1, 3, 24, 24), "f4")),
        ("invvar", np.zeros(5, "f4")),
    ],
)
def test_masks_of_another_shape_are_unknown(path: Path, product: str, data: np.ndarray) -> None:
    stamp = read(with_masks(path, **{product: data}))
    assert stamp.maskbits == -1 and stamp.bad_pixel_fraction == 0 and stamp.quality == 0


def test_masks_that_are_cut_short_leave_the_image_good(path: Path) -> None:
    whole = with_masks(path, invvar=np.ones((3, 24, 24), "f4"), maskbits=np.ones((24, 24), "i4")).read_bytes()
    for length in range(len(whole) - 2880, 2880 * 4, -1440):
        path.write_bytes(whole[:length])
        stamp = read(path)
        assert stamp.maskbits == -1 and stamp.bad_pixel_fraction == 0
    path.write_bytes(gzip.compress(whole)[:-4])
    assert reason(path) == Reason.UNREADABLE_FILE  # only the end tells whether the image is whole


def test_a_compressed_cutout_and_files_that_only_look_like_one(tmp_path: Path) -> None:
    plain = write_cutout(tmp_path / "a.fits")
    with fits.open(plain) as hdus:
        packed = fits.CompImageHDU(
            hdus[0].data, hdus[0].header, compression_type="GZIP_1", quantize_level=0, tile_shape=(1, 24, 24)
        )
        fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "a.fits.fz")
    stamp = read(tmp_path / "a.fits.fz")
    np.testing.assert_array_equal(stamp.pixels, galaxy())
    assert (stamp.ra, stamp.survey_layer) == (read(plain).ra, "ls-dr9-south-grz")
    assert reason(write_cutout(tmp_path / "b.fits", BRICKNAM="1498p020")) == Reason.WRONG_SHAPE
    assert reason(write_cutout(tmp_path / "c.fits", IMAGETYP="invvar")) == Reason.WRONG_SHAPE


@pytest.mark.parametrize("more", [{}, {"LONPOLE": 180.0}, {"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"}])
@pytest.mark.parametrize(("ra", "dec"), [(0.001, 0.0), (150.0, 89.99), (359.99, -60.0)])
def test_positions_are_those_of_astropy(path: Path, ra: float, dec: float, more: dict[str, object]) -> None:
    turned = {"CD1_1": -6e-5, "CD1_2": 3e-5, "CD2_1": 2e-5, "CD2_2": 7e-5}
    stamp = read(write_cutout(path, ra=ra, dec=dec, CRPIX1=400.0, CRPIX2=-300.0, **turned, **more))
    wcs = WCS(fits.getheader(path), naxis=2)
    expected = wcs.all_pix2world([[11.5, 11.5]], 0)[0]
    np.testing.assert_allclose([stamp.ra, stamp.dec], expected, rtol=0, atol=1e-9)
    assert stamp.pixscale == pytest.approx(np.mean(proj_plane_pixel_scales(wcs)) * 3600, rel=1e-12)


def test_the_real_subimage_becomes_a_stamp(shared: Path) -> None:
    stamp = read(next((shared / "data/fits/decals_dr9_subimage").glob("cutout*.fits")))
    assert stamp.pixels.shape == (3, 256, 256) and stamp.pixscale == pytest.approx(0.262, rel=1e-6)
    assert (stamp.ra, stamp.dec) == (pytest.approx(59.1067, abs=1e-4), pytest.approx(-30.4848, abs=1e-4))
    assert stamp.quality == 0 and stamp.bad_pixel_fraction == 0 and stamp.survey_layer == "ls-dr9-south-grz"
