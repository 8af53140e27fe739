"""From stamps to predictions: rendered to model-ready pixels, then predicted by the network or reused.

A prediction depends on the model-ready pixels and the model alone. Where both are the same as in the previous commit,
its prediction is kept; everything else in a row comes from the reader and is written again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from catalogs.schema import CERTAINTY_FLAGS, arrow_schema, certainty_columns, certainty_flags, label_columns
from catalogs.tiles import read_tile_metadata
from models.inference.predictor import Predictor
from models.preprocessing import Preprocessing
from pipeline.readers.stamps import StampBatch
from pipeline.survey.screening import ScreenedBatch

_PREDICTED_COLUMNS = (
    "label",
    "label_id",
    "confidence",
    "confidence_gap",
    "entropy",
    "pred_set",
    "pred_set_size",
    "n_views",
    "confidence_std",
    "ood_score",
    "quality_flags",
    "run_id",
    "mjd_predicted",
)


def render_stamps(batch: StampBatch, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Model-ready pixels uint8 (N, 3, S, S) of a batch, made on the device."""
    pixels = torch.from_numpy(batch.pixels).to(device)
    render = preprocessing.pixels_from_flux if batch.is_flux else preprocessing.pixels_from_rgb
    return render(pixels, batch.pixscale)


def pixel_digests(pixels: Tensor) -> np.ndarray:
    """A digest of each stamp's model-ready pixels: int64 (N,)."""
    rows = pixels.cpu().numpy()
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


@dataclass(frozen=True)
class BatchPrediction:
    """Predictions for the N stamps of a batch.

    `columns` are those of the catalogue that a prediction determines, each (N,); among them `quality_flags` holds only
    the bits that a prediction sets. `digests` int64 (N,) are those of the model-ready pixels. `reused` counts the
    predictions that were kept from the previous commit.
    """

    columns: dict[str, np.ndarray]
    digests: np.ndarray
    reused: int


@dataclass(frozen=True)
class PreviousPredictions:
    """Predictions for the classified rows of one committed tile.

    `object_ids` int64 (M,), sorted; `digests` int64 (M,) of the model-ready pixels; `columns`, by name, each (M,).
    """

    object_ids: np.ndarray
    digests: np.ndarray
    columns: dict[str, np.ndarray]

    @classmethod
    def from_tile(cls, path: Path, model_id: str, recipe_digest: str) -> PreviousPredictions | None:
        """What the file of a tile holds; None when another model or preprocessing made it, or it cannot be used."""
        metadata = read_tile_metadata(path)
        if metadata is None or (metadata.model_id, metadata.recipe_digest) != (model_id, recipe_digest):
            return None
        schema = arrow_schema(metadata.class_slugs)
        predicted = [*_PREDICTED_COLUMNS, *(f"p_{slug}" for slug in metadata.class_slugs)]
        wanted = ["object_id", "input_digest", *predicted]
        try:
            if pq.read_schema(path).remove_metadata() != schema:
                return None  # committed by another version of the catalogue
            table = pq.read_table(path, columns=wanted, filters=[("label_id", ">=", 0)])
        except (OSError, pa.ArrowException):
            return None  # damaged: everything is predicted again
        table = table.sort_by("object_id")
        columns = {name: table[name].to_numpy() for name in predicted}
        columns["quality_flags"] = columns["quality_flags"] & int(CERTAINTY_FLAGS)
        return cls(table["object_id"].to_numpy(), table["input_digest"].to_numpy(), columns)

    def lookup(self, object_ids: np.ndarray, digests: np.ndarray) -> np.ndarray:
        """The row of each object, int64 (N,), −1 where it is not there or its pixels differ.

        `object_ids` and `digests` are int64 (N,).
        """
        if len(self.object_ids) == 0:
            return np.full(len(object_ids), -1, dtype=np.int64)
        rows = np.searchsorted(self.object_ids, object_ids).clip(max=len(self.object_ids) - 1)
        same = (self.object_ids[rows] == object_ids) & (self.digests[rows] == digests)
        return np.where(same, rows, -1).astype(np.int64)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The columns at these rows; `run_id` and `mjd_predicted` are those of the run that predicted."""
        return {name: values[rows] for name, values in self.columns.items()}


def predict(
    pixels: Tensor,
    screened: ScreenedBatch,
    predictor: Predictor,
    previous: PreviousPredictions | None,
    run_id: str,
    mjd: float,
) -> BatchPrediction:
    """Predictions for the model-ready pixels uint8 (N, 3, S, S) of screened stamps.

    Raises
    ------
    models.errors.ModelError : the network gives logits that are not finite.
    """
    has_label = screened.has_label
    digests = pixel_digests(pixels)
    rows = previous.lookup(screened.object_ids, digests) if previous else np.full(len(pixels), -1)
    rows[~has_label] = -1
    fresh = rows < 0
    parts = []
    if fresh.any():
        chosen = pixels[torch.from_numpy(fresh)]
        parts.append((fresh, _by_network(chosen, has_label[fresh], predictor, run_id, mjd)))
    if previous is not None and not fresh.all():
        parts.append((~fresh, previous.take(rows[~fresh])))
    columns = {name: np.empty(len(rows), dtype=values.dtype) for name, values in parts[0][1].items()}
    for where, part in parts:
        for name, values in part.items():
            columns[name][where] = values
    return BatchPrediction(columns, digests, int((~fresh).sum()))


def _by_network(
    pixels: Tensor, has_label: np.ndarray, predictor: Predictor, run_id: str, mjd: float
) -> dict[str, np.ndarray]:
    """Columns of a prediction by the network; without a label where the stamp shows nothing to classify."""
    prediction, count = predictor.predict(pixels), len(pixels)
    sets, novelty = prediction.sets, prediction.novelty
    return {
        **label_columns(prediction.probabilities, has_label, predictor.card.class_slugs),
        **certainty_columns(sets, prediction.spread, novelty, prediction.n_views, has_label),
        "quality_flags": np.where(has_label, certainty_flags(sets, prediction.agreement, novelty), 0),
        "run_id": np.full(count, run_id, dtype=object),
        "mjd_predicted": np.full(count, mjd),
    }
