"""Paints a block of bricks: its light through the seeing, stars that saturate, noise by exposures; strip by strip.

The mosaic lies in a file and is written from south to north; in memory is a strip of its rows. Must not know about
bricks, catalogues or FITS.

Values are multiples of a power of two (STEP), so that they survive compression bit by bit; exactly zero means that
there are no pixels, as in the survey.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pipeline.simulation.bricks.block import EXPOSURES, Block
from pipeline.simulation.bricks.scene import LARGE_REACH_PX, BrightStars, Scene, target_stream
from pipeline.simulation.galaxies.layers import DrawingFrame
from pipeline.simulation.galaxies.neighbours import (
    BLOB_HALF_PX,
    NATIVE_PIXSCALE,
    BackgroundGalaxies,
    add_points,
    background_light,
)
from pipeline.simulation.stamps import MOFFAT_BETA, SKY_SIGMA, SOURCE_VARIANCE, blur, draw_galaxy, half_box

CELL_PX = 512  # the PSF is applied, and noise drawn, by cells of this side
MARGIN_PX = 32  # with a margin: light from just outside is smeared in, the FFT's wrap-around kept out
MAX_HALF_PX = half_box(LARGE_REACH_PX[1])
STEP = np.array([2.0**-10, 2.0**-9, 2.0**-8], np.float32)  # nanomaggies in g, r, z; about a quarter of the noise
SATURATION = np.array([32.0, 32.0, 64.0], np.float32)  # nanomaggies in a pixel: stars brighter than about 14.5
EXPOSURE_INVVAR = np.round(1.0 / SKY_SIGMA**2 / EXPOSURES / 4.0) * np.float32(4.0)  # of one exposure, 1 / nanomaggies^2
HALO_SHARE, HALO_PX = 0.04, 8.0  # of a star's light that lies in its wide wings, and their core

_NOISE = 221  # name of the random stream used here

# A painted target: its flux in nanomaggies (g, r, z), half-light radius (arcsec, major axis) and the ellipticity
# components of the Tractor: (1 - b/a) / (1 + b/a) times the cosine and sine of twice the position angle, from north
# to east.
PAINTED = np.dtype([("flux", "f4", 3), ("radius", "f4"), ("e1", "f4"), ("e2", "f4")])


class _Canvas:
    """Light before the PSF, of the rows at work and of those above that galaxies reach into."""

    def __init__(self, block: Block) -> None:
        cells = -(-block.width // CELL_PX)
        rows = CELL_PX + 2 * MARGIN_PX + 2 * MAX_HALF_PX + 2
        self.light = np.zeros((3, rows, cells * CELL_PX + 2 * MARGIN_PX), np.float32)
        self.first_row = -MARGIN_PX

    def add(self, image: NDArray[np.floating], column: int, row: int) -> None:
        """Add an image (3, h, w) whose first pixel lies at (column, row) of the mosaic, as far as it overlaps."""
        x, y = column + MARGIN_PX, row - self.first_row
        _, height, width = self.light.shape
        x1, y1 = max(x, 0), max(y, 0)
        x2, y2 = min(x + image.shape[2], width), min(y + image.shape[1], height)
        if x1 < x2 and y1 < y2:
            self.light[:, y1:y2, x1:x2] += image[:, y1 - y : y2 - y, x1 - x : x2 - x]

    def move_up(self) -> None:
        """Forget the lowest cell's rows."""
        kept = self.light.shape[1] - CELL_PX
        self.light[:, :kept] = self.light[:, CELL_PX:].copy()
        self.light[:, kept:] = 0.0
        self.first_row += CELL_PX


def paint(scene: Scene, path: Path, on_progress: Callable[[int], None]) -> NDArray[np.void]:
    """Paint a scene into a new .npy file: float32 (3, H, W), nanomaggies in g, r, z, row 0 south, column 0 east.

    Returns what was painted of each target, PAINTED (N,). on_progress is called with the number of targets drawn since
    its last call.
    """
    block = scene.block
    open_memmap(path, "w+", np.float32, (3, block.height, block.width)).flush()
    painted = np.zeros(len(scene.targets.x), PAINTED)
    canvas = _Canvas(block)
    done_row = -np.inf
    for y0 in range(0, block.height, CELL_PX):
        until = y0 + CELL_PX + MARGIN_PX + MAX_HALF_PX
        drawn = _draw(scene, canvas, painted, done_row, until)
        done_row = until
        rows = min(CELL_PX, block.height - y0)
        strip = np.concatenate([_cell(scene, canvas, x0, y0) for x0 in range(0, block.width, CELL_PX)], axis=2)
        mosaic = open_memmap(path, "r+")  # opened again for each strip: pages of a mapped file count as memory in use
        mosaic[:, y0 : y0 + rows] = strip[:, :rows, : block.width]
        del mosaic
        canvas.move_up()
        on_progress(drawn)
    return painted


def _draw(scene: Scene, canvas: _Canvas, painted: NDArray[np.void], after: float, until: float) -> int:
    """Draw everything whose centre lies in rows from `after` to before `until`; returns the number of targets."""
    targets, stars, background = scene.targets, scene.stars, scene.background
    chosen = np.flatnonzero((targets.y >= after) & (targets.y < until))
    for index in chosen:
        painted[index] = _draw_target(scene, canvas, int(index))
    now = (stars.y >= after) & (stars.y < until)
    add_points(canvas.light, stars.x[now] + MARGIN_PX, stars.y[now] - canvas.first_row, stars.flux[:, now])
    now = (background.y >= after) & (background.y < until)
    _draw_background_galaxies(canvas, BackgroundGalaxies(*(values[..., now] for values in vars(background).values())))
    return len(chosen)


def _draw_target(scene: Scene, canvas: _Canvas, index: int) -> tuple[NDArray[np.float32], float, float, float]:
    """Draw one galaxy into its box; returns a row of PAINTED."""
    rng, class_id, reach = target_stream(scene.block.seed, index)
    half = half_box(reach)
    column, row = round(scene.targets.x[index]), round(scene.targets.y[index])
    side = np.arange(-half, half + 1, dtype=np.float32)
    off_x, off_y = scene.targets.x[index] - column, scene.targets.y[index] - row
    x, y = np.meshgrid(side - np.float32(off_x), side - np.float32(off_y))
    frame = DrawingFrame(x, y, reach)
    image, _ = draw_galaxy(rng, frame, class_id, NATIVE_PIXSCALE)
    canvas.add(image, column - half, row - half)
    return image.sum(axis=(1, 2)), *_shape(image[1], frame)


def _shape(image: NDArray[np.float32], frame: DrawingFrame) -> tuple[float, float, float]:
    """Half-light radius (arcsec, major axis) and ellipticity components of a galaxy, from its second moments."""
    total = float(image.sum())
    xx, yy, xy = (float((image * product).sum()) / total for product in (frame.x**2, frame.y**2, frame.x * frame.y))
    spread, angle = np.hypot(0.5 * (xx - yy), xy), 0.5 * np.arctan2(2.0 * xy, xx - yy)
    ratio = float(np.sqrt(max((xx + yy) / 2.0 - spread, 0.05) / ((xx + yy) / 2.0 + spread)))
    along, across = frame.axes(float(angle))
    radius = np.hypot(along, across / np.float32(ratio))
    inside = np.cumsum(np.bincount((2.0 * radius).astype(np.int64).ravel(), image.ravel()))  # in rings of half a pixel
    half_light = float(np.interp(0.5 * total, inside, 0.5 * (np.arange(len(inside)) + 1.0)))
    e1, e2 = ellipticity(np.array(ratio), np.array(angle))
    return half_light * NATIVE_PIXSCALE, float(e1), float(e2)


def ellipticity(
    ratio: NDArray[np.float64], angle: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The Tractor's ellipticity components of ellipses of these axis ratios and angles (radians, from west to north).

    A major axis at `angle` lies at the position angle 90 degrees + angle, from north to east, which turns both signs.
    """
    size = (1.0 - ratio) / (1.0 + ratio)
    return -size * np.cos(2.0 * angle), -size * np.sin(2.0 * angle)


def _draw_background_galaxies(canvas: _Canvas, background: BackgroundGalaxies) -> None:
    for start in range(0, len(background.x), 256):  # by a few: 441 pixels each, in several arrays of float64
        some = BackgroundGalaxies(*(values[..., start : start + 256] for values in vars(background).values()))
        light, _, _ = background_light(some)
        corner_x, corner_y = np.floor(some.x).astype(int) - BLOB_HALF_PX, np.floor(some.y).astype(int) - BLOB_HALF_PX
        for index, blob in enumerate(light):
            canvas.add(some.flux[:, index, None, None] * blob, int(corner_x[index]), int(corner_y[index]))


def _cell(scene: Scene, canvas: _Canvas, x0: int, y0: int) -> NDArray[np.float32]:
    """A finished cell of the mosaic whose first pixel is (x0, y0). float32 (3, CELL_PX, CELL_PX), nanomaggies."""
    window = canvas.light[:, : CELL_PX + 2 * MARGIN_PX, x0 : x0 + CELL_PX + 2 * MARGIN_PX]
    image = blur(window, scene.seeing_px)[:, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    _add_bright_stars(image, scene.bright, scene.seeing_px, x0, y0)
    exposures = np.stack([scene.block.exposures(band, x0, y0, CELL_PX, CELL_PX) for band in range(3)])
    variance = np.maximum(image, np.float32(0.0)) * (SOURCE_VARIANCE * np.float32(EXPOSURES))[:, None, None]
    variance += (1.0 / EXPOSURE_INVVAR)[:, None, None]
    variance /= np.maximum(exposures, 1)
    rng = np.random.default_rng([scene.block.seed, _NOISE, y0 // CELL_PX, x0 // CELL_PX])
    image = image + rng.standard_normal(image.shape, np.float32) * np.sqrt(variance)
    return np.where(exposures > 0, _quantised(image), np.float32(0.0))


def _quantised(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clipped at saturation and rounded to whole steps, never to zero: that would say that there are no pixels."""
    steps = np.rint(np.minimum(image, SATURATION[:, None, None]) / STEP[:, None, None])
    even = np.indices(steps.shape).sum(axis=0) % 2 * 2 - 1  # 1 and -1 in turn, which leaves the mean where it is
    return np.where(steps == 0.0, even, steps).astype(np.float32) * STEP[:, None, None]


def _add_bright_stars(
    image: NDArray[np.float32], stars: BrightStars, fwhm_px: NDArray[np.float64], x0: int, y0: int
) -> None:
    """Add stars with their wide wings to a cell (3, N, N), in place, as far as one and a half mask radii."""
    extents = 1.5 * stars.mask_radius
    for x, y, extent, flux in zip(stars.x - x0, stars.y - y0, extents, stars.flux.T, strict=True):
        columns = np.arange(max(int(x - extent), 0), min(int(x + extent) + 1, image.shape[2]), dtype=np.float32)
        rows = np.arange(max(int(y - extent), 0), min(int(y + extent) + 1, image.shape[1]), dtype=np.float32)
        if len(columns) and len(rows):
            square = (columns - np.float32(x)) ** 2 + ((rows - np.float32(y)) ** 2)[:, None]
            box = image[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
            for band in range(3):
                box[band] += _star_light(square, float(fwhm_px[band]), float(flux[band]))


def _star_light(square: NDArray[np.float32], fwhm_px: float, flux: float) -> NDArray[np.float32]:
    """A star's core (Moffat) and halo, which falls with the third power of the distance.

    square : float32 (H, W), distance squared, pixels. Returns float32 (H, W), of sum `flux` over the whole plane.
    """
    core = fwhm_px / (2.0 * np.sqrt(2.0 ** (1.0 / MOFFAT_BETA) - 1.0))
    inner = np.float32((1.0 - HALO_SHARE) * flux * (MOFFAT_BETA - 1.0) / (np.pi * core**2))
    outer = np.float32(HALO_SHARE * flux / (2.0 * np.pi * HALO_PX**2))
    moffat = (np.float32(1.0) + square * np.float32(core**-2)) ** np.float32(-MOFFAT_BETA)
    halo = (np.float32(1.0) + square * np.float32(HALO_PX**-2)) ** np.float32(-1.5)
    return inner * moffat + outer * halo
