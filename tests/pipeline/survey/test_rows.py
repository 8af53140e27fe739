"""Objects at one place, and the times that rows and people see."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord
from astropy.time import Time

from catalogs.healpix import close_pairs
from catalogs.schema import QualityFlag, is_reliable
from pipeline.core.times import mjd_of, utc_of
from pipeline.survey.rows import flag_duplicates, second_at_position

ARCSEC = 1 / 3600


@pytest.mark.parametrize(("ra", "dec"), [(150.0, 2.0), (0.0, -60.0), (10.0, 89.99), (359.99999, 0.0)])
def test_close_pairs_are_those_of_astropy(ra: float, dec: float) -> None:
    rng = np.random.default_rng(1)
    dec_of = np.clip(dec + rng.uniform(-4, 4, 60) * ARCSEC, -90, 90)
    ra_of = (ra + rng.uniform(-4, 4, 60) * ARCSEC / np.cos(np.radians(dec))) % 360
    places = SkyCoord(ra_of, dec_of, unit="deg")
    one, two = np.triu_indices(60, 1)
    near = places[one].separation(places[two]).arcsec <= 1.0
    expected = set(zip(one[near].tolist(), two[near].tolist(), strict=True))
    found = [tuple(sorted(pair)) for pair in close_pairs(ra_of, dec_of, 1.0).tolist()]
    assert set(found) == expected and len(found) == len(expected) > 5


def test_none_and_one_have_no_pairs() -> None:
    for count in (0, 1):
        assert close_pairs(np.full(count, 10.0), np.zeros(count), 1.0).shape == (0, 2)
        assert not second_at_position(np.full(count, 10.0), np.zeros(count), np.zeros(count)).any()


def at(*offsets: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions at these distances (arcsec) to the north of one place."""
    return np.full(len(offsets), 359.999), 40 + np.array(offsets) * ARCSEC


@pytest.mark.parametrize(
    ("offsets", "magnitudes", "second"),
    [
        ((0, 0.5), (18, 17), [True, False]),
        ((0, 0.5), (17, 17), [False, True]),  # one before it
        ((0, 0.5), (np.nan, 17), [True, False]),
        ((0, 0.5), (np.nan, np.nan), [False, True]),
        ((0, 1.01), (18, 17), [False, False]),
        ((0, 0.9, 1.8), (18, 17, 16), [True, True, False]),  # a chain: each has a brighter one beside it
        ((0, 0.9, 1.8), (16, 17, 16), [False, True, False]),
    ],
)
def test_the_brightest_stays(offsets: tuple[float, ...], magnitudes: tuple[float, ...], second: list[bool]) -> None:
    assert second_at_position(*at(*offsets), np.array(magnitudes)).tolist() == second


def test_the_flag_is_added_and_takes_the_recommendation_away() -> None:
    ra, dec = at(0, 0.3, 30)
    flags = np.array([int(QualityFlag.RESAMPLED), 0, 0], np.int32)
    confidence = np.full(3, 0.9, np.float32)
    table = pa.table(
        {"ra": ra, "dec": dec, "mag_r": np.array([18, 17, 17], np.float32), "confidence": confidence}
        | {"quality_flags": flags, "is_reliable": is_reliable(confidence, flags)}
    )
    found = flag_duplicates(table)
    assert found.schema == table.schema
    assert found["quality_flags"].to_pylist() == [QualityFlag.RESAMPLED | QualityFlag.DUPLICATE_POSITION, 0, 0]
    assert table["is_reliable"].to_pylist() == [True, True, True]
    assert found["is_reliable"].to_pylist() == [False, True, True]
    apart = table.slice(1)
    assert flag_duplicates(apart) is apart


@pytest.mark.parametrize("when", ["2026-11-22T23:59:59", "1972-01-01T00:00:00", "2000-02-29T12:00:00"])
def test_times_are_those_of_astropy(when: str) -> None:
    moment = datetime.fromisoformat(when).replace(tzinfo=UTC)
    assert mjd_of(moment) == pytest.approx(Time(when, scale="utc").mjd, abs=1e-9)
    assert utc_of(mjd_of(moment)) == f"{when}+00:00"
