"""The geometry of a simulated block of bricks: where each lies on one large mosaic, and where it was exposed how often.

All bricks of a block are windows of one mosaic on one tangent plane, so that neighbours overlap pixel by pixel. (Real
bricks have a tangent point each, and their pixels do not line up.) Must not know about galaxies, catalogues or files.

Pixel coordinates are 0-based and those of the mosaic, whole numbers at the centres of pixels; x runs west, y north.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from pipeline.core.errors import UserError
from pipeline.simulation.galaxies.neighbours import NATIVE_PIXSCALE
from pipeline.tiles.brick_grid import STEP_DEG, bounds, brick_of, centre

SURVEY_SIDE = 3600  # pixels
EXPOSURES = 4  # of most of the sky, in each band
LINE_PX = 3.0  # no object of a catalogue lies nearer to the line between two bricks
_DEGREES = NATIVE_PIXSCALE / 3600.0  # per pixel

_DEFECTS = 201  # name of the random stream used here


@dataclass(frozen=True)
class Brick:
    """One brick of a block: its name, its place (column from the east, row from the south), its first pixel."""

    name: str
    column: int
    row: int
    x0: int
    y0: int


@dataclass(frozen=True)
class Defect:
    """A box of the sky with fewer exposures than the rest, in some bands; pixels from x0 to before x1."""

    x0: int
    x1: int
    y0: int
    y1: int
    bands: tuple[int, ...]
    exposures: int


@dataclass(frozen=True)
class Block:
    """A block of `columns` x `rows` bricks of `side` x `side` pixels.

    region : the brick in the middle, or right above and to the west of it; its centre is the tangent point.
    pitch : pixels from one brick to the next, in x and y. What a brick is wider than that overlaps its neighbours.
    """

    seed: int
    columns: int
    rows: int
    side: int
    pitch: tuple[float, float]
    region: str

    @cached_property
    def width(self) -> int:
        """Of the mosaic, pixels."""
        return round((self.columns - 1) * self.pitch[0]) + self.side

    @cached_property
    def height(self) -> int:
        """Of the mosaic, pixels."""
        return round((self.rows - 1) * self.pitch[1]) + self.side

    @cached_property
    def first_line(self) -> tuple[float, float]:
        """x and y of the lines where the first bricks' own areas begin."""
        return (self.side - self.pitch[0]) / 2.0 - 0.5, (self.side - self.pitch[1]) / 2.0 - 0.5

    @cached_property
    def bricks(self) -> list[Brick]:
        """All bricks, row by row from the south, in a row from the east."""
        ra, dec = centre(self.region)
        width = bounds(self.region)[1] - bounds(self.region)[0]
        return [
            Brick(
                brick_of(ra - (column - self.columns // 2) * width, dec + (row - self.rows // 2) * STEP_DEG),
                column,
                row,
                round(column * self.pitch[0]),
                round(row * self.pitch[1]),
            )
            for row in range(self.rows)
            for column in range(self.columns)
        ]

    @cached_property
    def wcs(self) -> WCS:
        """The mosaic's tangent plane, around the region's centre."""
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = centre(self.region)
        middle = ((self.side - 1) / 2.0, (self.side - 1) / 2.0)
        places = (self.columns // 2, self.rows // 2)
        wcs.wcs.crpix = [middle[axis] + places[axis] * self.pitch[axis] + 1.0 for axis in (0, 1)]
        wcs.wcs.cd = [[-_DEGREES, 0.0], [0.0, _DEGREES]]
        return wcs

    def sky(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Right ascension (0 to below 360) and declination of pixels, degrees."""
        ra, dec = self.wcs.all_pix2world(x, y, 0)
        return ra % 360.0, dec

    def brick_at(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Column and row of the brick in whose own area a pixel lies; beyond those of the block there is none."""
        column = np.floor((np.asarray(x) - self.first_line[0]) / self.pitch[0])
        row = np.floor((np.asarray(y) - self.first_line[1]) / self.pitch[1])
        return column.astype(np.int64), row.astype(np.int64)

    def covered(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which pixels lie in the own area of any of the bricks."""
        column, row = self.brick_at(x, y)
        return (column >= 0) & (column < self.columns) & (row >= 0) & (row < self.rows)

    def off_lines(
        self, x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The same places, moved where they lie within LINE_PX of a line between bricks."""
        moved = []
        for values, first, pitch in zip((x, y), self.first_line, self.pitch, strict=True):
            line = first + np.rint((values - first) / pitch) * pitch
            off = values - line
            side = np.where(off < 0, -1.0, 1.0)
            moved.append(np.where(np.abs(off) < LINE_PX, line + side * LINE_PX, values))
        return moved[0], moved[1]

    def own_box(self, brick: Brick) -> tuple[float, float, float, float]:
        """The lines around a brick's own area: x1, x2, y1, y2."""
        x1, y1 = self.first_line[0] + brick.column * self.pitch[0], self.first_line[1] + brick.row * self.pitch[1]
        return x1, x1 + self.pitch[0], y1, y1 + self.pitch[1]

    @cached_property
    def defects(self) -> list[Defect]:
        """Where exposures are missing: in every brick a gap of one exposure and a hole in one band.

        Every second brick also has a hole in all bands.
        """
        rng = np.random.default_rng([self.seed, _DEFECTS])
        gap, hole = max(self.side // 40, 4), max(self.side // 9, 16)
        found = []
        for number, brick in enumerate(self.bricks):
            x1, x2, y1, y2 = (round(line) for line in self.own_box(brick))
            x, y = int(rng.integers(x1, x2 - gap)), int(rng.integers(y1, y2 - gap))
            upright = number % 2 == 0
            found.append(Defect(*((x, x + gap, y1, y2) if upright else (x1, x2, y, y + gap)), (0, 1, 2), 1))
            for bands in ((number % 3,), (0, 1, 2))[: 1 + number % 2]:
                x, y = int(rng.integers(x1, x2 - hole)), int(rng.integers(y1, y2 - hole))
                found.append(Defect(x, x + hole, y, y + hole, bands, 0))
        return found

    def exposures(self, band: int, x0: int, y0: int, height: int, width: int) -> NDArray[np.int16]:
        """How often each pixel of a window was exposed in a band (0 g, 1 r, 2 z). int16 (height, width)."""
        plane = np.full((height, width), EXPOSURES, np.int16)
        for defect in self.defects:
            if band in defect.bands:
                rows = slice(max(defect.y0 - y0, 0), max(defect.y1 - y0, 0))
                columns = slice(max(defect.x0 - x0, 0), max(defect.x1 - x0, 0))
                np.minimum(plane[rows, columns], defect.exposures, out=plane[rows, columns])
        return plane

    def exposures_at(self, band: int, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int16]:
        """How often the pixels nearest to these places were exposed in a band. int16 (N,)."""
        column, row = np.rint(x), np.rint(y)
        number = np.full(len(column), EXPOSURES, np.int16)
        for defect in self.defects:
            if band in defect.bands:
                inside = (column >= defect.x0) & (column < defect.x1) & (row >= defect.y0) & (row < defect.y1)
                number[inside] = np.minimum(number[inside], defect.exposures)
        return number


def block_of(seed: int, columns: int, rows: int, *, side: int, overlap: int | None, region: str) -> Block:
    """A block of bricks on the survey's grid.

    overlap : pixels that neighbours share; None is the survey's share of the side (at 3600 about 165 pixels), and then
    bricks of 3600 pixels have their own areas where the grid has them.
    Raises UserError for a block that cannot be, or for one of 3600 pixel bricks whose lines stray from the grid.
    """
    if min(columns, rows) < 1:
        raise UserError(f"a block has 1 or more columns and rows of bricks, found {columns} x {rows}")
    if side < 64:
        raise UserError(f"side must be 64 pixels or more, found {side}")
    if overlap is not None and not 0 <= overlap < side // 2:
        raise UserError(f"overlap must be 0 to less than half the side of {side}, found {overlap}")
    shrink = np.cos(np.radians(centre(region)[1]))
    ra_width = bounds(region)[1] - bounds(region)[0]
    scale = side / SURVEY_SIDE / _DEGREES
    pitch = (ra_width * shrink * scale, STEP_DEG * scale) if overlap is None else (side - overlap, side - overlap)
    block = Block(seed, columns, rows, side, (float(pitch[0]), float(pitch[1])), region)
    if side == SURVEY_SIDE and overlap is None:
        _check_lines(block)
    return block


def _check_lines(block: Block) -> None:
    """Raise UserError if a corner of a brick's box lies LINE_PX or more from the lines of the mosaic."""
    for brick in block.bricks:
        ra1, ra2, dec1, dec2 = bounds(brick.name)
        x1, x2, y1, y2 = block.own_box(brick)
        corners = block.wcs.all_world2pix([ra2, ra1, ra2, ra1], [dec1, dec1, dec2, dec2], 0)
        strays = np.abs(np.array(corners) - [[x1, x2, x1, x2], [y1, y1, y2, y2]]).max()
        if strays >= LINE_PX:
            raise UserError(
                f"brick {brick.name} of a {block.columns} x {block.rows} block around {block.region} lies {strays:.1f} "
                f"pixels off the survey's grid; take a smaller block, or a region nearer to the equator"
            )
