"""Small survey bricks made by code: windows of one mosaic of simulated sky, under names of real bricks.

Neighbours are windows of one tangent plane, so that what is cut across their edges can be compared with the mosaic bit
by bit. Where the bricks lie on the sky does not agree with their names, unless a test puts them there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from catalogs.tiles import QuarantineEntry
from pipeline.config.inputs import BrickSettings, ReadingSettings
from pipeline.ingest.discovery import brick_tile
from pipeline.readers.bricks.reader import read_brick
from pipeline.readers.stamps import BANDS, Stamp
from pipeline.tiles.sky_tile import SkyTile

PIXSCALE = 0.262
SIDE = 200  # of a brick; a real one has 3600 px
WHOLE = 340  # of the mosaic: two bricks with 60 px in common
STAMP = 64
RA, DEC = 150.0, 0.1  # tangent point, in the middle of the mosaic
KEYS = (9010, 1000)  # release and brickid of the rows
BLOCK = {  # row and column of the brick's first pixel in the mosaic; east is towards lower columns
    "1501p000": (0, 0),
    "1498p000": (0, WHOLE - SIDE),
    "1501p002": (WHOLE - SIDE, 0),
    "1498p002": (WHOLE - SIDE, WHOLE - SIDE),
}
BRICK = "1501p000"
READING = ReadingSettings(bricks=BrickSettings(stamp_pixels=STAMP, large_radius=0))


def reading(**bricks: Any) -> ReadingSettings:
    """Settings with small stamps, and these."""
    return READING.model_copy(update={"bricks": READING.bricks.model_copy(update=bricks)})


def mosaic(side: int = WHOLE, seed: int = 0) -> np.ndarray:
    """Simulated sky without a single zero: float32 (3, side, side)."""
    values = np.random.default_rng(seed).normal(0, 0.01, (len(BANDS), side, side)).astype(np.float32)
    return np.where(values == 0, np.float32(0.01), values)


def tangent_plane(
    ra: float = RA, dec: float = DEC, side: int = WHOLE, y0: int = 0, x0: int = 0, pixscale: float = PIXSCALE
) -> fits.Header:
    """TAN of a window that begins at (y0, x0) of an image of `side` pixels; the tangent point is in its middle."""
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"] = ra, dec
    header["CRPIX1"], header["CRPIX2"] = side / 2 + 0.5 - x0, side / 2 + 0.5 - y0
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -pixscale / 3600, 0.0, 0.0, pixscale / 3600
    return header


def on_sky_at(column: Any, row: Any, header: fits.Header | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Right ascension and declination of pixels of the mosaic, or of the image of this header, by astropy."""
    ra, dec = WCS(header or tangent_plane(), naxis=2).all_pix2world(
        np.asarray(column, float), np.asarray(row, float), 0
    )
    return ra, dec


def write_plane(path: Path, pixels: np.ndarray, header: fits.Header | None = None, *, packed: str = "") -> Path:
    """A plane of a brick. `packed`: "" plain, "lossless", or "rice", which quantises as the survey does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not packed:
        fits.PrimaryHDU(pixels, header).writeto(path, overwrite=True)
        return path
    how: dict[str, Any] = (
        {"compression_type": "RICE_1", "quantize_level": 16, "quantize_method": 2, "dither_seed": 42}
        if packed == "rice"
        else {"compression_type": "GZIP_2", "quantize_level": 0}
    )
    image = fits.CompImageHDU(pixels, header, tile_shape=(64, 64), **how)
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(path, overwrite=True)
    return path


def plane_path(folder: Path, brick: str, product: str, band: str = "", suffix: str = ".fits") -> Path:
    return folder / f"legacysurvey-{brick}-{product}{'-' + band if band else ''}{suffix}"


def write_brick(
    folder: Path,
    brick: str = BRICK,
    sky: np.ndarray | None = None,
    header: fits.Header | None = None,
    *,
    bands: str = "grz",
    packed: str = "",
    **cards: Any,
) -> Path:
    """The images of a brick of the block: its window of the mosaic, or the pixels and the header given."""
    if sky is None:
        y0, x0 = BLOCK[brick]
        sky, header = mosaic()[:, y0 : y0 + SIDE, x0 : x0 + SIDE], tangent_plane(y0=y0, x0=x0)
    header = (header or fits.Header()).copy()
    header.update({"BRICKNAM": brick, **cards})
    for band in bands:
        path = plane_path(folder, brick, "image", band, ".fits.fz" if packed else ".fits")
        write_plane(path, sky[BANDS.index(band)], header, packed=packed)
    return folder


def coadd(root: Path, brick: str) -> Path:
    """The folder of a brick in the layout of the surveys."""
    return root / "coadd" / brick[:3] / brick


def rows(column: Any, row: Any, header: fits.Header | None = None, **columns: Any) -> dict[str, np.ndarray]:
    """A tractor table of DR9 with galaxies at these pixels of the mosaic; columns given replace those made here."""
    ra, dec = on_sky_at(column, row, header)
    count = len(ra)
    made: dict[str, Any] = {
        "release": np.full(count, KEYS[0], "i2"),
        "brickid": np.full(count, KEYS[1], "i4"),
        "objid": np.arange(count, dtype="i4"),
        "brick_primary": np.ones(count, bool),
        "type": np.full(count, "EXP"),
        "ra": ra,
        "dec": dec,
        "flux_r": np.full(count, 100.0, "f4"),
        "mw_transmission_r": np.full(count, 0.9, "f4"),
        "shape_r": np.full(count, 2.0, "f4"),
        "maskbits": np.zeros(count, "i2"),
        **{f"psfdepth_{band}": np.full(count, 2000.0, "f4") for band in BANDS},
        "psfsize_r": np.full(count, 1.25, "f4"),
    }
    return {name: np.asarray(values) for name, values in {**made, **columns}.items() if values is not None}


def write_rows(path: Path, columns: Mapping[str, np.ndarray], *, upper: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = Table({name.upper() if upper else name: values for name, values in columns.items()})
    table.write(path, format="fits", overwrite=True)
    return path


def tractor_path(folder: Path, brick: str = BRICK) -> Path:
    return folder / f"tractor-{brick}.fits"


@dataclass(frozen=True)
class Outcome:
    """What became of a brick: stamps and entries by the name after the #, rows left out by reason, and remarks."""

    stamps: dict[str, Stamp]
    refused: dict[str, QuarantineEntry]
    set_aside: dict[str, int]
    remarks: list[str]

    @property
    def only(self) -> Stamp:
        (stamp,) = self.stamps.values()
        return stamp


def outcome(
    folder: Path, brick: str = BRICK, settings: ReadingSettings = READING, table: Path | None = None
) -> Outcome:
    """Find the files of a brick and read it."""
    return outcome_of(brick_tile(folder, brick, settings, table), settings)


def outcome_of(tile: SkyTile, settings: ReadingSettings = READING) -> Outcome:
    stamps: dict[str, Stamp] = {}
    refused: dict[str, QuarantineEntry] = {}
    aside: dict[str, int] = {}
    remarks: list[str] = []
    for item in read_brick(tile, settings):
        if isinstance(item, Stamp | QuarantineEntry):
            name = item.source_name.split("#")[1]
            assert name not in stamps and name not in refused, name
            if isinstance(item, Stamp):
                stamps[name] = item
            else:
                refused[name] = item
        else:
            aside |= item.set_aside
            remarks += item.remarks
    return Outcome(stamps, refused, aside, remarks)


def cut(sky: np.ndarray, column: float, row: float, side: int = STAMP) -> np.ndarray:
    """The pixels of a stamp in the mosaic: those whose middle is nearest to a place that is no tie."""
    y0, x0 = (int(np.floor(at - (side - 1) / 2 + 0.5)) for at in (row, column))
    return sky[:, y0 : y0 + side, x0 : x0 + side]
