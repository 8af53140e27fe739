"""The pixels of a brick: one decompression a band, with margins that are completed from neighbouring bricks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from pipeline.config.inputs import BrickSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.readers.bricks.edges import Margins, Window, complete_edges, margins_of
from pipeline.readers.bricks.wcs import PLACE, TangentWCS, brick_in, grid_of
from pipeline.readers.fits.files import plane
from pipeline.readers.stamps import BANDS
from pipeline.tiles.brick_files import plane_file


@dataclass(frozen=True)
class BrickImages:
    """The images of a brick.

    `flux` : float32 (3, H, W), bands g, r, z with margins, zeros if there are no pixels; pixel (0, 0) of the brick
    is at (`margins.south`, `margins.east`). `present` says which bands there are, `remarks` what is amiss.
    """

    header: fits.Header
    flux: np.ndarray
    margins: Margins
    present: tuple[bool, ...]
    remarks: list[str]


def read_images(
    folder: Path, brick: str, frame: TangentWCS, windows: Sequence[Window], settings: BrickSettings
) -> BrickImages:
    """All bands of a brick, a band that is missing or damaged as zeros; with the margins that the windows need.

    Raises
    ------
    BadInput : no band can be read.
    """
    height, width = frame.shape
    margins = margins_of(windows, frame.shape)
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
        remarks += complete_edges(flux, folder, brick, frame, windows, settings)
    return BrickImages(frame.header, flux, margins, tuple(present), remarks)


def read_aside(
    folder: Path, brick: str, product: str, band: str, frame: TangentWCS, hdu: str
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


def _plane(path: Path, brick: str, frame: TangentWCS, settings: BrickSettings) -> np.ndarray:
    header, pixels = plane(path, settings.image_hdu)
    named = brick_in(header, brick)
    if named != brick or grid_of(header, pixels.shape) != grid_of(frame.header, frame.shape):
        place = ", ".join(str(header.get(key)) for key in PLACE[:4])
        raise BadInput(
            Reason.BRICK_MISMATCH,
            f"{path}: brick {named}, {pixels.shape} pixels at {place}; the others are brick {brick}, {frame.shape}, "
            "or lie elsewhere; copy it again",
        )
    with np.errstate(over="ignore"):
        return np.asarray(pixels, dtype=np.float32)
