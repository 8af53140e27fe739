"""Times: MJD in the catalogue, ISO 8601 for people, and what runs are called by them; all UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

_EPOCH = datetime(1858, 11, 17, tzinfo=UTC)  # MJD 0


def mjd_of(when: datetime) -> float:
    """Modified Julian date of a time."""
    return (when - _EPOCH) / timedelta(days=1)


def utc_of(mjd: float) -> str:
    """A modified Julian date as ISO 8601, to the second."""
    return (_EPOCH + timedelta(days=mjd)).isoformat(timespec="seconds")


def run_id_of(started: datetime) -> str:
    """What a run is called that starts at a time: unique, and in the order of time."""
    return f"{started:%Y%m%dT%H%M%S}-{uuid4().hex[:6]}"
