"""The coadd files of a simulated brick: image, invvar, nexp, psfsize by band and maskbits, Rice-compressed FITS.

As in the survey, the primary HDU is empty and the data are in the next. Floats are quantised in steps that their values
are multiples of, so that nothing is lost. Must not know what is on the sky beyond the masks it is asked to draw.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pipeline.simulation.bricks.block import Block, Brick
from pipeline.simulation.bricks.catalog import RELEASE
from pipeline.simulation.bricks.mosaic import EXPOSURE_INVVAR, SATURATION, STEP
from pipeline.simulation.bricks.scene import BRIGHT_MAG, Scene
from pipeline.tiles.brick_grid import bounds, brick_id, centre

FILES_A_BRICK = 13
PSFSIZE_STEP = 2.0**-10  # arcsec
INVVAR_STEP = 4.0  # 1 / nanomaggies^2
_TILE_PX = 100  # compressed in squares of this side
_NO_DITHER = -1

# Bits of MASKBITS, as in DR8 to DR10.
NPRIMARY, BRIGHT, MEDIUM, GALAXY, CLUSTER = 1 << 0, 1 << 1, 1 << 11, 1 << 12, 1 << 13
SATUR = (1 << 2, 1 << 3, 1 << 4)  # in g, r, z
ALLMASK = (1 << 5, 1 << 6, 1 << 7)  # in g, r, z

_UNITS = {"image": "nanomaggy", "invvar": "1/nanomaggy^2", "psfsize": "arcsec"}


def write_coadds(
    scene: Scene, brick: Brick, mosaic: Path, folder: Path, on_progress: Callable[[int], None]
) -> NDArray[np.int32]:
    """Write the files of a brick into a new folder, cut from the painted mosaic; returns its maskbits, (side, side).

    on_progress is called with 1 after each of the FILES_A_BRICK files.
    """
    block, side = scene.block, scene.block.side
    folder.mkdir(parents=True)
    maskbits = _masks(scene, brick)
    for band, letter in enumerate("grz"):
        window = open_memmap(mosaic, "r")[band, brick.y0 : brick.y0 + side, brick.x0 : brick.x0 + side]
        image = np.array(window)
        del window
        exposures = block.exposures(band, brick.x0, brick.y0, side, side)
        saturated = image >= SATURATION[band]
        maskbits[saturated] |= SATUR[band] | ALLMASK[band]
        invvar = np.where(saturated, np.float32(0.0), exposures * EXPOSURE_INVVAR[band])
        psfsize = np.float32(np.rint(scene.seeing[band] / PSFSIZE_STEP) * PSFSIZE_STEP) * (exposures > 0)
        for kind, plane, step in (
            ("image", image, float(STEP[band])),
            ("invvar", invvar, INVVAR_STEP),
            ("nexp", exposures, None),
            ("psfsize", psfsize, PSFSIZE_STEP),
        ):
            path = folder / f"legacysurvey-{brick.name}-{kind}-{letter}.fits.fz"
            _write(path, plane, _header(block, brick, kind, letter), step)
            on_progress(1)
    path = folder / f"legacysurvey-{brick.name}-maskbits.fits.fz"
    _write(path, maskbits, _header(block, brick, "maskbits", ""), None)
    on_progress(1)
    return maskbits


def _write(path: Path, plane: NDArray, header: fits.Header, step: float | None) -> None:
    """Write one compressed plane; floats in steps of `step`, integers as they are."""
    quantise = {} if step is None else {"quantize_level": -step, "quantize_method": _NO_DITHER}
    tile = (_TILE_PX, _TILE_PX)
    image = fits.CompImageHDU(plane, header, compression_type="RICE_1", tile_shape=tile, **quantise)
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(path)


def _masks(scene: Scene, brick: Brick) -> NDArray[np.int32]:
    """What masks there are that do not depend on the pixels' values. int32 (side, side)."""
    side = scene.block.side
    x1, x2, y1, y2 = scene.block.own_box(brick)
    x, y = np.arange(side) + brick.x0, np.arange(side) + brick.y0
    own = ((y >= y1) & (y < y2))[:, None] & ((x >= x1) & (x < x2))
    plane = np.where(own, 0, NPRIMARY).astype(np.int32)
    stars, targets = scene.bright, scene.targets
    discs = [(scene.cluster[0], scene.cluster[1], scene.cluster[2], CLUSTER)]
    discs += zip(stars.x, stars.y, stars.mask_radius, [MEDIUM] * len(stars.x), strict=True)
    bright = stars.mag < BRIGHT_MAG
    places = (stars.x[bright], stars.y[bright], 0.5 * stars.mask_radius[bright])
    discs += zip(*places, [BRIGHT] * int(bright.sum()), strict=True)
    large = targets.large
    discs += zip(targets.x[large], targets.y[large], targets.reach[large], [GALAXY] * int(large.sum()), strict=True)
    for centre_x, centre_y, radius, bit in discs:
        _add_disc(plane, centre_x - brick.x0, centre_y - brick.y0, radius, bit)
    return plane


def _add_disc(plane: NDArray[np.int32], x: float, y: float, radius: float, bit: int) -> None:
    """Set a bit within `radius` pixels of (x, y), in place."""
    rows = slice(max(int(y - radius), 0), max(int(y + radius) + 2, 0))
    columns = slice(max(int(x - radius), 0), max(int(x + radius) + 2, 0))
    box = plane[rows, columns]
    if box.size:
        along, across = np.arange(box.shape[1]) + columns.start - x, np.arange(box.shape[0]) + rows.start - y
        box[along**2 + across[:, None] ** 2 <= radius**2] |= bit


def _header(block: Block, brick: Brick, kind: str, band: str) -> fits.Header:
    """The cards of a survey coadd that say what it is and where it lies, and the marks of a simulation."""
    ra1, ra2, dec1, dec2 = bounds(brick.name)
    ra, dec = centre(brick.name)
    plane = block.wcs.wcs
    return fits.Header(
        [
            ("SURVEY", "SIMULATED"),
            ("SIMULATD", True, "not an observation"),
            ("DRVERSIO", RELEASE, "of the simulation, not a data release"),
            ("BRICKNAM", brick.name, "LegacySurvey brick RRRr[pm]DDd"),
            ("BRICKID", brick_id(brick.name), "LegacySurvey brick id"),
            ("RAMIN", ra1, "Brick RA min"),
            ("RAMAX", ra2, "Brick RA max"),
            ("DECMIN", dec1, "Brick Dec min"),
            ("DECMAX", dec2, "Brick Dec max"),
            ("BRICKRA", ra, "Brick center"),
            ("BRICKDEC", dec, "Brick center"),
            *([("FILTER", band)] if band else []),
            ("CTYPE1", "RA---TAN", "TANgent plane"),
            ("CTYPE2", "DEC--TAN", "TANgent plane"),
            ("CRVAL1", plane.crval[0], "Reference RA"),
            ("CRVAL2", plane.crval[1], "Reference Dec"),
            ("CRPIX1", plane.crpix[0] - brick.x0, "Reference x"),
            ("CRPIX2", plane.crpix[1] - brick.y0, "Reference y"),
            ("CD1_1", plane.cd[0, 0], "CD matrix"),
            ("CD1_2", 0.0, "CD matrix"),
            ("CD2_1", 0.0, "CD matrix"),
            ("CD2_2", plane.cd[1, 1], "CD matrix"),
            ("EQUINOX", 2000.0),
            ("IMTYPE", kind, "LegacySurvey image type"),
            *([("MAGZERO", 22.5, "Magnitude zeropoint")] if kind in ("image", "invvar") else []),
            *([("BUNIT", _UNITS[kind])] if kind in _UNITS else []),
            ("COMMENT", "Simulated by morphcat (pipeline.simulation); not an observation."),
        ]
    )
