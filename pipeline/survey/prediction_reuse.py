"""Predictions taken over from the commit before, for objects whose model-ready pixels did not change.

A prediction depends on these pixels and the model alone; everything else in a row comes from the reader and is made
anew. Knows nothing of files of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.schema import CERTAINTY_FLAGS, arrow_schema
from catalogs.tiles import read_tile_metadata

_SAID = (
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


@dataclass(frozen=True)
class PreviousPredictions:
    """Predictions for the classified rows of one committed tile.

    `object_ids` int64 (M,), sorted; `digests` int64 (M,), of the model-ready pixels; `said`, by column, has M entries.
    """

    object_ids: np.ndarray
    digests: np.ndarray
    said: dict[str, np.ndarray]

    @classmethod
    def from_tile(cls, path: Path, model_id: str, recipe_digest: str) -> PreviousPredictions | None:
        """What the file of a tile holds; None when it was made by another model or recipe, or cannot be used."""
        stamp = read_tile_metadata(path)
        if stamp is None or (stamp.model_id, stamp.recipe_digest) != (model_id, recipe_digest):
            return None
        schema = arrow_schema(stamp.class_slugs)
        said = [*_SAID, *(f"p_{slug}" for slug in stamp.class_slugs)]
        try:
            if pq.read_schema(path).remove_metadata() != schema:
                return None  # committed by another version of the catalogue
            table = pq.read_table(path, columns=["object_id", "input_digest", *said], filters=[("label_id", ">=", 0)])
        except (OSError, pa.ArrowException):
            return None  # damaged: everything is predicted anew
        table = table.sort_by("object_id")
        columns = {name: table[name].to_numpy() for name in said}
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

    def columns(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Every column that a prediction determines, at these rows; `quality_flags` with the bits it sets alone.

        `run_id` and `mjd_predicted` are those of the run that predicted.
        """
        return {name: values[rows] for name, values in self.said.items()}
