"""The envelope of a model: what its training images were like. The card carries it, and stamps are screened by it."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.preprocessing import Preprocessing
from pipeline.datasets.image_set import ImageSet


def envelope(images: ImageSet, preprocessing: Preprocessing) -> dict[str, Any]:
    """What the training images were like: plain values for the model card.

    `pixscale` and `psfsize` (arcsec) and `mag_r` are the least and the greatest, None if the images do not tell.
    """
    return {
        "rendering": preprocessing.rendering,
        "bands": list(preprocessing.colour.bands),
        "bits": 8,
        "field_pixels": preprocessing.field_pixels,
        "pixscale": _range(images.pixscale),
        "mag_r": _range(images.mag_r),
        "psfsize": _range(images.psfsize),
    }


def _range(values: np.ndarray | None) -> list[float] | None:
    known = values[np.isfinite(values)] if values is not None else np.empty(0)
    return [float(known.min()), float(known.max())] if len(known) else None
