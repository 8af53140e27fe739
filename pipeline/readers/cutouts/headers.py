"""What a FITS file of one galaxy shows, whatever its form, and the stamp that is made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from catalogs.schema import QualityFlag
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.readers.bricks.maskbits import bits_within, mask_flags
from pipeline.readers.fits.headers import Hdu
from pipeline.readers.stamps import BANDS, MAX_SIDE, Stamp, are_bands, examine_flux, in_band_order

MOST_BYTES = 512 << 20  # declared, of all the images of one field


@dataclass(frozen=True)
class Field:
    """A field of the sky.

    `planes` : (band, H, W) nanomaggies, native float32 or any numbers, row 0 south; `bands` names them. `weightless` :
    bool (band, H, W), pixels whose inverse variance is not positive, or None where there are no weights. `maskbits` :
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


def layer_of(header: fits.Header, bands: list[str]) -> str:
    """The survey layer in the catalogue's words, such as ls-dr9-south-grz."""
    letters = "".join(bands)
    if header.get("SIMULATD") is True:
        return f"simulated-{letters}"
    version = str(header.get("VERSION", "unknown")).strip().lower() or "unknown"
    return f"ls-{version}-{letters}"


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
