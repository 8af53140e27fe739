"""Viewer FITS cutouts: one galaxy a file, (band, H, W) nanomaggies with a TAN WCS."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from catalogs.schema import QualityFlag
from catalogs.tile_store import Quarantined
from pipeline.errors import BadInput, Reason, parsing
from pipeline.identity import printable
from pipeline.stamps import BANDS, MAX_SIDE, Stamp, are_bands, examine_flux, in_band_order, on_sky, refused, wrapped

_MOST_BYTES = 512 << 20  # declared size of one cutout


def read_cutouts(folder: Path, names: list[str], source: str) -> Iterator[Stamp | Quarantined]:
    """One stamp or one quarantine entry for each file, in the given order.

    Raises
    ------
    OSError : the system failed (disk, network); the content of a file never raises.
    """
    for name in names:
        source_name = printable(f"{source}/{name}")
        try:
            yield read_cutout(folder / name, source_name)
        except BadInput as bad:
            yield refused(folder / name, source_name, bad)


def read_cutout(path: Path, source_name: str) -> Stamp:
    """Read one viewer cutout.

    Raises
    ------
    BadInput : the file is damaged or no cutout of g, r, z; the reason says which.
    """
    if path.exists() and path.stat().st_size == 0:
        raise BadInput(Reason.EMPTY_FILE, f"{path} has no bytes; download it again")
    # ImportError: astropy lacks a module for what looks like .Z
    with parsing(path, "FITS", VerifyError, ImportError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged files; the checks below say it in our words
        header, data = _image(path)
        ra, dec, pixscale = _geometry(path, header)
        bands = _bands(path, header, len(data))
        overlap, layer = header.get("OVERLAP", True), _layer(header, bands)
    flux, quality, bad = examine_flux(*in_band_order(data, bands))
    if overlap is False:
        quality |= QualityFlag.EDGE_OR_OFF_FOOTPRINT
    return Stamp(
        source_name=source_name,
        pixels=flux,
        ra=ra,
        dec=dec,
        pixscale=pixscale,
        quality=int(quality),
        bad_pixel_fraction=bad,
        survey_layer=layer,
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
        if math.prod(sides) * abs(int(header["BITPIX"])) // 8 > _MOST_BYTES:
            raise BadInput(Reason.TOO_LARGE, f"{path}: sides {sides} are more than {_MOST_BYTES >> 20} MiB")
        data = np.asarray(hdus[0].data)
    return header, data if data.ndim == 3 else data[None]


def _bands(path: Path, header: fits.Header, planes: int) -> list[str]:
    """Names of the planes, from BANDS or BAND0, BAND1, …"""
    named = header.get("BANDS") or "".join(str(header.get(f"BAND{i}", "")) for i in range(planes))
    bands = list(str(named).strip())
    if not are_bands(bands, planes):
        raise BadInput(
            Reason.WRONG_BANDS,
            f"{path}: {planes} planes, BANDS = {named!r}; expected one letter a plane with some of {', '.join(BANDS)}",
        )
    return bands


def _geometry(path: Path, header: fits.Header) -> tuple[float, float, float]:
    """Sky position of the image centre (degrees, ICRS) and pixel scale (arcsec)."""
    if not str(header.get("CTYPE1", "")).startswith("RA---") or "CRVAL1" not in header:
        raise BadInput(Reason.NO_WCS, f"{path}: no celestial WCS in the primary header (CTYPE1, CRVAL1, CD1_1 …)")
    wcs = WCS(header, naxis=2)
    centre = [(int(header["NAXIS1"]) - 1) / 2, (int(header["NAXIS2"]) - 1) / 2]
    ra, dec = (float(v) for v in wcs.all_pix2world([centre], 0)[0])
    pixscale = float(np.mean(proj_plane_pixel_scales(wcs))) * 3600
    if not (on_sky(ra, dec) and 0 < pixscale < math.inf):
        raise BadInput(Reason.NO_WCS, f"{path}: the WCS gives no position (ra {ra}, dec {dec}, {pixscale} arcsec)")
    return wrapped(ra), dec, pixscale


def _layer(header: fits.Header, bands: list[str]) -> str:
    """The survey layer in the catalogue's words, such as ls-dr9-south-grz."""
    letters = "".join(bands)
    if header.get("SIMULATD") is True:
        return f"simulated-{letters}"
    version = str(header.get("VERSION", "unknown")).strip().lower() or "unknown"
    return f"ls-{version}-{letters}"
