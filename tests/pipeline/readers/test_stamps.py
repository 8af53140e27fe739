"""Stamps gathered into batches, and what is seen in their pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs.schema import QualityFlag
from catalogs.tiles import QuarantineEntry
from pipeline.readers import stamps as module
from pipeline.readers.stamps import Stamp, are_bands, examine_flux, in_band_order, in_batches, on_sky, wrapped
from tests.pipeline.makers import galaxy


def stamp(number: int, side: int = 4, flux: bool = True) -> Stamp:
    pixels = np.zeros((3, side, side), "f4") if flux else np.zeros((side, side, 3), "u1")
    return Stamp(f"s#{number}", pixels, 1.0, 2.0, 0.262, 0, 0.0, "layer", "rule")


def no_stamp(number: int) -> QuarantineEntry:
    return QuarantineEntry(file="f", source_name=f"s#{number}", reason="r", detail="d")


kinds = st.lists(st.one_of(st.tuples(st.integers(1, 5), st.booleans()), st.none()), max_size=60)


@settings(max_examples=200, deadline=None)
@given(kinds, st.integers(1, 9))
def test_batches_are_bounded_uniform_and_lose_nothing(kinds: list[tuple[int, bool] | None], size: int) -> None:
    items = [no_stamp(i) if kind is None else stamp(i, *kind) for i, kind in enumerate(kinds)]
    taken = 0

    def feed() -> Iterator[Stamp | QuarantineEntry]:
        nonlocal taken
        for item in items:
            taken += 1
            yield item

    seen: list[str] = []
    refused: list[str] = []
    given_out = 0
    for batch in in_batches(feed(), size):
        given_out += len(batch.stamps) + len(batch.quarantine)
        assert len(batch.stamps) <= size
        stamps_taken = sum(isinstance(item, Stamp) for item in items[:taken])
        assert stamps_taken - len(seen) <= size, "more stamps wait than are allowed"
        assert len({(s.pixels.shape, s.pixels.dtype) for s in batch.stamps}) <= 1
        seen += [s.source_name for s in batch.stamps]
        refused += [q.source_name for q in batch.quarantine]
    assert sorted(seen + refused) == sorted(item.source_name for item in items)
    assert len(set(seen) & set(refused)) == 0 and given_out == len(items)


def test_large_stamps_wait_in_small_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING_BYTES", 3 * stamp(0).pixels.nbytes)
    assert [len(b.stamps) for b in in_batches(iter([stamp(i) for i in range(7)]), 100)] == [3, 3, 1]


def test_an_early_refusal_is_not_held_back_to_the_end() -> None:
    batches = list(in_batches(iter([no_stamp(0), stamp(1), stamp(2)]), 1))
    assert [len(b.quarantine) for b in batches] == [1, 0]


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
