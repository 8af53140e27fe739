"""HEALPix indices against the formulas of the paper, written out in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from catalogs.errors import CatalogError
from catalogs.healpix import ORDER, healpix_29

COARSE = 12  # cells of 0.8 arcmin: far wider than rounding errors


def nested(ra: float, dec: float) -> tuple[int, float]:
    """Nested index at order `COARSE` (Górski et al. 2005), and the distance from the cell's edge in cells."""
    side, z, quarter = 1 << COARSE, math.sin(math.radians(dec)), (ra % 360) / 90
    if abs(z) <= 2 / 3:
        falling, rising = side * (0.5 + quarter - 0.75 * z), side * (0.5 + quarter + 0.75 * z)
        jp, jm = int(falling), int(rising)
        p, m = jp >> COARSE, jm >> COARSE
        face = p | 4 if p == m else p if p < m else m + 8
        ix, iy = jm % side, side - 1 - jp % side
    else:
        width = side * math.sqrt(3 * (1 - abs(z)))
        falling, rising = (quarter % 1) * width, (1 - quarter % 1) * width
        jp, jm = min(int(falling), side - 1), min(int(rising), side - 1)
        face, ix, iy = (int(quarter), side - 1 - jm, side - 1 - jp) if z > 0 else (int(quarter) + 8, jp, jm)
    index = face
    for bit in reversed(range(COARSE)):
        index = index << 2 | (iy >> bit & 1) << 1 | (ix >> bit & 1)
    return index, min(abs(value - round(value)) for value in (falling, rising))


@given(st.floats(0, 359.99, allow_subnormal=False), st.floats(-89.9, 89.9, allow_subnormal=False))
@settings(max_examples=300, deadline=None)
def test_index_follows_the_formula(ra: float, dec: float) -> None:
    expected, to_edge = nested(ra, dec)
    assume(to_edge > 1e-3)
    found = healpix_29(np.array([ra]), np.array([dec]))
    assert found.dtype == np.int64
    assert int(found[0]) >> 2 * (ORDER - COARSE) == expected


def test_poles_and_turns_of_right_ascension() -> None:
    base = healpix_29(np.array([45.0, 45.0, 350.0, -10.0]), np.array([90.0, -90.0, 5.0, 5.0]))
    assert base[0] >> 58 == 0 and base[1] >> 58 == 8
    assert base[2] == base[3]
    assert (base >= 0).all() and (base < 12 << 58).all()


@pytest.mark.parametrize(("ra", "dec"), [(math.nan, 0.0), (0.0, math.nan), (math.inf, 0.0), (10.0, 90.1)])
def test_what_is_no_position_is_an_error_and_no_crash(ra: float, dec: float) -> None:
    with pytest.raises(CatalogError, match="1 positions are not on the sky"):
        healpix_29(np.array([1.0, ra]), np.array([1.0, dec]))


def test_no_positions_give_no_indices() -> None:
    assert healpix_29(np.empty(0), np.empty(0)).dtype == np.int64
