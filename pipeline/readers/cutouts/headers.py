"""What the headers of a FITS file of one galaxy say (product, bands, layer, position), and the stamp that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from catalogs.schema import QualityFlag
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.readers.fits.headers import Hdu
from pipeline.readers.stamps import (
    BANDS,
    MAX_SIDE,
    Stamp,
    are_bands,
    bits_within,
    examine_flux,
    in_band_order,
    mask_flags,
    on_sky,
    wrapped,
)

MOST_BYTES = 512 << 20  # declared, of all the images of one field
_MATRIX = ("CD1_1", "CD1_2", "CD2_1", "CD2_2")
# Beginnings of keywords that make a WCS more than a tangent plane with a matrix.
_MORE = ("PV", "PC", "LONP", "LATP", "CROTA", "CDELT", "CUNIT", "WCSAXES", "A_", "B_", "CPDIS", "DP", "CQDIS", "D2IM")


@dataclass(frozen=True)
class Field:
    """A field of the sky.

    `planes` : (band, H, W) nanomaggies, native float32 or any numbers, row 0 south; `bands` names them. `weightless` :
    bool (band, H, W), pixels whose inverse variance is not positive, or None if there are no weights. `maskbits` :
    integers (H, W), or None. `ra`, `dec` of the centre in degrees, `pixscale` in arcsec. `overlap` is false where the
    survey says that it has no pixels here.
    """

    planes: np.ndarray
    bands: list[str]
    weightless: np.ndarray | None
    maskbits: np.ndarray | None
    ra: float
    dec: float
    pixscale: float
    layer: str
    overlap: bool = True


def product_of(hdu: Hdu) -> str:
    """What an HDU holds by its IMAGETYP, else its EXTNAME, in lower case: image, invvar, maskbits; empty if neither."""
    for key in ("IMAGETYP", "EXTNAME"):
        named = str(hdu.header.get(key, "")).strip().lower()
        if named:
            return named
    return ""


def is_subimage(hdu: Hdu) -> bool:
    """Whether the first HDU with an image is that of a subimage product, which names its brick and one band."""
    return "BRICK" in hdu.header and "BAND" in hdu.header


def check_sides(path: Path, sides: tuple[int, ...], images: int = 1) -> None:
    """Make sure that `images` images of these sides, x first, can be those of one galaxy.

    Raises
    ------
    BadInput : more than two or three axes, or sides out of bounds; found before memory is taken.
    """
    if len(sides) not in (2, 3):
        raise BadInput(
            Reason.WRONG_SHAPE, f"{path}: the image has {len(sides)} axes, expected (band, H, W) of a viewer cutout"
        )
    if min(sides) < 1 or max(sides) > MAX_SIDE:
        raise BadInput(
            Reason.TOO_LARGE,
            f"{path}: sides {sides} are not those of a cutout of one galaxy (1 to {MAX_SIDE} pixels)",
        )
    if math.prod(sides) * 4 * images > MOST_BYTES:
        raise BadInput(Reason.TOO_LARGE, f"{path}: {images} x {sides} pixels are more than {MOST_BYTES >> 20} MiB")


def check_bands(path: Path, bands: list[str], planes: int) -> None:
    """Make sure that the letters name the planes. Raises BadInput otherwise."""
    if not are_bands(bands, planes):
        raise BadInput(
            Reason.WRONG_BANDS,
            f"{path}: {planes} planes, bands = {''.join(bands)!r}; expected one letter a plane with some of "
            f"{', '.join(BANDS)}",
        )


def bands_of(path: Path, header: fits.Header, planes: int) -> list[str]:
    """Names of the planes of a viewer cutout, from BANDS or BAND0, BAND1, … Raises BadInput where they do not fit."""
    named = header.get("BANDS") or "".join(str(header.get(f"BAND{i}", "")) for i in range(planes))
    bands = list(str(named).strip())
    check_bands(path, bands, planes)
    return bands


def layer_of(header: fits.Header, bands: list[str]) -> str:
    """The survey layer in the catalogue's words, such as ls-dr9-south-grz."""
    letters = "".join(bands)
    if header.get("SIMULATD") is True:
        return f"simulated-{letters}"
    version = str(header.get("VERSION", "unknown")).strip().lower() or "unknown"
    return f"ls-{version}-{letters}"


def centre_and_scale(path: Path, header: fits.Header, width: int, height: int) -> tuple[float, float, float]:
    """Position of the centre of an image (ra, dec, degrees ICRS) and its pixel scale (arcsec).

    Raises
    ------
    BadInput : there is no celestial WCS, or it gives no position.
    """
    if not str(header.get("CTYPE1", "")).startswith("RA---") or not {"CRVAL1", "CRVAL2"} <= set(header):
        raise BadInput(Reason.NO_WCS, f"{path}: no celestial WCS in the header (CTYPE1, CRVAL1, CRVAL2, CD1_1 …)")
    x, y = (width - 1) / 2, (height - 1) / 2
    try:
        ra, dec, pixscale = (_tangent_plane if _is_plain(header) else _any_wcs)(header, x, y)
    except (ValueError, TypeError) as error:  # among them what wcslib says of a matrix that cannot be inverted
        raise BadInput(Reason.NO_WCS, f"{path}: no WCS that can be used ({error})", type(error).__name__) from error
    if not (on_sky(ra, dec) and 0 < pixscale < math.inf):
        raise BadInput(Reason.NO_WCS, f"{path}: the WCS gives no position (ra {ra}, dec {dec}, {pixscale} arcsec)")
    return wrapped(ra), dec, pixscale


def _is_plain(header: fits.Header) -> bool:
    """Whether the WCS is a tangent plane with a full CD matrix and nothing else, as the surveys write it."""
    return (
        (header.get("CTYPE1"), header.get("CTYPE2")) == ("RA---TAN", "DEC--TAN")
        and all(key in header for key in ("CRVAL2", "CRPIX1", "CRPIX2", *_MATRIX))
        and not any(key.startswith(_MORE) for key in header)
    )


def _tangent_plane(header: fits.Header, x: float, y: float) -> tuple[float, float, float]:
    """The gnomonic projection (Calabretta & Greisen 2002, A&A 395, 1077, section 5.1.3).

    Building a `WCS` takes longer than reading the pixels of a cutout.
    """
    ra0, dec0, x0, y0 = (_number(header, key) for key in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2"))
    a, b, c, d = (_number(header, key) for key in _MATRIX)
    if a * d == b * c:
        return math.nan, math.nan, 0.0
    dx, dy = x + 1 - x0, y + 1 - y0
    east, north = math.radians(a * dx + b * dy), math.radians(c * dx + d * dy)
    sine, cosine = math.sin(math.radians(dec0)), math.cos(math.radians(dec0))
    depth = cosine - north * sine
    ra = ra0 + math.degrees(math.atan2(east, depth))
    dec = math.degrees(math.atan2(sine + north * cosine, math.hypot(east, depth)))
    return wrapped(ra), dec, (math.hypot(a, c) + math.hypot(b, d)) / 2 * 3600


def _number(header: fits.Header, key: str) -> float:
    """A number of a header; ValueError where it is a word or a logical, which Python would take as one."""
    if type(header[key]) not in (int, float):
        raise ValueError(f"{key} = {header[key]!r}")
    return float(header[key])


def _any_wcs(header: fits.Header, x: float, y: float) -> tuple[float, float, float]:
    wcs = WCS(header, naxis=2)
    ra, dec = (float(v) for v in wcs.all_pix2world([[x, y]], 0)[0])
    return ra, dec, float(np.mean(proj_plane_pixel_scales(wcs))) * 3600


def stamp_of(field: Field, source_name: str, settings: InputSettings) -> Stamp:
    """The stamp of a field: bands in order, pixels and masks examined."""
    flux, quality, bad = examine_flux(*in_band_order(field.planes, field.bands))
    if field.weightless is not None:
        weightless, _ = in_band_order(field.weightless, field.bands)
        more = weightless & (flux != 0) & np.isfinite(flux)  # the others are counted already
        bad += float(more.mean())
    bits = -1 if field.maskbits is None else bits_within(field.maskbits, field.pixscale, settings)
    quality |= mask_flags(bits, settings)
    if not field.overlap:
        quality |= int(QualityFlag.EDGE_OR_OFF_FOOTPRINT)
    return Stamp(
        source_name=source_name,
        pixels=flux,
        ra=field.ra,
        dec=field.dec,
        pixscale=field.pixscale,
        quality=quality,
        bad_pixel_fraction=bad,
        survey_layer=field.layer,
        maskbits=bits,
    )
