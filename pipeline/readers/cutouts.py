"""Viewer FITS cutouts: one galaxy a file, (band, H, W) nanomaggies with a TAN WCS."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from catalogs.schema import QualityFlag
from catalogs.tile_store import Quarantined
from pipeline.errors import PARSE_ERRORS, BadInput, Reason, is_transient
from pipeline.readers.settings import InputSettings
from pipeline.stamps import BANDS, MAX_SIDE, Stamp, examine_flux


def read_cutouts(folder: Path, names: list[str], source: str, settings: InputSettings) -> Iterator[Stamp | Quarantined]:
    """One stamp or one quarantine entry for each file, in the given order.

    Raises
    ------
    OSError : the system failed (disk, network); the content of a file never raises.
    """
    for name in names:
        source_name = f"{source}/{name}"
        try:
            yield read_cutout(folder / name, source_name, settings)
        except BadInput as bad:
            yield Quarantined(file=str(folder / name), source_name=source_name, reason=bad.reason, detail=bad.detail)


def read_cutout(path: Path, source_name: str, settings: InputSettings) -> Stamp:
    """Read one viewer cutout.

    Raises
    ------
    BadInput : the file is damaged or no cutout of g, r, z; the reason says which.
    """
    if path.exists() and path.stat().st_size == 0:
        raise BadInput(Reason.EMPTY_FILE, f"{path} has no bytes; download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged files; the checks below say it in our words
            header, data = _image(path)
            ra, dec, pixscale = _geometry(path, header)
    except PARSE_ERRORS as error:
        if is_transient(error):
            raise
        raise BadInput(
            Reason.UNREADABLE_FILE,
            f"{path} can not be read as FITS ({type(error).__name__}: {error}); download it again",
        ) from error
    bands = _bands(path, header, len(data))
    flux, quality, bad = examine_flux(*_ordered(data, bands))
    if header.get("OVERLAP", True) is False:
        quality |= QualityFlag.EDGE_OR_OFF_FOOTPRINT
    return Stamp(
        source_name=source_name,
        pixels=flux,
        ra=ra,
        dec=dec,
        pixscale=pixscale,
        quality=int(quality),
        bad_pixel_fraction=bad,
        survey_layer=_layer(header, bands),
        rendering=settings.flux_rendering,
    )


def _image(path: Path) -> tuple[fits.Header, np.ndarray]:
    """Header and data (band, H, W) of the primary HDU. The declared size is checked before any memory is taken."""
    with fits.open(path, memmap=False, lazy_load_hdus=True) as hdus:
        header = hdus[0].header
        sides = [int(header.get(f"NAXIS{i + 1}", 0)) for i in range(int(header.get("NAXIS", 0)))]
        if len(sides) not in (2, 3):
            raise BadInput(
                Reason.WRONG_SHAPE,
                f"{path}: the primary HDU has {len(sides)} axes, expected (band, H, W) of a viewer cutout",
            )
        if min(sides) < 1 or max(sides) > MAX_SIDE:
            raise BadInput(
                Reason.TOO_LARGE,
                f"{path}: sides {sides} are not those of a cutout of one galaxy (1 to {MAX_SIDE} pixels)",
            )
        data = np.asarray(hdus[0].data)
    return header, data if data.ndim == 3 else data[None]


def _bands(path: Path, header: fits.Header, planes: int) -> list[str]:
    """Names of the planes, from BANDS or BAND0, BAND1, …"""
    named = header.get("BANDS") or "".join(str(header.get(f"BAND{i}", "")) for i in range(planes))
    bands = list(str(named).strip())
    if len(bands) != planes or len(set(bands)) != planes or not set(bands) & set(BANDS):
        raise BadInput(
            Reason.WRONG_BANDS,
            f"{path}: {planes} planes, BANDS = {named!r}; expected one letter a plane with some of {', '.join(BANDS)}",
        )
    return bands


def _ordered(data: np.ndarray, bands: list[str]) -> tuple[np.ndarray, tuple[bool, ...]]:
    """Planes in the order g, r, z with zeros for a band that is not there, and which are there."""
    blank = np.zeros_like(data[0])
    planes = [data[bands.index(band)] if band in bands else blank for band in BANDS]
    return np.stack(planes), tuple(band in bands for band in BANDS)


def _geometry(path: Path, header: fits.Header) -> tuple[float, float, float]:
    """Sky position of the image centre (degrees, ICRS) and pixel scale (arcsec)."""
    if not str(header.get("CTYPE1", "")).startswith("RA---") or "CRVAL1" not in header:
        raise BadInput(Reason.NO_WCS, f"{path}: no celestial WCS in the primary header (CTYPE1, CRVAL1, CD1_1 …)")
    wcs = WCS(header, naxis=2)
    centre = [(int(header["NAXIS1"]) - 1) / 2, (int(header["NAXIS2"]) - 1) / 2]
    ra, dec = (float(v) for v in wcs.all_pix2world([centre], 0)[0])
    pixscale = float(np.mean(proj_plane_pixel_scales(wcs))) * 3600
    if not (np.isfinite([ra, dec, pixscale]).all() and abs(dec) <= 90 and pixscale > 0):
        raise BadInput(Reason.NO_WCS, f"{path}: the WCS gives no position (ra {ra}, dec {dec}, {pixscale} arcsec)")
    return ra % 360, dec, pixscale


def _layer(header: fits.Header, bands: list[str]) -> str:
    """The survey layer in the catalogue's words, such as ls-dr9-south-grz."""
    letters = "".join(bands)
    if header.get("SIMULATD") is True:
        return f"simulated-{letters}"
    version = str(header.get("VERSION", "unknown")).strip().lower() or "unknown"
    return f"ls-{version}-{letters}"
