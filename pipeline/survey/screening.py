"""Which stamps of a batch the network may see, and the quality bits that are known before any prediction.

A model card carries the envelope of its training images: colour rule, scale, field of view, bit depth and, where they
are known, the magnitudes and the seeing. A stamp that was rendered by another colour rule is refused, as is an object
id that came before in the same tile; a stamp that lies outside the envelope is flagged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catalogs.schema import QualityFlag
from catalogs.tiles import QuarantineEntry
from models.artifacts.registry import ModelCard
from models.preprocessing import Preprocessing
from pipeline.config.inputs import UNKNOWN_RENDERING
from pipeline.core.errors import BadInput, Reason
from pipeline.readers.stamps import Stamp, StampBatch, quarantine_entry

_MARGIN = 0.05  # pixel scales and seeing this far (relative) beyond those of the training still count as inside


@dataclass(frozen=True)
class ScreenedBatch:
    """Stamps to classify, with their object ids and quality bits, int64 (N,), and entries for those refused."""

    batch: StampBatch
    object_ids: np.ndarray
    flags: np.ndarray
    refused: list[QuarantineEntry]

    @property
    def stamps(self) -> list[Stamp]:
        return self.batch.stamps

    @property
    def has_label(self) -> np.ndarray:
        """Which stamps get a label, bool (N,): all but those that show nothing to classify."""
        return (self.flags & QualityFlag.UNCLASSIFIED) == 0


def screen(
    batch: StampBatch, seen: set[int], path: str, preprocessing: Preprocessing, card: ModelCard
) -> ScreenedBatch:
    """Take out the stamps that must not be classified, and flag the others.

    Parameters
    ----------
    seen : object ids of the batches of this tile before; those of this batch are added.
    path : the folder or file of the tile, for messages.
    """
    known, wrong_rule = split_by_rule(batch, preprocessing, path)
    fresh, repeated = split_repeats(known, seen, path)
    flags = np.array([stamp.quality for stamp in fresh.stamps], dtype=np.int64)
    if fresh.stamps:
        flags |= domain_flags(fresh, preprocessing, card)
    object_ids = np.array([stamp.object_id for stamp in fresh.stamps], dtype=np.int64)
    return ScreenedBatch(fresh, object_ids, flags, wrong_rule + repeated)


def split_by_rule(
    batch: StampBatch, preprocessing: Preprocessing, path: str
) -> tuple[StampBatch, list[QuarantineEntry]]:
    """Stamps that the network may see, and entries for those that are known to follow another colour rule."""
    kept, refused = [], []
    for stamp, rendering in zip(batch.stamps, _renderings(batch, preprocessing), strict=True):
        if rendering == preprocessing.rendering or UNKNOWN_RENDERING in (rendering, preprocessing.rendering):
            kept.append(stamp)
            continue
        detail = (
            f"{path}: rendered by {rendering!r}, the model was trained on {preprocessing.rendering!r}; render it by "
            "that rule, or set input.picture_rendering or input.hdf5_rendering if the name is wrong"
        )
        refused.append(quarantine_entry(Path(path), stamp.source_name, BadInput(Reason.WRONG_COLOUR_RULE, detail)))
    return StampBatch(kept), refused


def split_repeats(batch: StampBatch, seen: set[int], path: str) -> tuple[StampBatch, list[QuarantineEntry]]:
    """Stamps whose object id is new in this tile, and entries for the others: reported, never overwritten."""
    kept: list[Stamp] = []
    repeated: list[QuarantineEntry] = []
    for stamp in batch.stamps:
        if stamp.object_id in seen:
            detail = f"object_id {stamp.object_id} occurs twice in {path}; the first one is kept"
            bad = BadInput(Reason.DUPLICATE_OBJECT_ID, detail)
            repeated.append(quarantine_entry(Path(path), stamp.source_name, bad))
        else:
            seen.add(stamp.object_id)
            kept.append(stamp)
    return StampBatch(kept), repeated


def domain_flags(batch: StampBatch, preprocessing: Preprocessing, card: ModelCard) -> np.ndarray:
    """Quality bits int64 (N,): how each stamp differs from the training images."""
    scale = batch.pixscale
    height, width = batch.stamps[0].pixels.shape[1:] if batch.is_flux else batch.stamps[0].pixels.shape[:2]
    other_size = np.isfinite(scale) | (min(height, width) != preprocessing.field_pixels)
    magnitudes = np.array([stamp.mag_r for stamp in batch.stamps])
    seeing = np.array([stamp.psfsize for stamp in batch.stamps])
    renderings = _renderings(batch, preprocessing)
    unknown_rule = np.array([UNKNOWN_RENDERING in (name, preprocessing.rendering) for name in renderings])
    flags = np.zeros(len(batch.stamps), dtype=np.int64)
    for condition, flag in (
        (_outside(scale, card.envelope.get("pixscale"), _MARGIN), QualityFlag.PIXSCALE_OUTSIDE_TRAINING),
        (_outside(magnitudes, card.envelope.get("mag_r"), 0), QualityFlag.MAGNITUDE_OUTSIDE_TRAINING),
        (_outside(seeing, card.envelope.get("psfsize"), _MARGIN), QualityFlag.PSF_OUTSIDE_TRAINING),
        (unknown_rule, QualityFlag.COLOUR_RULE_DIFFERS),
        (~preprocessing.is_training_scale(scale) & other_size, QualityFlag.RESAMPLED),
        (~preprocessing.covers_field(scale, height, width), QualityFlag.FOV_MISMATCH),
    ):
        flags[condition] |= int(flag)
    return flags


def _renderings(batch: StampBatch, preprocessing: Preprocessing) -> list[str]:
    """The colour rule of each stamp; flux is rendered by the preprocessing."""
    return [preprocessing.colour.name if batch.is_flux else stamp.rendering for stamp in batch.stamps]


def _outside(values: np.ndarray, known: list[float] | None, margin: float) -> np.ndarray:
    """Which values lie beyond a range by more than a margin (relative): bool (N,); unknown ones (NaN) do not."""
    if known is None:
        return np.zeros(len(values), dtype=bool)
    with np.errstate(invalid="ignore"):
        return np.asarray((values < known[0] * (1 - margin)) | (values > known[1] * (1 + margin)))
