"""Positions and angles as people write them: degrees, sexagesimal, or with a unit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.core.errors import UserError

_PER_DEGREE = {
    **dict.fromkeys(("", "d", "deg", "°"), 1),
    **dict.fromkeys(("m", "arcmin", "'"), 60),
    **dict.fromkeys(("s", "arcsec", '"'), 3600),
}


def radius_of(text: str) -> float:
    """Degrees of a radius such as 0.5, 0.5d (degrees), 10m (arcmin) or 30s (arcsec). Raises UserError."""
    found = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?)\s*(\D*)", text.strip(), re.IGNORECASE)
    try:
        number, unit = found.groups() if found else ("", "")
        return float(number) / _PER_DEGREE[unit.lower()]
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{text!r} is no radius: a number and d, m or s for degrees, arcmin or arcsec (0.5d, 10m, 30s)"
        ) from error


def position_of(words: Sequence[str]) -> tuple[float, float]:
    """Right ascension and declination in degrees.

    Plain numbers are degrees. A sexagesimal right ascension (10:20:30.5, 10h20m30.5s, 10 20 30.5) is in hours, one
    with d in degrees; a declination is always in degrees.

    Raises
    ------
    UserError : it is no position on the sky.
    """
    parts = " ".join(words).replace(",", " ").split()
    if len(parts) == 6:
        parts = [":".join(parts[:3]), ":".join(parts[3:])]
    try:
        ra, dec = parts
        place = _degrees(ra, of_sexagesimal="hourangle"), _degrees(dec, of_sexagesimal="deg")
    except ValueError as error:
        raise UserError(
            f"{' '.join(words)!r} is no position: ra and dec in degrees (155.127 2.051) or sexagesimal "
            "(10:20:30.5 +02:03:04, 10h20m30.5s +02d03m04s)"
        ) from error
    if not abs(place[1]) <= 90:
        raise UserError(f"a declination of {place[1]:g} degrees is not on the sky: ra comes first, then dec")
    return place


def _degrees(text: str, of_sexagesimal: str) -> float:
    try:
        return float(text)
    except ValueError:
        from astropy.coordinates import Angle  # half a second, for who writes it so

        with_unit = re.search("[a-z°]", text, re.IGNORECASE) is not None
        return float(Angle(text, unit=None if with_unit else of_sexagesimal).deg)
