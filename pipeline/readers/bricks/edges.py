"""The part of stamps that lies beyond the edge of their brick, from the neighbouring bricks that exist.

Neighbours overlap, but each has a tangent point of its own, so that their pixel grids meet at an angle and between the
pixels. Where two grids line up, pixels are copied; else they are interpolated (cubic splines). Only pixels that a stamp
needs are looked for; a brick's own pixels are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates

from pipeline.config.inputs import BrickSettings
from pipeline.core.errors import BadInput
from pipeline.readers.bricks.wcs import TangentWCS, read_wcs
from pipeline.readers.fits.files import plane
from pipeline.readers.stamps import BANDS
from pipeline.tiles.brick_files import neighbour_folders, plane_file

_ALIGNED = 0.01  # pixels; grids that agree to better line up
_NODE_STEP = 16  # pixels between positions that are computed; those between are interpolated to better than 1e-4
_RIM = 3  # pixels along the edge of a neighbour where a spline is not good; another neighbour has them, or none
_SPLINE_MARGIN = 12  # pixels around, so that a spline does not feel where its data end


@dataclass(frozen=True)
class Window:
    """The pixels of a stamp in its brick: `side` rows from `y0`, columns from `x0`; `binned` ones averaged by fours."""

    y0: int
    x0: int
    side: int
    binned: bool = False

    def slices(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """The part of a plane of this shape that lies within the window."""
        y0, x0 = max(self.y0, 0), max(self.x0, 0)
        y1, x1 = min(self.y0 + self.side, shape[0]), min(self.x0 + self.side, shape[1])
        return slice(y0, max(y1, y0)), slice(x0, max(x1, x0))


@dataclass(frozen=True)
class Margins:
    """Pixels to add to a brick beyond its first and last row (south, north) and column (east, west)."""

    south: int = 0
    north: int = 0
    east: int = 0
    west: int = 0


def margins_of(windows: Sequence[Window], shape: tuple[int, int]) -> Margins:
    """How far windows reach beyond images of this shape."""
    height, width = shape
    return Margins(
        south=max((-w.y0 for w in windows if w.y0 < 0), default=0),
        north=max((w.y0 + w.side - height for w in windows if w.y0 + w.side > height), default=0),
        east=max((-w.x0 for w in windows if w.x0 < 0), default=0),
        west=max((w.x0 + w.side - width for w in windows if w.x0 + w.side > width), default=0),
    )


def complete_edges(
    flux: np.ndarray, folder: Path, brick: str, frame: TangentWCS, windows: Sequence[Window], settings: BrickSettings
) -> list[str]:
    """Fill what windows need of the margins of `flux` (3, H, W), in place; returns remarks about damaged neighbours."""
    margins, remarks = margins_of(windows, frame.shape), []
    needed = np.zeros(flux.shape[1:], dtype=bool)
    for window in windows:
        y0, x0 = window.y0 + margins.south, window.x0 + margins.east
        needed[y0 : y0 + window.side, x0 : x0 + window.side] = True
    for name, place in neighbour_folders(folder, brick).items():
        for own, band in zip(flux, BANDS, strict=True):
            path = plane_file(place, name, "image", band)
            try:
                if path is not None:  # each band has a header of its own, which may be that of another brick
                    _fill(own, needed, path, read_wcs(path, name, settings), frame, margins, settings.image_hdu)
            except BadInput as error:
                remarks.append(f"edges are not completed from brick {name}: {error.detail}")
    return remarks


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
    for strip in (
        _Strip(-margins.south, 0, left, right),
        _Strip(height, height + margins.north, left, right),
        _Strip(0, height, left, 0),
        _Strip(0, height, width, right),
    ):
        if strip.y1 > strip.y0 and strip.x1 > strip.x0:
            yield strip


def _fill(
    own: np.ndarray, needed: np.ndarray, path: Path, other: TangentWCS, frame: TangentWCS, margins: Margins, hdu: str
) -> None:
    """Fill what is needed and still blank in the margins of one band from one neighbour's image."""
    for strip in _strips(frame.shape, margins):
        box = (
            slice(strip.y0 + margins.south, strip.y1 + margins.south),
            slice(strip.x0 + margins.east, strip.x1 + margins.east),
        )
        rows, columns = np.nonzero(needed[box] & (own[box] == 0))
        if not len(rows):
            continue
        row, column, inside = _between(strip, rows, columns, frame, other)
        if inside.any():
            pixels = _resampled(path, row[inside], column[inside], other.shape, hdu)
            own[box][rows[inside], columns[inside]] = pixels


def _between(
    strip: _Strip, rows: np.ndarray, columns: np.ndarray, frame: TangentWCS, other: TangentWCS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column in a neighbour of pixels of a strip, float64 (n,), and which of them it has, bool (n,)."""
    y, x = _nodes(strip.y0, strip.y1), _nodes(strip.x0, strip.x1)
    grid_x, grid_y = np.meshgrid(x, y)
    ra, dec = frame.wcs.wcs_pix2world(grid_x.ravel(), grid_y.ravel(), 0)
    nodes = [values.reshape(grid_x.shape) for values in other.wcs.wcs_world2pix(ra, dec, 0)]
    at = [(rows + strip.y0 - y[0]) / (y[1] - y[0]), (columns + strip.x0 - x[0]) / (x[1] - x[0])]
    column, row = (map_coordinates(values, at, order=1, mode="nearest") for values in nodes)
    height, width = other.shape
    return row, column, (column > -0.5) & (column < width - 0.5) & (row > -0.5) & (row < height - 0.5)


def _nodes(low: int, high: int) -> np.ndarray:
    """Evenly spaced positions from the first to the last of the pixels `low` to `high`: float64, two or more."""
    count = max(2, -(-(high - low) // _NODE_STEP) + 1)
    return np.linspace(low, max(high - 1, low + 1), count)


def _resampled(path: Path, row: np.ndarray, column: np.ndarray, shape: tuple[int, int], hdu: str) -> np.ndarray:
    """A neighbour's pixels at these places within it, float32 (n,); zero where the nearest one is blank."""
    height, width = shape
    near_row, near_column = np.rint(row).astype(int), np.rint(column).astype(int)
    aligned = max(abs(column - near_column).max(), abs(row - near_row).max()) < _ALIGNED
    margin = 0 if aligned else _SPLINE_MARGIN
    y0, y1 = max(near_row.min() - margin, 0), min(near_row.max() + margin + 1, height)
    x0, x1 = max(near_column.min() - margin, 0), min(near_column.max() + margin + 1, width)
    window = (slice(int(y0), int(y1)), slice(int(x0), int(x1)))
    pixels = np.nan_to_num(plane(path, hdu, window)[1].astype(np.float32), posinf=0, neginf=0)
    nearest = pixels[near_row - y0, near_column - x0]
    if aligned:
        return np.asarray(nearest)
    smooth = map_coordinates(pixels, [row - y0, column - x0], order=3, mode="nearest")
    rim = (row < _RIM) | (row > height - 1 - _RIM) | (column < _RIM) | (column > width - 1 - _RIM)
    return np.where((nearest == 0) | rim, 0, smooth).astype(np.float32)
