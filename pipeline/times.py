"""Times: MJD in the catalogue, ISO 8601 for people; both UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1858, 11, 17, tzinfo=UTC)  # MJD 0


def mjd_of(when: datetime) -> float:
    """Modified Julian date of a time."""
    return (when - _EPOCH) / timedelta(days=1)


def utc_of(mjd: float) -> str:
    """A modified Julian date as ISO 8601, to the second."""
    return (_EPOCH + timedelta(days=mjd)).isoformat(timespec="seconds")
