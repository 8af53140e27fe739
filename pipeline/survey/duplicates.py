"""Objects of a sky tile that lie at the same place under different names."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from catalogs.healpix import close_pairs
from catalogs.schema import QualityFlag, is_reliable

SAME_PLACE = 1.0  # arcsec


def with_duplicates_flagged(table: pa.Table) -> pa.Table:
    """Rows of the catalogue with `duplicate_position` set where a brighter one, or one before it, is at one place."""
    second = second_at_place(table["ra"].to_numpy(), table["dec"].to_numpy(), table["mag_r"].to_numpy())
    if not second.any():
        return table
    flags = table["quality_flags"].to_numpy().copy()
    flags[second] |= int(QualityFlag.DUPLICATE_POSITION)
    reliable = is_reliable(table["confidence"].to_numpy(), flags)
    for name, values in (("quality_flags", flags), ("is_reliable", reliable)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values))
    return table


def second_at_place(ra: np.ndarray, dec: np.ndarray, mag_r: np.ndarray) -> np.ndarray:
    """Which objects have a brighter one within an arcsec, or one before them in order: bool (N,).

    `ra`, `dec` in degrees; `mag_r` NaN where unknown, which counts as faint.
    """
    pairs = close_pairs(ra, dec, SAME_PLACE)
    rank = np.empty(len(ra), dtype=np.int64)
    rank[np.argsort(np.where(np.isnan(mag_r), np.inf, mag_r), kind="stable")] = np.arange(len(ra))
    second = np.zeros(len(ra), dtype=bool)
    second[np.where(rank[pairs[:, 0]] > rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1])] = True
    return second
