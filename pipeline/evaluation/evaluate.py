"""How good a model is on the frozen test split of its own data set: a report on disk and as values.

Experiments of a grid (`pipeline.evaluation.grid`) are measured with the same `predict_test_split`, so that a model has
the same numbers alone and on a leaderboard.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from catalogs.atomic import atomic_write
from models.artifacts.registry import ModelCard, load_card
from models.inference.predictor import chosen_device, predictor_for
from models.metrics import Evaluation, evaluate
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.core.templates import render
from pipeline.core.versions import software_versions
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.splits import recorded_split
from pipeline.execution.task import set_torch_threads

_FOOTER = b"morphcat"
_WARM_UP = 64  # images predicted before the clock starts: a GPU chooses its kernels at the first batch


@dataclass(frozen=True)
class PredictedSplit:
    """The predictions of one model for its test split, and their speed.

    image_set, split : digests of the images and of their split.
    rows : int64 (n,), rows of the image set; labels : int64 (n,); pixscale : float64 (n,) arcsec, NaN if unknown.
    probabilities : float32 (n, C), calibrated.
    images_per_second : from pixels in memory to predictions, once over the split, on `device`.
    """

    model_id: str
    image_set: str
    split: str
    simulated: bool
    rows: np.ndarray
    labels: np.ndarray
    pixscale: np.ndarray
    probabilities: np.ndarray
    images_per_second: float
    device: str

    def evaluation(self, card: ModelCard) -> Evaluation:
        """The numbers of these predictions; `card` is that of the model."""
        return evaluate(self.probabilities, self.labels, card.conformal.sets(self.probabilities))

    def save(self, path: Path) -> None:
        """Write a Parquet file with a row for each image, and the other fields in its footer."""
        table = pa.table(
            {
                "row": self.rows,
                "label": self.labels.astype(np.int16),
                "pixscale": self.pixscale,
                "probabilities": pa.FixedSizeListArray.from_arrays(
                    pa.array(self.probabilities.ravel(), pa.float32()), self.probabilities.shape[1]
                ),
            }
        )
        names = ("model_id", "image_set", "split", "simulated", "images_per_second", "device")
        footer = json.dumps({name: getattr(self, name) for name in names})
        with atomic_write(path) as temporary:
            pq.write_table(table.replace_schema_metadata({_FOOTER: footer.encode()}), temporary, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> PredictedSplit:
        """Read what `save` wrote.

        Raises
        ------
        UserError : the file is damaged, or of another kind.
        """
        try:
            table = pq.read_table(path)
            footer = json.loads((table.schema.metadata or {})[_FOOTER])
            probabilities = table["probabilities"].combine_chunks()
            return cls(
                rows=table["row"].to_numpy(),
                labels=table["label"].to_numpy().astype(np.int64),
                pixscale=table["pixscale"].to_numpy(),
                probabilities=probabilities.flatten().to_numpy().reshape(len(table), -1),
                **footer,
            )
        except (pa.ArrowInvalid, KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: not the predictions of a model ({type(error).__name__}: {error}); delete it and run the "
                "benchmark again, which writes a new one"
            ) from error


@dataclass(frozen=True)
class BenchmarkResult:
    """Numbers of a model on its test split; `images_per_second` and `device` as in `PredictedSplit`."""

    card: ModelCard
    evaluation: Evaluation
    images_per_second: float
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report or a script."""
        return {
            "model": self.card.model_id,
            "simulated": bool(self.card.data.get("simulated")),
            **self.evaluation.to_dict(),
            "classes": self.card.class_slugs,
            "images_per_second": round(self.images_per_second, 1),
            "device": self.device,
            "parameters": self.card.parameters,
            "split": self.card.split_digest,
            "versions": software_versions(),
        }


def benchmark(workspace: Workspace, images: ImageSet, model_id: str) -> BenchmarkResult:
    """Evaluate a model on the test split of the images it was trained with, and write the report.

    Raises what `predict_test_split` raises.
    """
    card = load_card(workspace.models, model_id)
    run = predict_test_split(workspace, images, model_id)
    result = BenchmarkResult(card, run.evaluation(card), run.images_per_second, run.device)
    _write(workspace.reports / f"benchmark-{model_id}", result)
    return result


def predict_test_split(workspace: Workspace, images: ImageSet, model_id: str) -> PredictedSplit:
    """Predict the test split that the folder of a model records.

    Raises
    ------
    UserError : these are not the images of its training, so nobody knows which of them it has seen; or it has no test
        split.
    models.errors.ModelError : no such model, or it is damaged.
    """
    card = load_card(workspace.models, model_id)
    test = recorded_split(workspace.models, card, images).test
    if len(test) == 0:
        raise UserError(f"{model_id} was trained without a test split (training.test_fraction = 0)")
    set_torch_threads(workspace.settings.workers.torch_threads())
    predictor = predictor_for(workspace.models, model_id, chosen_device(workspace.settings.workers.device))
    pixels = images.pixels(predictor.preprocessing, workspace.cache)[torch.from_numpy(test)]
    predictor.predict(pixels[:_WARM_UP])
    started = time.monotonic()
    prediction = predictor.predict(pixels)
    seconds = time.monotonic() - started
    return PredictedSplit(
        model_id=model_id,
        image_set=images.digest,
        split=card.split_digest,
        simulated=images.simulated,
        rows=test,
        labels=images.labels[test],
        pixscale=images.pixscale[test],
        probabilities=prediction.probabilities,
        images_per_second=len(test) / seconds,
        device=_device_name(predictor.device),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


# --- report -------------------------------------------------------------------------------------------------------


def to_markdown(result: BenchmarkResult) -> str:
    """The report for people."""
    table = confusion_table(result.evaluation, result.card.class_slugs)
    return render("pipeline.evaluation", "benchmark.md.j2", result=result, confusion=table)


def confusion_table(evaluation: Evaluation, slugs: list[str]) -> pd.DataFrame:
    """A row of text for each true class: its number and name, the images of each predicted class, and the recall."""
    classes = range(len(slugs))
    table = pd.DataFrame(evaluation.confusion, columns=[str(c) for c in classes])
    table.insert(0, "true \\ predicted", [f"{c} {slugs[c]}" for c in classes])
    return table.assign(recall=["–" if np.isnan(recall) else f"{recall:.2f}" for recall in evaluation.recall])


def _write(stem: Path, result: BenchmarkResult) -> None:
    with atomic_write(stem.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(result.to_dict(), indent=1))
    with atomic_write(stem.with_suffix(".md")) as temporary:
        temporary.write_text(to_markdown(result))
