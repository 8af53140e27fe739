"""The survey's brick grid: 662,174 boxes of about 0.25 x 0.25 degrees that cover the whole sky without overlap.

A brick is named like 1498p020, after the right ascension and declination of its centre in tenths of a degree, cut off
and not rounded. This module is arithmetic only: it must not know about files, pixels or which bricks were observed.

The pixels of a brick reach a little beyond its box, so the images of neighbours overlap; the boxes do not.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

STEP_DEG = 0.25  # height of a row, and the largest width of a brick
ROWS = 721  # centred on -90, -89.75 … +90; the first and the last are caps around the poles
EQUATOR = ROWS // 2

_NAME = re.compile(r"(\d{4})([pm])(\d{3})", re.ASCII)


@lru_cache(maxsize=1)
def columns() -> NDArray[np.int64]:
    """How many bricks each row of the grid has, from south to north. int64 (721,).

    The fewest, in an even number, that are nowhere wider than 0.25 degrees; a single one at each pole.
    """
    near_equator = np.maximum(np.abs(np.arange(ROWS) - EQUATOR) - 0.5, 0.0) * STEP_DEG
    number = 2 * np.ceil(360.0 / STEP_DEG * np.cos(np.radians(near_equator)) / 2.0).astype(np.int64)
    number[[0, -1]] = 1
    number.setflags(write=False)
    return number


@lru_cache(maxsize=1)
def _first_ids() -> NDArray[np.int64]:
    """BRICKID of the first brick of each row, and one past the last of all. int64 (722,)."""
    return 1 + np.concatenate([[0], np.cumsum(columns())])


def brick_ids(ra: ArrayLike, dec: ArrayLike) -> NDArray[np.int64]:
    """BRICKID of the bricks whose boxes hold these positions (degrees), in the positions' shape.

    Bricks are counted from 1, row by row from the south pole, eastwards from right ascension 0.
    Raises ValueError for a position that is not finite or beyond a pole.
    """
    east, north = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    if not (np.isfinite(east) & (np.abs(north) <= 90.0)).all():
        raise ValueError("a position must be finite degrees, its declination within -90 to 90")
    row = np.floor((north + 90.0) / STEP_DEG + 0.5).astype(np.int64)
    number = columns()[row]
    column = np.minimum((east % 360.0 / 360.0 * number).astype(np.int64), number - 1)
    return _first_ids()[row] + column


def brick_of(ra: float, dec: float) -> str:
    """Name of the brick whose box holds a position (degrees); raises ValueError as `brick_ids` does."""
    return brick_name(int(brick_ids(ra, dec)))


def brick_name(brickid: int) -> str:
    """Name of a brick by its BRICKID, such as 1498p020; raises ValueError for a number that no brick has."""
    row, column = _cell(brickid)
    ra_tenths = (2 * column + 1) * 1800 // int(columns()[row])  # whole numbers: 39.6 must not become 395 tenths
    hundredths = 25 * (row - EQUATOR)
    return f"{ra_tenths:04d}{'p' if hundredths >= 0 else 'm'}{abs(hundredths) // 10:03d}"


def brick_id(name: str) -> int:
    """BRICKID of a brick by its name; raises ValueError if no brick of the grid has this name."""
    match = _NAME.fullmatch(name)
    if match is not None:
        dec = round(int(match[3]) / 10.0 / STEP_DEG + 0.2) * (1 if match[2] == "p" else -1)  # in rows from the equator
        ra = (int(match[1]) + 0.5) / 10.0
        if abs(dec) <= EQUATOR and ra < 360.0:
            number = int(columns()[dec + EQUATOR])
            found = int(_first_ids()[dec + EQUATOR]) + int(ra / 360.0 * number)
            if brick_name(found) == name:
                return found
    raise ValueError(f"{name!r} is not a brick of the survey's grid; a name is like 1498p020 (RA 149.8, Dec +2.0)")


def bounds(name: str) -> tuple[float, float, float, float]:
    """A brick's box as (ra1, ra2, dec1, dec2), degrees; it holds its lower bounds, its upper ones belong to the next.

    The caps at the poles end at +-90. Raises ValueError as `brick_id` does.
    """
    row, column = _cell(brick_id(name))
    width, middle = 360.0 / int(columns()[row]), (row - EQUATOR) * STEP_DEG
    south, north = max(middle - STEP_DEG / 2, -90.0), min(middle + STEP_DEG / 2, 90.0)
    return column * width, (column + 1) * width, south, north


def centre(name: str) -> tuple[float, float]:
    """Right ascension and declination (degrees) of a brick's centre, which is the tangent point of its images.

    Raises ValueError as `brick_id` does.
    """
    row, column = _cell(brick_id(name))
    return (column + 0.5) * 360.0 / int(columns()[row]), (row - EQUATOR) * STEP_DEG


def neighbours(name: str, within: float = 0.02) -> list[str]:
    """Bricks that have sky within `within` degrees of a brick's box, by BRICKID: the eight around it or so.

    The default holds half a stamp of 256 pixels at 0.524 arcsec. Rows have different numbers of bricks, so there may
    be more or fewer than eight. Raises ValueError as `brick_id` does, and for a distance not above 0 or above 1.
    """
    if not 0.0 < within <= 1.0:
        raise ValueError(f"within must be above 0 and at most 1 degree, found {within}")
    ra1, ra2, dec1, dec2 = bounds(name)
    south, north = max(dec1 - within, -90.0), min(dec2 + within, 90.0)
    stretch = max(np.cos(np.radians(max(abs(south), abs(north)))), 1e-9)  # a degree of sky is 1 / stretch of RA
    west, east = ra1 - within / stretch, ra2 + within / stretch
    first_row, last_row = (int(np.floor((dec + 90.0) / STEP_DEG + 0.5)) for dec in (south, north))
    found = [
        int(_first_ids()[row]) + column
        for row in range(first_row, last_row + 1)
        for column in _columns_between(west, east, int(columns()[row]))
    ]
    return [brick_name(brickid) for brickid in sorted(found) if brickid != brick_id(name)]


def _columns_between(west: float, east: float, number: int) -> set[int]:
    """Columns of a row of `number` bricks that right ascensions from `west` to `east` touch, round the circle."""
    if east - west >= 360.0:
        return set(range(number))
    width = 360.0 / number
    return {column % number for column in range(int(np.floor(west / width)), int(np.floor(east / width)) + 1)}


def _cell(brickid: int) -> tuple[int, int]:
    """Row (from the south pole) and column (from RA 0) of a brick."""
    if not 1 <= brickid < int(_first_ids()[-1]):
        raise ValueError(f"a BRICKID is 1 to {int(_first_ids()[-1]) - 1}, found {brickid}")
    row = int(np.searchsorted(_first_ids(), brickid, side="right")) - 1
    return row, brickid - int(_first_ids()[row])
