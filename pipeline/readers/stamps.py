"""Stamps: what a reader hands over, whatever it read. Pure values; no files, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from catalogs.schema import QualityFlag
from catalogs.tiles import QuarantineEntry
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import BadInput
from pipeline.core.object_ids import NO_SURVEY_KEYS, hashed_id, printable, target_id

BANDS = ("g", "r", "z")
MAX_SIDE = 4096  # pixels; a larger picture is no cutout of one galaxy
_EDGE_FRACTION = 0.01  # of a band; single blank pixels are no edge


@dataclass(frozen=True)
class Stamp:
    """One object's pixels.

    `pixels` : float32 (3, H, W) flux in nanomaggies, bands g, r, z, row 0 south; or uint8 (H, W, 3) RGB, row 0 north.
    `ra`, `dec` in degrees (ICRS); `pixscale` in arcsec, NaN if unknown; `quality` bits of `QualityFlag`;
    `rendering` names the colour rule of RGB and is empty for flux, which the recipe renders; `survey_keys` are
    release, brickid, objid or −1. `maskbits` are the survey's bits OR-ed over the central aperture, −1 where there are
    none; `mag_r` is corrected for extinction, `psfsize` the FWHM in r (arcsec); both NaN if unknown.
    """

    source_name: str
    pixels: np.ndarray
    ra: float
    dec: float
    pixscale: float
    quality: int
    bad_pixel_fraction: float
    survey_layer: str
    rendering: str = ""
    survey_keys: tuple[int, int, int] = NO_SURVEY_KEYS
    maskbits: int = -1
    mag_r: float = math.nan
    psfsize: float = math.nan

    @property
    def object_id(self) -> int:
        """TARGETID where the survey's keys are known, else a hash of the source name."""
        if self.survey_keys == NO_SURVEY_KEYS:
            return hashed_id(self.source_name)
        return target_id(*self.survey_keys)


@dataclass(frozen=True)
class TileNote:
    """What a reader has to say about a tile as a whole.

    `rows` is how many a brick's catalogue holds; `set_aside` counts those that were not selected, by reason; `remarks`
    are sentences.
    """

    rows: int = -1
    set_aside: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


Item = Stamp | QuarantineEntry | TileNote
"""What a reader yields: a stamp or a quarantine entry for each input, and notes."""


@dataclass(frozen=True)
class StampBatch:
    """Stamps of one kind and size, the inputs that gave none, and notes about the tile.

    `pixels` : float32 (N, 3, H, W) flux, or uint8 (N, H, W, 3) RGB. Everything else has N entries in the same order.
    """

    stamps: list[Stamp] = field(default_factory=list)
    quarantine: list[QuarantineEntry] = field(default_factory=list)
    notes: list[TileNote] = field(default_factory=list)

    @property
    def pixels(self) -> np.ndarray:
        return np.stack([s.pixels for s in self.stamps])

    @property
    def is_flux(self) -> bool:
        return self.stamps[0].pixels.dtype != np.uint8

    @property
    def pixscale(self) -> np.ndarray:
        """Float64 (N,), arcsec."""
        return np.array([s.pixscale for s in self.stamps], dtype=np.float64)


def quarantine_entry(path: Path, source_name: str, bad: BadInput) -> QuarantineEntry:
    """The quarantine entry of an input that gave no stamp."""
    return QuarantineEntry(
        file=printable(str(path)),
        source_name=source_name,
        reason=bad.reason,
        detail=printable(bad.detail),
        exception=bad.exception,
    )


def on_sky(ra: float, dec: float) -> bool:
    """Whether these are a position in degrees; NaN and the sentinels −99 and −999 are none."""
    return -180 <= ra <= 360 and -90 <= dec <= 90


def wrapped(ra: float) -> float:
    """Right ascension in 0 ≤ ra < 360 (a tiny negative one gives 360 after the first modulo)."""
    return ra % 360 % 360


def are_bands(letters: Sequence[str], planes: int) -> bool:
    """Whether the letters name each of the planes once, one of g, r, z among them."""
    return len(letters) == len(set(letters)) == planes and not set(BANDS).isdisjoint(letters)


def in_band_order(planes: np.ndarray, letters: Sequence[str]) -> tuple[np.ndarray, tuple[bool, ...]]:
    """Planes (band, H, W) in the order g, r, z with zeros for a band that is not there, and which are there."""
    blank = np.zeros_like(planes[0])
    ordered = [planes[letters.index(band)] if band in letters else blank for band in BANDS]
    return np.stack(ordered), tuple(band in letters for band in BANDS)


def examine_rgb(picture: np.ndarray) -> tuple[int, float]:
    """Quality bits and share of bad pixels of uint8 (H, W, 3): a picture of one colour shows nothing to classify."""
    return (int(QualityFlag.UNCLASSIFIED), 1.0) if (picture == picture[0, 0]).all() else (0, 0.0)


def examine_flux(flux: np.ndarray, present: tuple[bool, ...] = (True, True, True)) -> tuple[np.ndarray, int, float]:
    """Look at the pixels of one object.

    Parameters
    ----------
    flux : (3, H, W) nanomaggies, any byte order; a band that is not there is all zero.
    present : which bands the file had.

    Returns
    -------
    Flux as native float32 (3, H, W); quality bits; share of pixels that are blank or not finite.

    The survey writes exactly zero where it has no pixels, over a whole band or over a part of it. A band counts as
    missing when most of the central half of the stamp, where the object is, is blank; a blank part elsewhere is an
    edge. Without any band there is nothing to classify.
    """
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, and is flagged as such
        flux = np.ascontiguousarray(flux, dtype=np.float32)
        # A sum is finite only where every pixel is; most stamps have no blank pixel and nothing else to look at.
        if all(present) and flux.all() and np.isfinite(flux.sum(dtype=np.float64)):
            return flux, 0, 0.0
    finite = np.isfinite(flux)
    bad = ~finite | (flux == 0) | ~np.array(present)[:, None, None]
    height, width = flux.shape[1:]
    centre = bad[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    missing = centre.mean(axis=(1, 2)) > 0.5
    quality = QualityFlag(0)
    if missing.any():
        quality |= QualityFlag.MISSING_BAND
    if missing.all():
        quality |= QualityFlag.UNCLASSIFIED
    if not finite.all():
        quality |= QualityFlag.NAN_PIXELS
    share = bad.mean(axis=(1, 2))
    if ((share > _EDGE_FRACTION) & (share < 1)).any():
        quality |= QualityFlag.EDGE_OR_OFF_FOOTPRINT
    return flux, int(quality), float(bad.mean())


def central_aperture(height: int, width: int, pixscale: float, radius: float) -> np.ndarray:
    """Which pixels lie within `radius` arcsec of the centre: bool (height, width); the central ones always do."""
    y, x = np.ogrid[:height, :width]
    distance = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)
    return np.asarray(distance <= max(radius / pixscale, 1.0))


def bits_within(maskbits: np.ndarray, pixscale: float, settings: InputSettings) -> int:
    """The bits of MASKBITS, integers (H, W), OR-ed over the central aperture."""
    height, width = maskbits.shape
    inside = central_aperture(height, width, pixscale, settings.aperture)
    return int(np.bitwise_or.reduce(maskbits[inside].astype(np.int64), initial=0)) & 0x7FFFFFFF


def mask_flags(maskbits: int, settings: InputSettings) -> int:
    """Quality bits for the bits of MASKBITS at an object; none if they are unknown (−1)."""
    if maskbits < 0:
        return 0
    quality = 0
    for bits, flag in (
        (settings.saturated_bits, QualityFlag.SATURATED),
        (settings.bright_star_bits, QualityFlag.BRIGHT_STAR),
        (settings.large_galaxy_bits, QualityFlag.LARGE_GALAXY_MASK),
        (settings.cluster_bits, QualityFlag.CLUSTER_MASK),
    ):
        if any(maskbits >> bit & 1 for bit in bits):
            quality |= int(flag)
    return quality
