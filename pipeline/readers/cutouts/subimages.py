"""Subimage products: an HDU for every brick, band and kind (image, invvar, maskbits), put together to one field.

Each brick has a tangent point of its own, so that the pixel grids of two bricks meet at an angle and between the
pixels. The brick that covers most of the field is the frame and keeps its pixels; the others fill what lies beyond its
edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import map_coordinates

from pipeline.core.errors import BadInput, Reason
from pipeline.readers.cutouts.headers import (
    Field,
    centre_and_scale,
    check_bands,
    check_sides,
    layer_of,
    product_of,
)
from pipeline.readers.fits.files import read_image
from pipeline.readers.fits.headers import FitsSource, Hdu, image_sides, is_image
from pipeline.readers.stamps import MAX_SIDE

_ALIGNED = 0.01  # pixels; grids that agree to better line up
_PRODUCTS = ("image", "invvar", "maskbits")
_ONE_MASK = ""  # maskbits have no band


@dataclass
class _Piece:
    """What one brick shows of the field: pixels (H, W) by product and band, all of one shape."""

    header: fits.Header
    shape: tuple[int, int]
    pixels: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    @property
    def area(self) -> int:
        return self.shape[0] * self.shape[1] * sum(product == "image" for product, _ in self.pixels)


@dataclass(frozen=True)
class _Canvas:
    """The field in pixels of the frame: its shape, and where the first pixel of the frame lies in it (row, column)."""

    shape: tuple[int, int]
    row: int
    column: int


def read_subimage(source: FitsSource, primary: Hdu, first: Hdu, others: Iterator[Hdu]) -> Field:
    """Put the pieces of a subimage product together.

    Raises
    ------
    BadInput : a piece is damaged, too large or without a WCS; there is no image of g, r or z.
    """
    path = source.path
    pieces = _read_pieces(source, [first, *others])
    bands = list(dict.fromkeys(band for piece in pieces for product, band in piece.pixels if product == "image"))
    check_bands(path, bands, len(bands))
    pieces.sort(key=lambda piece: -piece.area)  # stable: of equals, the first in the file
    frame = pieces[0]
    ra, dec, pixscale = centre_and_scale(path, frame.header, *frame.shape[::-1])
    canvas, positions = _Canvas(frame.shape, 0, 0), []
    if len(pieces) > 1:
        canvas = _around(path, pieces)
        positions = [_pixel_positions(frame, piece, canvas) for piece in pieces[1:]]
        ra, dec, _ = centre_and_scale(path, _shifted(frame.header, canvas), *canvas.shape[::-1])
    planes = np.stack([_joined(pieces, positions, canvas, "image", band) for band in bands])
    weighted = any(product == "invvar" for piece in pieces for product, _ in piece.pixels)
    masked = ("maskbits", _ONE_MASK) in frame.pixels
    return Field(
        planes=planes,
        bands=bands,
        weightless=_weightless(pieces, positions, canvas, bands) if weighted else None,
        maskbits=_joined(pieces, positions, canvas, "maskbits", _ONE_MASK) if masked else None,
        ra=ra,
        dec=dec,
        pixscale=pixscale,
        layer=layer_of(primary.header if "VERSION" in primary.header else first.header, bands),
    )


def _read_pieces(source: FitsSource, hdus: list[Hdu]) -> list[_Piece]:
    """The pieces in the order of the file; HDUs of other kinds are skipped."""
    path = source.path
    known = [
        h for h in hdus if is_image(h) and "BRICK" in h.header and product_of(h) in ("image", "invvar", "maskbits")
    ]
    pieces: dict[str, _Piece] = {}
    for hdu in known:
        sides = image_sides(source, hdu)
        check_sides(path, sides, len(known))
        product, brick = product_of(hdu), str(hdu.header["BRICK"]).strip()
        key = product, _ONE_MASK if product == "maskbits" else str(hdu.header.get("BAND", "")).strip()
        piece = pieces.setdefault(brick, _Piece(hdu.header, (sides[1], sides[0])))
        if len(sides) != 2 or piece.shape != (sides[1], sides[0]) or key in piece.pixels:
            raise BadInput(
                Reason.WRONG_SHAPE,
                f"{path}: brick {brick} has {' '.join(key)} twice, or with sides {sides} beside {piece.shape[::-1]}",
            )
        _, pixels = read_image(source, hdu)
        if product == "maskbits" and pixels.dtype.kind not in "iu":
            continue  # unknown
        piece.pixels[key] = pixels
    return [piece for piece in pieces.values() if piece.area]


def _around(path: Path, pieces: list[_Piece]) -> _Canvas:
    """The smallest canvas of whole pixels of the frame that holds the corners of every piece."""
    frame = WCS(pieces[0].header, naxis=2)
    low, high = np.zeros(2), np.array(pieces[0].shape[::-1], dtype=np.float64)
    for piece in pieces[1:]:
        height, width = piece.shape
        corners = [[x, y] for x in (0, width - 1) for y in (0, height - 1)]
        ra_dec = WCS(piece.header, naxis=2).wcs_pix2world(corners, 0)
        there = np.rint(frame.wcs_world2pix(ra_dec, 0))
        if not np.isfinite(there).all():
            raise BadInput(Reason.NO_WCS, f"{path}: the pieces of the subimage lie on different parts of the sky")
        low, high = np.minimum(low, there.min(axis=0)), np.maximum(high, there.max(axis=0) + 1)
    width, height = high - low
    if max(width, height) > MAX_SIDE:
        raise BadInput(
            Reason.TOO_LARGE, f"{path}: the pieces of the subimage are {max(width, height):.0f} pixels apart"
        )
    return _Canvas((int(height), int(width)), int(-low[1]), int(-low[0]))


def _shifted(header: fits.Header, canvas: _Canvas) -> fits.Header:
    """The header of the frame, for the canvas."""
    shifted = header.copy()
    shifted["CRPIX1"] = float(header["CRPIX1"]) + canvas.column
    shifted["CRPIX2"] = float(header["CRPIX2"]) + canvas.row
    return shifted


def _pixel_positions(frame: _Piece, piece: _Piece, canvas: _Canvas) -> np.ndarray:
    """Row and column in `piece` of every pixel of the canvas: float64 (2, H, W)."""
    rows, columns = np.indices(canvas.shape).reshape(2, -1)
    ra_dec = WCS(frame.header, naxis=2).wcs_pix2world(np.stack([columns - canvas.column, rows - canvas.row], 1), 0)
    there = WCS(piece.header, naxis=2).wcs_world2pix(ra_dec, 0)
    return there[:, ::-1].T.reshape(2, *canvas.shape)


def _joined(pieces: list[_Piece], positions: list[np.ndarray], canvas: _Canvas, product: str, band: str) -> np.ndarray:
    """One product and band on the canvas: zero where no piece has it. Fluxes are interpolated, the rest is copied."""
    found = [piece.pixels.get((product, band)) for piece in pieces]
    kind = np.result_type(*(pixels.dtype for pixels in found if pixels is not None))
    joined = np.zeros(canvas.shape, dtype=kind)
    free = np.ones(canvas.shape, dtype=bool)
    if found[0] is not None:
        height, width = found[0].shape
        box = np.s_[canvas.row : canvas.row + height, canvas.column : canvas.column + width]
        joined[box], free[box] = found[0], False
    for pixels, position in zip(found[1:], positions, strict=True):
        if pixels is None:
            continue
        inside = np.array([(v >= 0) & (v < n) for v, n in zip(np.rint(position), pixels.shape, strict=True)]).all(
            axis=0
        )
        wanted = free & inside
        joined[wanted] = _sampled(pixels, position[:, wanted], smooth=product == "image")
        free &= ~inside
    return joined


def _sampled(pixels: np.ndarray, position: np.ndarray, *, smooth: bool) -> np.ndarray:
    """Pixels at rows and columns `position` (2, N): the nearest, or cubic splines; blank stays blank."""
    nearest_row, nearest_column = np.rint(position).astype(int)
    nearest = pixels[nearest_row, nearest_column]
    if not smooth or not len(nearest) or np.abs(position - np.rint(position)).max() < _ALIGNED:
        return nearest
    blank = ~np.isfinite(nearest) | (nearest == 0)
    values = map_coordinates(np.nan_to_num(pixels, posinf=0, neginf=0), position, order=3, mode="nearest")
    return np.where(blank, nearest, values)


def _weightless(pieces: list[_Piece], positions: list[np.ndarray], canvas: _Canvas, bands: list[str]) -> np.ndarray:
    """Pixels whose inverse variance is not positive, bool (band, H, W); none in a band that has no weights."""
    has = {band for piece in pieces for product, band in piece.pixels if product == "invvar"}
    return np.stack(
        [
            ~(_joined(pieces, positions, canvas, "invvar", band) > 0) if band in has else np.zeros(canvas.shape, bool)
            for band in bands
        ]
    )
