"""MASKBITS over the central aperture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs.schema import QualityFlag
from pipeline.config.inputs import InputSettings
from pipeline.readers.stamps import bits_within, central_aperture, mask_flags

SETTINGS = InputSettings()


@given(st.integers(2, 60), st.integers(2, 60), st.sampled_from([0.1, 0.262, 0.524, 1.0]), st.floats(0.3, 8))
@settings(max_examples=60, deadline=None)
def test_the_aperture_is_a_disc_around_the_middle(height: int, width: int, pixscale: float, radius: float) -> None:
    inside = central_aperture(height, width, pixscale, radius)
    assert inside[height // 2, width // 2] and inside[(height - 1) // 2, (width - 1) // 2]
    assert (inside == inside[::-1, ::-1]).all()
    for row, column in ((0, 0), (height // 3, width // 3), (height - 1, width // 2)):
        distance = np.hypot(row - (height - 1) / 2, column - (width - 1) / 2)
        assert inside[row, column] == (distance <= max(radius / pixscale, 1))


@pytest.mark.parametrize("kind", ["u1", "i2", ">i2", "i4", "i8"])
def test_bits_are_joined_within_the_aperture_only(kind: str) -> None:
    bits = np.zeros((64, 64), kind)
    bits[31, 31], bits[32, 36], bits[0, 0], bits[32, 60] = 1, 1 << 4, 1 << 6, 1 << 5
    assert bits_within(bits, 0.262, SETTINGS) == 1 | 1 << 4
    assert bits_within(bits, 0.1, InputSettings(aperture=10.0)) == 1 | 1 << 4 | 1 << 5 | 1 << 6
    assert bits_within(bits, 5.0, SETTINGS) == 1


def test_bits_that_no_flag_stands_for_are_kept_as_they_are() -> None:
    assert bits_within(np.full((8, 8), 1 << 11 | 1 << 13, "i2"), 1.0, SETTINGS) == 1 << 11 | 1 << 13
    assert bits_within(np.full((8, 8), -1, "i8"), 1.0, SETTINGS) == 0x7FFFFFFF  # fits the column, an int32


def test_flags_of_bits() -> None:
    assert mask_flags(-1, SETTINGS) == 0 and mask_flags(0, SETTINGS) == 0
    for bits, flag in ((1, 0), (1 << 1, QualityFlag.BRIGHT_STAR), (1 << 3, QualityFlag.SATURATED)):
        assert mask_flags(bits, SETTINGS) == int(flag)
    everything = mask_flags(0x7FFFFFFF, SETTINGS)
    assert everything == (
        QualityFlag.SATURATED | QualityFlag.BRIGHT_STAR | QualityFlag.LARGE_GALAXY_MASK | QualityFlag.CLUSTER_MASK
    )
    moved = InputSettings(bright_star_bits=(7, 8), saturated_bits=(), large_galaxy_bits=(), cluster_bits=())
    assert mask_flags(1 << 8 | 1 << 1, moved) == QualityFlag.BRIGHT_STAR
