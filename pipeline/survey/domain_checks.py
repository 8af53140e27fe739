"""The guard against train/serve skew: how stamps differ from the images that a model was trained on.

A model card carries its training envelope: colour rule, scale, field of view, bit depth and, where they are known, the
magnitudes and the seeing. What was rendered by another colour rule is refused; what lies outside is flagged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from catalogs.schema import QualityFlag
from catalogs.tiles import QuarantineEntry
from models.artifacts.registry import ModelCard
from models.preprocessing import Preprocessing
from pipeline.config.inputs import UNKNOWN_RENDERING
from pipeline.core.errors import BadInput, Reason
from pipeline.datasets.image_set import ImageSet
from pipeline.readers.stamps import StampBatch, quarantine_entry

_MARGIN = 0.05  # pixel scales and seeing this far (relative) beyond those of the training still count as inside


def envelope(images: ImageSet, recipe: Preprocessing) -> dict[str, Any]:
    """What the training images were like: plain values for the model card.

    `pixscale` and `psfsize` (arcsec) and `mag_r` are the least and the greatest, None where the images do not tell.
    """
    return {
        "rendering": recipe.rendering,
        "bands": list(recipe.colour.bands),
        "bits": 8,
        "field_pixels": recipe.field_pixels,
        "pixscale": _range(images.pixscale),
        "mag_r": _range(images.mag_r),
        "psfsize": _range(images.psfsize),
    }


def split_by_rule(batch: StampBatch, recipe: Preprocessing, path: str) -> tuple[StampBatch, list[QuarantineEntry]]:
    """Stamps that the network may see, and entries for those that are known to follow another colour rule."""
    kept, out = [], []
    for stamp, rendering in zip(batch.stamps, _renderings(batch, recipe), strict=True):
        if rendering == recipe.rendering or UNKNOWN_RENDERING in (rendering, recipe.rendering):
            kept.append(stamp)
            continue
        detail = (
            f"{path}: rendered by {rendering!r}, the model was trained on {recipe.rendering!r}; render it by that "
            "rule, or set input.picture_rendering or input.hdf5_rendering if the name is wrong"
        )
        out.append(quarantine_entry(Path(path), stamp.source_name, BadInput(Reason.WRONG_COLOUR_RULE, detail)))
    return StampBatch(kept), out


def domain_flags(batch: StampBatch, recipe: Preprocessing, card: ModelCard) -> np.ndarray:
    """Quality bits int64 (N,): how each stamp differs from the training images."""
    scale = batch.pixscale
    height, width = batch.stamps[0].pixels.shape[1:] if batch.is_flux else batch.stamps[0].pixels.shape[:2]
    resampled = ~recipe.is_training_scale(scale) & (np.isfinite(scale) | (min(height, width) != recipe.field_pixels))
    magnitudes = np.array([stamp.mag_r for stamp in batch.stamps])
    seeing = np.array([stamp.psfsize for stamp in batch.stamps])
    unknown_rule = np.array([UNKNOWN_RENDERING in (r, recipe.rendering) for r in _renderings(batch, recipe)])
    flags = np.zeros(len(batch.stamps), dtype=np.int64)
    for condition, flag in (
        (~recipe.covers_field(scale, height, width), QualityFlag.FOV_MISMATCH),
        (resampled, QualityFlag.RESAMPLED),
        (_outside(scale, card.envelope.get("pixscale"), _MARGIN), QualityFlag.PIXSCALE_OUTSIDE_TRAINING),
        (_outside(magnitudes, card.envelope.get("mag_r"), 0), QualityFlag.MAGNITUDE_OUTSIDE_TRAINING),
        (_outside(seeing, card.envelope.get("psfsize"), _MARGIN), QualityFlag.PSF_OUTSIDE_TRAINING),
        (unknown_rule, QualityFlag.COLOUR_RULE_DIFFERS),
    ):
        flags[condition] |= int(flag)
    return flags


def _renderings(batch: StampBatch, recipe: Preprocessing) -> list[str]:
    """The colour rule of each stamp; flux is rendered by the recipe."""
    return [recipe.colour.name if batch.is_flux else stamp.rendering for stamp in batch.stamps]


def _outside(values: np.ndarray, known: list[float] | None, margin: float) -> np.ndarray:
    """Which values lie beyond a range by more than a margin (relative): bool (N,); unknown ones (NaN) do not."""
    if known is None:
        return np.zeros(len(values), dtype=bool)
    with np.errstate(invalid="ignore"):
        return np.asarray((values < known[0] * (1 - margin)) | (values > known[1] * (1 + margin)))


def _range(values: np.ndarray | None) -> list[float] | None:
    known = values[np.isfinite(values)] if values is not None else np.empty(0)
    return [float(known.min()), float(known.max())] if len(known) else None
