"""Subimage products: pieces of several bricks become one field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from catalogs.schema import QualityFlag
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.readers.cutouts.reader import read_cutout
from pipeline.readers.stamps import Stamp

SCALE = 0.262 / 3600
SIDE = 40
RA, DEC = 150.0, 30.0

Sky = Callable[[np.ndarray, np.ndarray], np.ndarray]


def sky(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """A smooth brightness over the sky, the same whatever grid looks at it."""
    x, y = (ra - RA) * np.cos(np.radians(DEC)) / SCALE, (dec - DEC) / SCALE
    return 2 + np.sin(x / 7) * np.cos(y / 9)


def header(brick: str, band: str, product: str, column: float, row: float, ra: float, dec: float) -> fits.Header:
    """Header of a piece whose reference pixel, at `ra`, `dec`, lies at this column and row (0-based)."""
    cards: dict[str, Any] = {"BRICK": brick, "BAND": band, "IMAGETYP": product, "VERSION": "DR9-south"}
    cards |= {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": dec}
    cards |= {"CRPIX1": column + 1, "CRPIX2": row + 1, "CD1_1": -SCALE, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": SCALE}
    return fits.Header({k: v for k, v in cards.items() if v != ""})


def piece(
    brick: str,
    columns: tuple[int, int],
    offset: float = 0.0,
    tangent: tuple[float, float] = (RA, DEC),
    products: tuple[str, ...] = ("image", "invvar"),
    bands: str = "grz",
) -> list[fits.ImageHDU]:
    """HDUs of a brick that covers these columns of a field of 40 x 40; its grid is shifted by `offset` pixels.

    Its tangent point may lie elsewhere: then the grids are turned against each other.
    """
    first, last = columns
    field = WCS(header("", "", "image", (SIDE - 1) / 2, (SIDE - 1) / 2, RA, DEC), naxis=2)
    start = field.wcs_pix2world([[first + offset, offset]], 0)[0]
    own = WCS(header("", "", "image", 0, 0, *tangent), naxis=2)
    x0, y0 = own.wcs_world2pix([start], 0)[0]
    hdus = []
    for product in products:
        for band in bands if product != "maskbits" else [""]:
            head = header(brick, band, product, -x0, -y0, *tangent)
            y, x = np.mgrid[:SIDE, : last - first]
            ra, dec = WCS(head, naxis=2).wcs_pix2world(x.ravel(), y.ravel(), 0)
            values = sky(ra, dec).reshape(x.shape) * (1 + bands.find(band))
            data = {"image": values, "invvar": np.ones(x.shape), "maskbits": np.zeros(x.shape, "i4")}[product]
            hdus.append(fits.ImageHDU(data.astype("i4" if product == "maskbits" else "f4"), head))
    return hdus


def read(path: Path, hdus: list[fits.ImageHDU]) -> Stamp:
    primary = fits.PrimaryHDU(header=fits.Header({"SURVEY": "DECaLS", "VERSION": "DR10-south"}))
    fits.HDUList([primary, *hdus]).writeto(path, overwrite=True)
    return read_cutout(path, "s", InputSettings())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.fits"


def test_one_brick(path: Path) -> None:
    hdus = piece("1500p300", (0, SIDE))
    stamp = read(path, hdus)
    np.testing.assert_array_equal(stamp.pixels, [hdu.data for hdu in hdus[:3]])
    assert (stamp.ra, stamp.dec) == (pytest.approx(RA, abs=1e-9), pytest.approx(DEC, abs=1e-9))
    assert stamp.survey_layer == "ls-dr10-south-grz" and stamp.quality == 0 and stamp.maskbits == -1


def test_the_smaller_piece_fills_what_lies_beyond_the_edge_of_the_larger(path: Path) -> None:
    whole = read(path, piece("a", (0, SIDE))).pixels
    left, right = piece("a", (0, 28)), piece("b", (20, SIDE))
    for hdu in right:
        hdu.data[:, :8] = 99  # where both are, the larger one counts
    for hdus in (left + right, right + left):
        stamp = read(path, hdus)
        np.testing.assert_allclose(stamp.pixels, whole, rtol=0, atol=2e-6)
        assert (stamp.ra, stamp.dec) == (pytest.approx(RA, abs=1e-9), pytest.approx(DEC, abs=1e-9))


@pytest.mark.parametrize(
    ("offset", "tangent"), [(0.4, (RA, DEC)), (0.0, (RA - 0.25, DEC + 0.1)), (0.3, (RA + 0.2, DEC))]
)
def test_grids_that_do_not_line_up_are_interpolated(path: Path, offset: float, tangent: tuple[float, float]) -> None:
    whole = read(path, piece("a", (0, SIDE))).pixels
    stamp = read(path, piece("a", (0, 28)) + piece("b", (20, SIDE), offset, tangent))
    height, width = stamp.pixels.shape[1:]
    assert SIDE <= width <= SIDE + 1 and SIDE <= height <= SIDE + 1
    inner = np.s_[:, 4:36, 4:36]
    np.testing.assert_allclose(stamp.pixels[inner], whole[inner], rtol=0, atol=0.01)
    np.testing.assert_array_equal(stamp.pixels[:, :SIDE, :28], whole[:, :, :28])  # the frame's own are not touched


def test_blank_stays_blank_and_a_gap_is_an_edge(path: Path) -> None:
    right = piece("b", (20, SIDE), 0.4)
    for hdu in right[:3]:
        hdu.data[10:20] = 0
    stamp = read(path, piece("a", (0, 28)) + right)
    assert not stamp.pixels[:, 12:18, 30:38].any()
    assert stamp.quality == QualityFlag.EDGE_OR_OFF_FOOTPRINT
    apart = read(path, piece("a", (0, 28)) + piece("b", (34, SIDE)))
    assert apart.pixels.shape == (3, SIDE, SIDE) and not apart.pixels[:, :, 28:34].any()


def test_a_band_that_only_the_other_brick_has(path: Path) -> None:
    stamp = read(path, piece("a", (0, SIDE), bands="gr") + piece("b", (0, 30), bands="grz"))
    assert stamp.pixels[2, :, :30].all() and not stamp.pixels[2, :, 30:].any()


def test_weights_and_masks_are_joined_too(path: Path) -> None:
    products = ("image", "invvar", "maskbits")
    left, right = piece("a", (0, 28), products=products), piece("b", (20, SIDE), products=products)
    left[3].data[:2, :5] = 0
    right[4].data[0, -3:] = 0
    right[6].data[20, 15] = 1 << 2  # column 35 of the field, four arcsec from the centre
    stamp = read(path, left + right)
    assert stamp.bad_pixel_fraction == pytest.approx(13 / (3 * SIDE * SIDE))
    assert stamp.maskbits == 4 and stamp.quality == QualityFlag.SATURATED


@pytest.mark.parametrize(
    ("hdus", "expected"),
    [
        (lambda: piece("a", (0, SIDE)) * 2, Reason.WRONG_SHAPE),  # twice
        (lambda: piece("a", (0, 30))[:3] + piece("a", (0, 20))[3:], Reason.WRONG_SHAPE),
        (lambda: piece("a", (0, SIDE), bands="iy"), Reason.WRONG_BANDS),
        (lambda: piece("a", (0, SIDE), products=("invvar",)), Reason.WRONG_BANDS),
        (lambda: piece("a", (0, SIDE)) + piece("b", (10**4, 10**4 + 20)), Reason.TOO_LARGE),
        (lambda: piece("a", (0, SIDE)) + piece("b", (0, 20))[:-1], None),  # weights of a piece are missing
    ],
)
def test_pieces_that_do_not_make_a_field(
    path: Path, hdus: Callable[[], list[fits.ImageHDU]], expected: Reason | None
) -> None:
    if expected is None:
        assert read(path, hdus()).quality == 0
        return
    with pytest.raises(BadInput) as bad:
        read(path, hdus())
    assert bad.value.reason == expected and str(path) in bad.value.detail


def test_a_piece_on_the_other_side_of_the_sky(path: Path) -> None:
    far = piece("b", (0, 20))
    for hdu in far:
        hdu.header["CRVAL1"], hdu.header["CRVAL2"] = (RA + 180) % 360, -DEC
    with pytest.raises(BadInput) as bad:
        read(path, piece("a", (0, SIDE)) + far)
    assert bad.value.reason in (Reason.NO_WCS, Reason.TOO_LARGE)


def test_a_subimage_that_is_cut_short(path: Path) -> None:
    read(path, piece("a", (0, SIDE)))
    whole = path.read_bytes()
    for length in (len(whole) - 3000, len(whole) // 2 - 5000, 2880 * 2 + 100):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput) as bad:
            read_cutout(path, "s", InputSettings())
        assert bad.value.reason == Reason.UNREADABLE_FILE
