"""What a simulated block of bricks holds: which galaxies and stars lie where, before any light is drawn.

Everything follows from the block's seed; galaxy k is the same galaxy whatever else is drawn. Must not know about
pixels' noise, catalogues or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import UserError
from pipeline.simulation.bricks.block import SURVEY_SIDE, Block
from pipeline.simulation.galaxies.classes import RECIPES
from pipeline.simulation.galaxies.neighbours import (
    NATIVE_PIXSCALE,
    BackgroundGalaxies,
    Stars,
    draw_background_galaxies,
    draw_stars,
    magnitudes,
    nanomaggies,
    star_bands,
)
from pipeline.simulation.stamps import MEDIAN_SEEING, draw_reach

CLOSEST_PX = 84.0  # targets lie 20 arcsec apart, or more, also after they were moved off the lines between bricks
LARGE_SHARE = 0.04  # of the targets; a stamp of twice the field of view suits them
LARGE_REACH_PX = (116.0, 170.0)
BRIGHTEST_BACKGROUND_GALAXY = (
    19.3  # r of background galaxies, fainter than the limit for morphology whatever the extinction
)
BRIGHT_MAG, MEDIUM_MAG = 13.0, 16.0  # the survey masks stars brighter than these in two ways
BRIGHT_STARS, MEDIUM_STARS = 3, 8  # in a brick of 3600 pixels
CLUSTER_STARS = 60  # on bricks of 3600 pixels

_TARGETS, _PLACES, _FIELD, _BRIGHT, _CLUSTER, _SEEING = range(211, 217)  # names of the random streams used here


@dataclass(frozen=True)
class SceneGalaxies:
    """The galaxies to classify. x, y : float64 (N,), pixels; class_id : int16 (N,); reach : float64 (N,), pixels."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    class_id: NDArray[np.int16]
    reach: NDArray[np.float64]

    @property
    def large(self) -> NDArray[np.bool_]:
        """Which are large galaxies. bool (N,)."""
        return self.reach >= LARGE_REACH_PX[0]


@dataclass(frozen=True)
class BrightStars:
    """Stars brighter than MEDIUM_MAG. x, y : float64 (N,), pixels; mag : float64 (N,), r; flux : float64 (3, N)."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    mag: NDArray[np.float64]
    flux: NDArray[np.float64]

    @property
    def mask_radius(self) -> NDArray[np.float64]:
        """Radius of the survey's mask MEDIUM, pixels; that of BRIGHT is the half. float64 (N,).

        The relation of DR9: 1630 arcsec x 1.396^-mag.
        """
        return 1630.0 * 1.396**-self.mag / NATIVE_PIXSCALE


@dataclass(frozen=True)
class Scene:
    """Everything on a block. seeing_px : float64 (3,), FWHM in g, r, z, tenths of a pixel.

    cluster : x, y and radius in pixels of the patch masked as a star cluster; its stars are among `stars`.
    """

    block: Block
    seeing_px: NDArray[np.float64]
    targets: SceneGalaxies
    stars: Stars
    background: BackgroundGalaxies
    bright: BrightStars
    cluster: tuple[float, float, float]

    @cached_property
    def seeing(self) -> NDArray[np.float64]:
        """FWHM in g, r, z, arcsec. float64 (3,)."""
        return self.seeing_px * NATIVE_PIXSCALE


def scene_of(block: Block, galaxies: int) -> Scene:
    """Place `galaxies` targets and everything else on a block; raises UserError if so many have no room."""
    rng = np.random.default_rng([block.seed, _SEEING])
    seeing = np.clip(MEDIAN_SEEING * rng.normal(1.0, 0.08) + rng.normal(0.0, 0.06, 3), 1.0, 1.7)
    field = np.random.default_rng([block.seed, _FIELD])
    stars = draw_stars(field, block.height, block.width, NATIVE_PIXSCALE)
    background = draw_background_galaxies(
        field, block.height, block.width, NATIVE_PIXSCALE, BRIGHTEST_BACKGROUND_GALAXY
    )
    cluster, members = _cluster(block)
    joined = Stars(
        *block.off_lines(np.concatenate([stars.x, members.x]), np.concatenate([stars.y, members.y])),
        np.concatenate([stars.flux, members.flux], axis=1),
    )
    moved = BackgroundGalaxies(
        *block.off_lines(background.x, background.y),
        background.flux,
        background.scale,
        background.angle,
        background.ratio,
    )
    seeing_px = np.round(seeing / NATIVE_PIXSCALE, 1)
    targets = _targets(block, galaxies)
    return Scene(block, seeing_px, targets, joined, moved, _bright_stars(block, targets), cluster)


def target_stream(seed: int, index: int) -> tuple[np.random.Generator, int, float]:
    """Class and reach (pixels) of target `index`, and the generator with which it is to be drawn."""
    rng = np.random.default_rng([seed, _TARGETS, index])
    class_id = int(rng.integers(len(RECIPES)))
    if rng.random() < LARGE_SHARE:
        return rng, class_id, float(np.clip(132.0 * np.exp(rng.normal(0.0, 0.12)), *LARGE_REACH_PX))
    return rng, class_id, draw_reach(rng)


def _targets(block: Block, number: int) -> SceneGalaxies:
    x, y = _places(block, number)
    drawn = [target_stream(block.seed, index)[1:] for index in range(number)]
    class_id = np.array([class_id for class_id, _ in drawn], np.int16)
    return SceneGalaxies(x, y, class_id, np.array([reach for _, reach in drawn], np.float64))


def _places(block: Block, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places on a jittered grid over the bricks' own areas, where there are pixels in one band at least."""
    extent = np.array([block.columns * block.pitch[0], block.rows * block.pitch[1]])
    if not number:
        return np.zeros(0), np.zeros(0)
    spacing = float(np.sqrt(extent.prod() / number))
    while spacing >= CLOSEST_PX:
        rng = np.random.default_rng([block.seed, _PLACES])
        cells = np.maximum((extent / spacing).astype(int), 1)
        steps = extent / cells
        grid = np.stack(np.meshgrid(*(np.arange(count) + 0.5 for count in cells))).reshape(2, -1).T
        jitter = rng.uniform(-0.5, 0.5, grid.shape) * np.maximum(steps - CLOSEST_PX, 0.0)
        x, y = block.off_lines(*(grid * steps + jitter + np.array(block.first_line)).T)
        seen = np.flatnonzero(np.any([block.exposures_at(band, x, y) > 0 for band in range(3)], axis=0))
        if len(seen) >= number:
            chosen = rng.permutation(seen)[:number]
            return x[chosen], y[chosen]
        spacing *= 0.97
    room = int(extent.prod() / CLOSEST_PX**2)
    raise UserError(f"{number} galaxies have no room on a block for about {room}; ask for fewer, or for more bricks")


def _bright_stars(block: Block, targets: SceneGalaxies) -> BrightStars:
    """A few in every brick, as bright as 8th magnitude where the mask around them is a small part of the brick.

    Of ten targets or more, the last one has a saturated star over it.
    """
    rng = np.random.default_rng([block.seed, _BRIGHT])
    share = (block.side / SURVEY_SIDE) ** 2
    numbers = (max(round(BRIGHT_STARS * share), 1), max(round(MEDIUM_STARS * share), 1))
    widest = block.side / 4 * NATIVE_PIXSCALE  # arcsec
    brightest = float(np.clip(np.log(1630.0 / widest) / np.log(1.396), 8.0, BRIGHT_MAG - 0.2))
    x, y, mag = [], [], []
    for brick in block.bricks:
        x1, x2, y1, y2 = block.own_box(brick)
        for number, low, high in ((numbers[0], brightest, BRIGHT_MAG), (numbers[1], BRIGHT_MAG, MEDIUM_MAG)):
            x.append(rng.uniform(x1, x2, number))
            y.append(rng.uniform(y1, y2, number))
            mag.append(rng.uniform(low, high, number))
    if len(targets.x) >= 10:
        x.append(targets.x[-1:] + 9.0)
        y.append(targets.y[-1:] + 4.0)
        mag.append(np.array([BRIGHT_MAG - 0.1]))
    joined = np.concatenate(mag)
    flux = star_bands(nanomaggies(joined), rng.choice([0.4, 0.9, 1.45], len(joined)))
    return BrightStars(*block.off_lines(np.concatenate(x), np.concatenate(y)), joined, flux)


def _cluster(block: Block) -> tuple[tuple[float, float, float], Stars]:
    """A patch crowded with stars in one of the bricks: x, y, radius, and its stars."""
    rng = np.random.default_rng([block.seed, _CLUSTER])
    radius = max(block.side / 24, 16.0)
    number = max(round(CLUSTER_STARS * (block.side / SURVEY_SIDE) ** 2), 5)
    brick = block.bricks[int(rng.integers(len(block.bricks)))]
    x1, x2, y1, y2 = block.own_box(brick)
    middle = np.array([rng.uniform(x1 + radius, x2 - radius), rng.uniform(y1 + radius, y2 - radius)])
    place = middle[:, None] + np.clip(rng.normal(0.0, 0.35, (2, number)), -0.7, 0.7) * radius
    flux = star_bands(nanomaggies(magnitudes(rng, number, 17.0, 22.0, 0.22)), rng.normal(0.7, 0.1, number))
    return (float(middle[0]), float(middle[1]), radius), Stars(place[0], place[1], flux)
