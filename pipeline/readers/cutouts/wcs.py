"""Where an image lies on the sky: centre and pixel scale from the WCS of a FITS header."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from pipeline.core.errors import BadInput, Reason
from pipeline.readers.stamps import on_sky, wrapped

_MATRIX = ("CD1_1", "CD1_2", "CD2_1", "CD2_2")
# Beginnings of keywords that make a WCS more than a tangent plane with a matrix.
_MORE = ("PV", "PC", "LONP", "LATP", "CROTA", "CDELT", "CUNIT", "WCSAXES", "A_", "B_", "CPDIS", "DP", "CQDIS", "D2IM")


def centre_and_scale(path: Path, header: fits.Header, width: int, height: int) -> tuple[float, float, float]:
    """Position of the centre of an image (ra, dec, degrees ICRS) and its pixel scale (arcsec).

    Raises
    ------
    BadInput : there is no celestial WCS, or it gives no position.
    """
    if not str(header.get("CTYPE1", "")).startswith("RA---") or not {"CRVAL1", "CRVAL2"} <= set(header):
        raise BadInput(Reason.NO_WCS, f"{path}: no celestial WCS in the header (CTYPE1, CRVAL1, CRVAL2, CD1_1 …)")
    x, y = (width - 1) / 2, (height - 1) / 2
    try:
        ra, dec, pixscale = (_tangent_plane if _is_plain(header) else _any_wcs)(header, x, y)
    except (ValueError, TypeError) as error:  # among them what wcslib says of a matrix that cannot be inverted
        raise BadInput(Reason.NO_WCS, f"{path}: no WCS that can be used ({error})", type(error).__name__) from error
    if not (on_sky(ra, dec) and 0 < pixscale < math.inf):
        raise BadInput(Reason.NO_WCS, f"{path}: the WCS gives no position (ra {ra}, dec {dec}, {pixscale} arcsec)")
    return wrapped(ra), dec, pixscale


def _is_plain(header: fits.Header) -> bool:
    """Whether the WCS is a tangent plane with a full CD matrix and nothing else, as the surveys write it."""
    return (
        (header.get("CTYPE1"), header.get("CTYPE2")) == ("RA---TAN", "DEC--TAN")
        and all(key in header for key in ("CRVAL2", "CRPIX1", "CRPIX2", *_MATRIX))
        and not any(key.startswith(_MORE) for key in header)
    )


def _tangent_plane(header: fits.Header, x: float, y: float) -> tuple[float, float, float]:
    """The gnomonic projection (Calabretta & Greisen 2002, A&A 395, 1077, section 5.1.3).

    Building a `WCS` takes longer than reading the pixels of a cutout.
    """
    ra0, dec0, x0, y0 = (_number(header, key) for key in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2"))
    a, b, c, d = (_number(header, key) for key in _MATRIX)
    if a * d == b * c:
        return math.nan, math.nan, 0.0
    dx, dy = x + 1 - x0, y + 1 - y0
    east, north = math.radians(a * dx + b * dy), math.radians(c * dx + d * dy)
    sine, cosine = math.sin(math.radians(dec0)), math.cos(math.radians(dec0))
    depth = cosine - north * sine
    ra = ra0 + math.degrees(math.atan2(east, depth))
    dec = math.degrees(math.atan2(sine + north * cosine, math.hypot(east, depth)))
    return wrapped(ra), dec, (math.hypot(a, c) + math.hypot(b, d)) / 2 * 3600


def _number(header: fits.Header, key: str) -> float:
    """A number of a header; ValueError where it is a word or a logical, which Python would take as one."""
    if type(header[key]) not in (int, float):
        raise ValueError(f"{key} = {header[key]!r}")
    return float(header[key])


def _any_wcs(header: fits.Header, x: float, y: float) -> tuple[float, float, float]:
    wcs = WCS(header, naxis=2)
    ra, dec = (float(v) for v in wcs.all_pix2world([[x, y]], 0)[0])
    return ra, dec, float(np.mean(proj_plane_pixel_scales(wcs))) * 3600
