"""The pixels of a brick: one decompression a band, with margins that are completed from neighbouring bricks.

Neighbours overlap, but each has a tangent point of its own, so that their pixel grids meet at an angle and between the
pixels. Where two grids line up, pixels are copied; else they are interpolated (cubic splines). The brick's own pixels
are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from scipy.ndimage import map_coordinates

from pipeline.bricks import neighbour_folders, plane_file
from pipeline.errors import BadInput, Reason, parsing
from pipeline.readers.fits_files import plane, plane_header
from pipeline.readers.settings import BrickSettings
from pipeline.stamps import BANDS

_ALIGNED = 0.01  # pixels; grids that agree to better line up
_NODE_STEP = 16  # pixels between positions that are computed; those between are interpolated to better than 1e-4
_FAR = 0.9  # cosine of the distance from which a position is not looked for in a brick
_SPLINE_MARGIN = 12  # pixels around, so that a spline does not feel where its data end


@dataclass(frozen=True)
class Margins:
    """Pixels to add to a brick beyond its first and last row (south, north) and column (east, west)."""

    south: int = 0
    north: int = 0
    east: int = 0
    west: int = 0


@dataclass(frozen=True)
class BrickImages:
    """The images of a brick.

    `flux` : float32 (3, H, W), bands g, r, z with margins, zeros where there are no pixels; pixel (0, 0) of the brick
    is at (`margins.south`, `margins.east`). `present` says which bands there are, `remarks` what is amiss.
    """

    header: fits.Header
    shape: tuple[int, int]
    flux: np.ndarray
    margins: Margins
    present: tuple[bool, ...]
    remarks: list[str]


@dataclass(frozen=True)
class Frame:
    """Where the pixels of a brick are on the sky. `pixscale` in arcsec, `shape` (rows, columns)."""

    header: fits.Header
    wcs: WCS
    shape: tuple[int, int]
    pixscale: float

    def pixels(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Column and row (float64, 0-based) of positions in degrees; NaN far from the brick."""
        ra0, dec0 = np.radians(self.wcs.wcs.crval)
        cosine = np.sin(np.radians(dec)) * np.sin(dec0)
        cosine += np.cos(np.radians(dec)) * np.cos(dec0) * np.cos(np.radians(ra) - ra0)
        column, row = self.wcs.wcs_world2pix(ra, dec, 0) if len(ra) else (np.empty(0), np.empty(0))
        return np.where(cosine > _FAR, column, np.nan), np.where(cosine > _FAR, row, np.nan)

    def holds(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """Whether each position lies within the images: bool (N,)."""
        column, row = self.pixels(ra, dec)
        height, width = self.shape
        return np.asarray((column >= -0.5) & (column < width - 0.5) & (row >= -0.5) & (row < height - 0.5))


def read_frame(path: Path, brick: str, settings: BrickSettings) -> Frame:
    """Where the pixels of an image of a brick are.

    Raises
    ------
    BadInput : the file can not be read, has no celestial WCS, or is that of another brick.
    """
    header, shape = plane_header(path, settings.image_hdu)
    named = _brick_in(header, brick)
    if named != brick:
        raise BadInput(Reason.BRICK_MISMATCH, f"{path}: its header says brick {named}, its name {brick}; copy it again")
    if not str(header.get("CTYPE1", "")).startswith("RA---") or "CRVAL1" not in header:
        raise BadInput(Reason.NO_WCS, f"{path}: no celestial WCS in the header (CTYPE1, CRVAL1, CD1_1 …)")
    with parsing(path, "a WCS"):
        wcs = WCS(header, naxis=2)
        pixscale = float(np.mean(proj_plane_pixel_scales(wcs))) * 3600
        middle = wcs.wcs_pix2world([[shape[1] / 2, shape[0] / 2]], 0)
    if not (np.isfinite(middle).all() and 0 < pixscale < np.inf):
        raise BadInput(Reason.NO_WCS, f"{path}: the WCS gives no positions ({pixscale} arcsec a pixel)")
    return Frame(header, wcs, shape, pixscale)


def _brick_in(header: fits.Header, brick: str) -> str:
    """The brick that a header names: BRICK, in older releases BRICKNAM; `brick` where it names none."""
    return str(header.get("BRICK", header.get("BRICKNAM", brick))).strip()


def find_frame(folder: Path, brick: str, settings: BrickSettings) -> Frame:
    """The frame that most of the brick's images have, the first where they disagree; only headers are read.

    Raises
    ------
    BadInput : there is no image of g, r or z, or none can be read.
    """
    frames: list[Frame] = []
    bad: BadInput | None = None
    for band in BANDS:
        path = plane_file(folder, brick, "image", band)
        if path is None:
            continue
        try:
            frames.append(read_frame(path, brick, settings))
        except BadInput as error:
            bad = error
    if frames:
        shapes = [frame.shape for frame in frames]
        return max(frames, key=lambda frame: shapes.count(frame.shape))
    raise bad or BadInput(
        Reason.WRONG_BANDS, f"{folder}: no image of brick {brick} in any of the bands {', '.join(BANDS)}; add them"
    )


def read_images(folder: Path, brick: str, frame: Frame, margins: Margins, settings: BrickSettings) -> BrickImages:
    """All bands of a brick, a band that is missing or damaged as zeros with a remark.

    Raises
    ------
    BadInput : no band can be read.
    """
    height, width = frame.shape
    flux = np.zeros(
        (len(BANDS), height + margins.south + margins.north, width + margins.east + margins.west), np.float32
    )
    present, remarks = [], []
    bad: BadInput | None = None
    for own, band in zip(flux, BANDS, strict=True):
        path = plane_file(folder, brick, "image", band)
        try:
            if path is not None:
                own[margins.south : margins.south + height, margins.east : margins.east + width] = _plane(
                    path, brick, frame, settings
                )
        except BadInput as error:
            bad = error
            remarks.append(f"band {band} is left out: {error.detail}")
            path = None
        present.append(path is not None)
    if not any(present):
        raise bad or BadInput(Reason.WRONG_BANDS, f"{folder}: no image of brick {brick} in g, r or z")
    if settings.complete_edges and margins != Margins():
        remarks += _complete(flux, folder, brick, frame, margins, settings)
    return BrickImages(frame.header, frame.shape, flux, margins, tuple(present), remarks)


def read_aside(
    folder: Path, brick: str, product: str, band: str, frame: Frame, hdu: str
) -> tuple[np.ndarray | None, str]:
    """A plane that goes with the images (invvar, nexp, maskbits, psfsize), (H, W), or None; and a remark if damaged."""
    path = plane_file(folder, brick, product, band)
    if path is None:
        return None, ""
    try:
        _, pixels = plane(path, hdu)
        if pixels.shape != frame.shape:
            raise BadInput(Reason.WRONG_SHAPE, f"{path}: {pixels.shape}, the images are {frame.shape}")
        return pixels, ""
    except BadInput as error:
        return None, f"{product} {band} is left out: {error.detail}".replace("  ", " ")


def _plane(path: Path, brick: str, frame: Frame, settings: BrickSettings) -> np.ndarray:
    header, pixels = plane(path, settings.image_hdu)
    named = _brick_in(header, brick)
    if pixels.shape != frame.shape or named != brick:
        raise BadInput(
            Reason.BRICK_MISMATCH,
            f"{path}: brick {named}, {pixels.shape} pixels; the others are brick {brick}, {frame.shape}; copy it again",
        )
    with np.errstate(over="ignore"):
        return np.asarray(pixels, dtype=np.float32)


@dataclass(frozen=True)
class _Strip:
    """A part of the margin in pixels of the brick: rows y0 to y1, columns x0 to x1."""

    y0: int
    y1: int
    x0: int
    x1: int


def _strips(shape: tuple[int, int], margins: Margins) -> Iterator[_Strip]:
    height, width = shape
    left, right = -margins.east, width + margins.west
    yield _Strip(-margins.south, 0, left, right)
    yield _Strip(height, height + margins.north, left, right)
    yield _Strip(0, height, left, 0)
    yield _Strip(0, height, width, right)


def _complete(
    flux: np.ndarray, folder: Path, brick: str, frame: Frame, margins: Margins, settings: BrickSettings
) -> list[str]:
    """Fill the margins, in place, from the neighbours that are there; returns remarks about damaged ones."""
    remarks = []
    for name, place in neighbour_folders(folder, brick).items():
        for own, band in zip(flux, BANDS, strict=True):
            path = plane_file(place, name, "image", band)
            try:
                if path is not None:  # each band has a header of its own, which may be that of another brick
                    _fill(own, path, read_frame(path, name, settings), frame, margins, settings.image_hdu)
            except BadInput as error:
                remarks.append(f"edges are not completed from brick {name}: {error.detail}")
    return remarks


def _fill(own: np.ndarray, path: Path, other: Frame, frame: Frame, margins: Margins, hdu: str) -> None:
    """Fill what is still blank in the margins of one band from one neighbour's image."""
    for strip in _strips(frame.shape, margins):
        where = _between(strip, frame, other)
        if where is None:
            continue
        target = own[
            strip.y0 + margins.south : strip.y1 + margins.south, strip.x0 + margins.east : strip.x1 + margins.east
        ]
        np.copyto(target, _resampled(path, where, other.shape, hdu), where=(target == 0) & where.inside)


@dataclass(frozen=True)
class _Places:
    """Columns and rows in a neighbour of the pixels of a strip, float64 (H, W), and which of them it has, bool."""

    column: np.ndarray
    row: np.ndarray
    inside: np.ndarray


def _between(strip: _Strip, frame: Frame, other: Frame) -> _Places | None:
    """Where the pixels of a strip are in a neighbour; None where it has none of them."""
    if strip.y1 <= strip.y0 or strip.x1 <= strip.x0:
        return None
    y, x = _nodes(strip.y0, strip.y1), _nodes(strip.x0, strip.x1)
    grid_x, grid_y = np.meshgrid(x, y)
    ra, dec = frame.wcs.wcs_pix2world(grid_x.ravel(), grid_y.ravel(), 0)
    nodes = [values.reshape(grid_x.shape) for values in other.wcs.wcs_world2pix(ra, dec, 0)]
    height, width = other.shape
    if nodes[0].max() < 0 or nodes[0].min() > width - 1 or nodes[1].max() < 0 or nodes[1].min() > height - 1:
        return None
    steps = [
        (np.arange(low, high) - axis[0]) / (axis[1] - axis[0])
        for low, high, axis in ((strip.y0, strip.y1, y), (strip.x0, strip.x1, x))
    ]
    at = np.meshgrid(*steps, indexing="ij")
    column, row = (map_coordinates(values, at, order=1, mode="nearest") for values in nodes)
    inside = (column > -_ALIGNED) & (column < width - 1 + _ALIGNED)  # beyond the last centres would be extrapolated
    inside &= (row > -_ALIGNED) & (row < height - 1 + _ALIGNED)
    return _Places(column, row, inside) if inside.any() else None


def _nodes(low: int, high: int) -> np.ndarray:
    """Evenly spaced positions from the first to the last of the pixels `low` to `high`: float64, two or more."""
    count = max(2, -(-(high - low) // _NODE_STEP) + 1)
    return np.linspace(low, max(high - 1, low + 1), count)


def _resampled(path: Path, where: _Places, shape: tuple[int, int], hdu: str) -> np.ndarray:
    """A neighbour's pixels at these places, float32 (H, W); zero outside and where the nearest one is blank."""
    height, width = shape
    row, column, inside = where.row, where.column, where.inside
    near_row, near_column = np.rint(row).astype(int), np.rint(column).astype(int)
    aligned = max(abs(column - near_column)[inside].max(), abs(row - near_row)[inside].max()) < _ALIGNED
    margin = 0 if aligned else _SPLINE_MARGIN
    y0, y1 = max(near_row[inside].min() - margin, 0), min(near_row[inside].max() + margin + 1, height)
    x0, x1 = max(near_column[inside].min() - margin, 0), min(near_column[inside].max() + margin + 1, width)
    window = (slice(int(y0), int(y1)), slice(int(x0), int(x1)))
    pixels = np.nan_to_num(plane(path, hdu, window)[1].astype(np.float32), posinf=0, neginf=0)
    rows = np.clip(near_row - y0, 0, pixels.shape[0] - 1)
    columns = np.clip(near_column - x0, 0, pixels.shape[1] - 1)
    nearest = np.where(inside, pixels[rows, columns], 0)
    if aligned:
        return nearest
    smooth = map_coordinates(pixels, [row - y0, column - x0], order=3, mode="nearest")
    return np.where(nearest == 0, 0, smooth).astype(np.float32)
