"""What is seen in the pixels of a stamp."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalogs.schema import QualityFlag
from pipeline.readers.stamps import are_bands, examine_flux, in_band_order, on_sky, wrapped
from tests.pipeline.makers import galaxy


def test_flux_is_never_changed_by_looking_at_it() -> None:
    flux = galaxy()
    looked, quality, bad = examine_flux(flux)
    np.testing.assert_array_equal(looked, flux)
    assert (quality, bad) == (0, 0.0)


def test_values_beyond_single_precision_are_flagged_not_warned_about() -> None:
    flux = galaxy().astype("f8")
    flux[0, 0, 0] = 1e300
    looked, quality, _ = examine_flux(flux)
    assert np.isinf(looked[0, 0, 0]) and quality == QualityFlag.NAN_PIXELS


def test_a_band_said_to_be_absent_is_missing_whatever_its_pixels() -> None:
    _, quality, bad = examine_flux(galaxy(), (True, True, False))
    assert quality == QualityFlag.MISSING_BAND and bad == pytest.approx(1 / 3)


def test_single_blank_pixels_are_no_edge() -> None:
    flux = galaxy()
    flux[:, 0, :2] = 0
    assert examine_flux(flux)[1] == 0


def test_bands() -> None:
    assert are_bands("zgr", 3) and are_bands(["r"], 1)
    assert not are_bands("grz", 2) and not are_bands("gg", 2) and not are_bands("uy", 2) and not are_bands("", 0)
    planes, present = in_band_order(galaxy(bands=2), "zg")
    np.testing.assert_array_equal(planes, np.stack([galaxy(bands=2)[1], np.zeros((24, 24)), galaxy(bands=2)[0]]))
    assert present == (True, False, True)


@given(st.floats(-180, 360))
def test_right_ascension_stays_below_360(ra: float) -> None:
    assert on_sky(ra, 0) and 0 <= wrapped(ra) < 360


def test_sentinels_are_no_positions() -> None:
    for ra, dec in ((-999, 0), (0, -99), (np.nan, 0), (0, np.nan), (np.inf, 0), (361, 0)):
        assert not on_sky(ra, dec)
    assert wrapped(-1e-20) == 0.0
