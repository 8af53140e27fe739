"""Positions to HEALPix indices."""

from __future__ import annotations

import numpy as np
from astropy.coordinates import Latitude, Longitude
from cdshealpix.nested import lonlat_to_healpix

ORDER = 29  # the order of the catalogue's spatial index: cells of 0.4 milliarcsec


def healpix_29(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Nested HEALPix index of order 29, int64 (N,), of ICRS positions float64 (N,) in degrees."""
    if len(ra) == 0:
        return np.empty(0, np.int64)
    index = lonlat_to_healpix(Longitude(ra, unit="deg"), Latitude(dec, unit="deg"), depth=ORDER)
    return np.asarray(index).astype(np.int64)
