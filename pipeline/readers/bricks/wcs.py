"""Where the pixels of a brick's images are on the sky; headers alone are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from pipeline.config.inputs import BrickSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.core.parsing import parsing
from pipeline.readers.fits.files import plane_header
from pipeline.readers.stamps import BANDS
from pipeline.tiles.brick_files import plane_file

PLACE = ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")
_FAR = 0.9  # cosine of the distance from which a position is not looked for in a brick


@dataclass(frozen=True)
class TangentWCS:
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


def read_wcs(path: Path, brick: str, settings: BrickSettings) -> TangentWCS:
    """Where the pixels of an image of a brick are.

    Raises
    ------
    BadInput : the file cannot be read, has no celestial WCS, or is that of another brick.
    """
    header, shape = plane_header(path, settings.image_hdu)
    named = brick_in(header, brick)
    if named != brick:
        raise BadInput(Reason.BRICK_MISMATCH, f"{path}: its header says brick {named}, its name {brick}; copy it again")
    if not str(header.get("CTYPE1", "")).startswith("RA---") or not {"CRVAL1", "CRVAL2"} <= set(header):
        raise BadInput(Reason.NO_WCS, f"{path}: no celestial WCS in the header (CTYPE1, CRVAL1, CRVAL2, CD1_1 …)")
    with parsing(path, "a WCS"):
        wcs = WCS(header, naxis=2)
        pixscale = float(np.mean(proj_plane_pixel_scales(wcs))) * 3600
        middle = wcs.wcs_pix2world([[shape[1] / 2, shape[0] / 2]], 0)
    if not (np.isfinite(middle).all() and 0 < pixscale < np.inf):
        raise BadInput(Reason.NO_WCS, f"{path}: the WCS gives no positions ({pixscale} arcsec a pixel)")
    return TangentWCS(header, wcs, shape, pixscale)


def brick_in(header: fits.Header, brick: str) -> str:
    """The brick that a header names: BRICK, in older releases BRICKNAM; `brick` where it names none."""
    return str(header.get("BRICK", header.get("BRICKNAM", brick))).strip()


def grid_of(header: fits.Header, shape: tuple[int, ...]) -> tuple[object, ...]:
    """What the images of a brick have in common: their shape, and where their pixels are on the sky."""
    return (*shape, *(header.get(key) for key in PLACE))


def find_wcs(folder: Path, brick: str, settings: BrickSettings) -> TangentWCS:
    """The frame that most of the brick's images have, the first where they disagree; only headers are read.

    Raises
    ------
    BadInput : there is no image of g, r or z, or none can be read.
    """
    frames: list[TangentWCS] = []
    bad: BadInput | None = None
    for band in BANDS:
        path = plane_file(folder, brick, "image", band)
        if path is None:
            continue
        try:
            frames.append(read_wcs(path, brick, settings))
        except BadInput as error:
            bad = error
    if frames:
        grids = [grid_of(frame.header, frame.shape) for frame in frames]
        return frames[max(range(len(grids)), key=lambda i: grids.count(grids[i]))]
    raise bad or BadInput(
        Reason.WRONG_BANDS, f"{folder}: no image of brick {brick} in any of the bands {', '.join(BANDS)}; add them"
    )
