"""The guard against train/serve skew: what is refused, what is flagged, and what is inside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from catalogs.schema import QualityFlag
from models.artifacts.registry import ModelCard
from models.preprocessing import Preprocessing
from pipeline.core.errors import Reason
from pipeline.readers.stamps import Stamp, StampBatch
from pipeline.survey.screening import domain_flags, split_by_rule
from tests.conftest import Small

PREPROCESSING = Preprocessing(image_size=32, field_pixels=64)
RULE = PREPROCESSING.rendering
ENVELOPE = {"pixscale": [0.262, 0.524], "mag_r": [12.0, 17.5], "psfsize": [1.0, 1.8]}


def stamp(side: int = 64, *, rgb: bool = False, **values: Any) -> Stamp:
    plain = Stamp(
        source_name="a",
        pixels=np.zeros((side, side, 3), np.uint8) if rgb else np.zeros((3, side, side), np.float32),
        ra=1.0,
        dec=1.0,
        pixscale=0.262,
        quality=0,
        bad_pixel_fraction=0.0,
        survey_layer="",
        rendering=RULE if rgb else "",
    )
    return replace(plain, **values)


@pytest.fixture(scope="module")
def card(small: Small) -> ModelCard:
    return small.card.model_copy(update={"envelope": ENVELOPE})


def flags(card: ModelCard, *stamps: Stamp, preprocessing: Preprocessing = PREPROCESSING) -> list[int]:
    return domain_flags(StampBatch(list(stamps)), preprocessing, card).tolist()


def test_another_colour_rule_is_refused_and_an_unknown_one_is_not() -> None:
    batch = StampBatch([stamp(rgb=True, rendering=rule, source_name=rule) for rule in (RULE, "gz-decals", "unknown")])
    kept, out = split_by_rule(batch, PREPROCESSING, "/data/pictures")
    assert [s.rendering for s in kept.stamps] == [RULE, "unknown"]
    (entry,) = out
    assert (entry.reason, entry.source_name) == (Reason.WRONG_COLOUR_RULE, "gz-decals")
    for word in ("/data/pictures", "'gz-decals'", repr(RULE), "input.picture_rendering"):
        assert word in entry.detail
    kept, out = split_by_rule(batch, replace(PREPROCESSING, rendering="unknown"), "/data/pictures")
    assert len(kept.stamps) == 3 and out == []


def test_flux_is_refused_where_the_model_saw_another_rendering() -> None:
    """The preprocessing renders flux by its own rule; images of another rendering are not like that."""
    kept, out = split_by_rule(StampBatch([stamp()]), PREPROCESSING, "x")
    assert len(kept.stamps) == 1 and out == []
    kept, out = split_by_rule(StampBatch([stamp()]), replace(PREPROCESSING, rendering="gz-decals"), "x")
    assert kept.stamps == [] and out[0].reason == Reason.WRONG_COLOUR_RULE


def test_a_rule_that_is_not_known_is_flagged(card: ModelCard) -> None:
    assert flags(card, stamp(rgb=True), stamp(rgb=True, rendering="unknown")) == [0, QualityFlag.COLOUR_RULE_DIFFERS]
    unknown = replace(PREPROCESSING, rendering="unknown")
    assert flags(card, stamp(), preprocessing=unknown) == [QualityFlag.COLOUR_RULE_DIFFERS]


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"mag_r": 12.0}, 0),
        ({"mag_r": 17.51}, QualityFlag.MAGNITUDE_OUTSIDE_TRAINING),
        ({"mag_r": 11.9}, QualityFlag.MAGNITUDE_OUTSIDE_TRAINING),
        ({"mag_r": np.nan}, 0),
        ({"psfsize": 1.88}, 0),  # five per cent beyond still count as inside
        ({"psfsize": 1.90}, QualityFlag.PSF_OUTSIDE_TRAINING),
        ({"psfsize": 0.94}, QualityFlag.PSF_OUTSIDE_TRAINING),
        ({"psfsize": np.nan}, 0),
        ({"mag_r": 20.0, "psfsize": 3.0}, 1 << 12 | 1 << 13),
    ],
)
def test_magnitude_and_seeing_outside_the_envelope(card: ModelCard, values: dict[str, float], flag: int) -> None:
    assert flags(card, stamp(**values)) == [int(flag)]
    unknown = card.model_copy(update={"envelope": {**ENVELOPE, "mag_r": None, "psfsize": None}})
    assert flags(unknown, stamp(**values)) == [0]


RESAMPLED, SMALL, FAR = (
    int(QualityFlag.RESAMPLED),
    int(QualityFlag.FOV_MISMATCH),
    int(QualityFlag.PIXSCALE_OUTSIDE_TRAINING),
)


@pytest.mark.parametrize(
    ("side", "pixscale", "flag"),
    [
        (64, 0.262, 0),
        (64, 0.524, 0),
        (63, 0.262, SMALL),
        (100, 0.262, 0),
        (64, 0.4, RESAMPLED),  # between the two scales of the training: more than the field of view
        (64, 0.1, RESAMPLED | SMALL | FAR),
        (200, 0.1, RESAMPLED | FAR),
        (64, 1.0, RESAMPLED | FAR),
        (64, np.nan, SMALL),  # taken as the field of view as it is
        (65, np.nan, SMALL | RESAMPLED),
    ],
)
def test_scale_and_field_of_view(card: ModelCard, side: int, pixscale: float, flag: int) -> None:
    assert flags(card, stamp(side, pixscale=pixscale)) == [flag]
    assert flags(card, stamp(side, rgb=True, pixscale=pixscale)) == [flag]


def test_flags_belong_to_their_stamps(card: ModelCard) -> None:
    found = flags(card, stamp(mag_r=20.0), stamp(), stamp(pixscale=0.524, psfsize=9.0))
    assert found == [QualityFlag.MAGNITUDE_OUTSIDE_TRAINING, 0, QualityFlag.PSF_OUTSIDE_TRAINING]
