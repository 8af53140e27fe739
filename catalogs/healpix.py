"""Positions on the sky: their HEALPix indices, and which lie close together."""

from __future__ import annotations

import numpy as np
from astropy.coordinates import Latitude, Longitude
from cdshealpix.nested import healpix_to_lonlat, lonlat_to_healpix
from scipy.spatial import cKDTree

from catalogs.errors import CatalogError

ORDER = 29  # the order of the catalogue's spatial index: cells of 0.4 milliarcsec


def healpix_29(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Nested HEALPix index of order 29, int64 (N,), of ICRS positions float64 (N,) in degrees.

    Raises
    ------
    CatalogError : a position that is none (cdshealpix would end the process on it, or make one up).
    """
    if len(ra) == 0:
        return np.empty(0, np.int64)
    bad = ~(np.isfinite(ra) & (np.abs(dec) <= 90))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise CatalogError(f"{bad.sum()} positions are not on the sky, the first is ra {ra[first]}, dec {dec[first]}")
    index = lonlat_to_healpix(Longitude(ra, unit="deg"), Latitude(dec, unit="deg"), depth=ORDER)
    return np.asarray(index).astype(np.int64)


def cell_centres(cells: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Right ascension and declination, float64 (N,) in degrees, of the centres of nested HEALPix cells int64 (N,)."""
    lon, lat = healpix_to_lonlat(cells, depth=order)
    return np.asarray(lon.deg), np.asarray(lat.deg)


def close_pairs(ra: np.ndarray, dec: np.ndarray, radius: float) -> np.ndarray:
    """Pairs of positions (degrees) within `radius` arcsec of each other: indices int (P, 2), each pair once."""
    lon, lat = np.radians(ra), np.radians(dec)
    vectors = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    chord = 2 * np.sin(np.radians(radius / 3600) / 2)
    return np.asarray(cKDTree(vectors).query_pairs(chord, output_type="ndarray"))
