"""The envelope of a model: what its training images were like."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.preprocessing import Preprocessing
from pipeline.datasets.image_set import ImageSet
from pipeline.readers.stamps import Stamp, StampBatch
from pipeline.survey.screening import domain_flags
from pipeline.training.domain_envelope import envelope
from tests.conftest import Small

PREPROCESSING = Preprocessing(image_size=32, field_pixels=64)


def test_the_envelope_says_what_the_training_images_were(small: Small) -> None:
    known: ImageSet = replace(
        small.images,
        pixscale=np.array([0.262, np.nan, 0.524]),
        mag_r=np.array([np.nan, 17.25, 13.5]),
        psfsize=np.full(3, np.nan),
    )
    found = envelope(known, PREPROCESSING)
    assert found["pixscale"] == [0.262, 0.524] and found["mag_r"] == [13.5, 17.25] and found["psfsize"] is None
    assert (found["rendering"], found["bands"], found["bits"]) == (PREPROCESSING.rendering, ["g", "r", "z"], 8)
    assert found["field_pixels"] == 64
    assert envelope(replace(known, mag_r=None), PREPROCESSING)["mag_r"] is None


def test_a_stamp_like_the_training_images_is_inside_the_envelope_on_the_card(small: Small) -> None:
    preprocessing = Preprocessing.from_dict(small.card.recipe)
    assert small.card.envelope == envelope(small.images, preprocessing)
    simulated = Stamp(
        source_name="a",
        pixels=np.zeros((3, 256, 256), np.float32),
        ra=1.0,
        dec=1.0,
        pixscale=float(np.nanmedian(small.images.pixscale)),
        quality=0,
        bad_pixel_fraction=0.0,
        survey_layer="",
        rendering="",
    )
    assert domain_flags(StampBatch([simulated]), preprocessing, small.card).tolist() == [0]
