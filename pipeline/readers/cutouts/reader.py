"""Viewer FITS cutouts: one galaxy a file, (band, H, W) nanomaggies with a TAN WCS, weights and masks after them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from astropy.io.fits.verify import VerifyError

from pipeline.config.inputs import InputSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.core.object_ids import printable
from pipeline.core.parsing import parsing
from pipeline.readers.cutouts.headers import (
    Field,
    bands_of,
    centre_and_scale,
    check_sides,
    is_subimage,
    layer_of,
    product_of,
    stamp_of,
)
from pipeline.readers.cutouts.subimages import read_subimage
from pipeline.readers.fits.files import read_image
from pipeline.readers.fits.headers import FitsSource, Hdu, hdus_of, image_sides, is_image, opened_fits
from pipeline.readers.stamps import Item, Stamp, quarantine_entry

_EXTRA_PRODUCTS = ("invvar", "maskbits")


def read_cutouts(folder: Path, names: list[str], source: str, settings: InputSettings) -> Iterator[Item]:
    """One stamp or one quarantine entry for each file, in the given order.

    Raises
    ------
    OSError : the system failed (disk, network); the content of a file never raises.
    """
    for name in names:
        source_name = printable(f"{source}/{name}")
        try:
            yield read_cutout(folder / name, source_name, settings)
        except BadInput as bad:
            yield quarantine_entry(folder / name, source_name, bad)


def read_cutout(path: Path, source_name: str, settings: InputSettings, content: BinaryIO | None = None) -> Stamp:
    """Read one cutout or subimage product: the file at `path`, or `content`, which messages call by that path.

    Raises
    ------
    BadInput : it is damaged or no cutout of g, r, z; the reason says which.
    OSError : the system failed.
    """
    with opened_fits(path, content) as source:
        hdus = hdus_of(source)
        primary = image = next(hdus)
        if not image_sides(source, primary):
            image = next((hdu for hdu in hdus if is_image(hdu) and image_sides(source, hdu)), primary)
        read = read_subimage if is_subimage(image) else _read_viewer_cutout
        return stamp_of(read(source, primary, image, hdus), source_name, settings)


def _read_viewer_cutout(source: FitsSource, primary: Hdu, image: Hdu, others: Iterator[Hdu]) -> Field:
    """The image, and what `&invvar` and `&maskbits` put after it.

    The keywords of the survey are in the primary header; a compressed cutout has them with the image.
    """
    path = source.path
    product = product_of(image)
    if "BRICKNAM" in image.header or product in _EXTRA_PRODUCTS:  # coadds say BAND0 = g whatever their band is
        what = "a coadd of a whole brick" if "BRICKNAM" in image.header else f"nothing before {product}"
        raise BadInput(Reason.WRONG_SHAPE, f"{path} holds {what}, expected the image of a viewer cutout")
    check_sides(path, image_sides(source, image))
    header, planes = read_image(source, image)
    planes = planes if planes.ndim == 3 else planes[None]
    survey = header if "VERSION" in header else primary.header
    height, width = planes.shape[1:]
    ra, dec, pixscale = centre_and_scale(path, header, width, height)
    bands = bands_of(path, header, len(planes))
    extras = _read_extras(source, others, planes.shape, bands)
    return Field(
        planes=planes,
        bands=bands,
        weightless=extras.weightless if extras.has_weights else None,
        maskbits=extras.maskbits,
        ra=ra,
        dec=dec,
        pixscale=pixscale,
        layer=layer_of(survey, bands),
        overlap=header.get("OVERLAP", True) is not False,
    )


@dataclass
class _Extras:
    """Weights and masks that follow the image."""

    weightless: np.ndarray
    has_weights: bool = False
    maskbits: np.ndarray | None = None


def _read_extras(source: FitsSource, hdus: Iterator[Hdu], shape: tuple[int, ...], bands: list[str]) -> _Extras:
    """Weights and masks. What is damaged, or has another shape than the image, counts as unknown: the image is good.

    Unless the file is gzip'ed: only its end tells whether the image is.
    """
    found = _Extras(np.zeros(shape, dtype=bool))
    try:
        with parsing(source.path, "FITS with masks", VerifyError):
            for hdu in hdus:
                _add_extra(source, hdu, found, shape, bands)
    except BadInput:
        if source.length < 0:
            raise
    return found


def _add_extra(source: FitsSource, hdu: Hdu, found: _Extras, shape: tuple[int, ...], bands: list[str]) -> None:
    """Add an HDU to what was found, if it holds weights or masks of the shape of the image."""
    product = product_of(hdu)
    if product not in _EXTRA_PRODUCTS or not is_image(hdu):
        return
    sides = image_sides(source, hdu)[::-1]
    if sides[-2:] != shape[-2:] or len(sides) not in (2, 3):
        return
    if product == "maskbits" and sides[:-2] in ((), (1,)):
        pixels = read_image(source, hdu)[1].reshape(shape[-2:])
        found.maskbits = pixels if pixels.dtype.kind in "iu" else None
    elif product == "invvar" and (len(sides) == 2 or sides[0] <= len(bands)):
        pixels = read_image(source, hdu)[1].reshape(-1, *shape[-2:])
        named = hdu.header.get("BAND") if len(pixels) == 1 < len(bands) else hdu.header.get("BANDS", "".join(bands))
        for band, weights in zip(str(named).strip(), pixels, strict=False):
            if band in bands:
                found.weightless[bands.index(band)] = ~(weights > 0)
                found.has_weights = True
