"""How good a model is on the frozen test split of its own data set: a report on disk and as values."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from catalogs.files import written_whole
from models.metrics import Evaluation, evaluate
from models.predictor import chosen_device, predictor_for
from models.registry import ModelCard, load_card
from pipeline.errors import UserError
from pipeline.image_sets import ImageSet
from pipeline.settings import TrainingSettings, Workspace
from pipeline.train import split_of
from pipeline.versions import software_versions
from pipeline.workers import set_torch_threads


@dataclass(frozen=True)
class BenchmarkResult:
    """Numbers of a model on its test split; `images_per_second` includes the network only."""

    card: ModelCard
    evaluation: Evaluation
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report or a script."""
        return {
            "model": self.card.model_id,
            "simulated": bool(self.card.data.get("simulated")),
            **self.evaluation.to_dict(),
            "classes": self.card.class_slugs,
            "images_per_second": round(self.images_per_second, 1),
            "parameters": self.card.parameters,
            "split": self.card.split_digest,
            "versions": software_versions(),
        }


def benchmark(workspace: Workspace, images: ImageSet, model_id: str) -> BenchmarkResult:
    """Evaluate a model on the test split of the images it was trained with, and write the report.

    Raises
    ------
    UserError : these are not the images of its training, so nobody can tell which of them it has seen.
    """
    card = load_card(workspace.models, model_id)
    parts = split_of(TrainingSettings.model_validate(card.settings), images)
    if images.digest != card.data["digest"] or parts.digest != card.split_digest:
        raise UserError(
            f"{images.source} is not what {model_id} was trained on ({card.data['source']}): its test split can "
            "not be told from images the model has seen"
        )
    if len(parts.test) == 0:
        raise UserError(f"{model_id} was trained without a test split (training.test_fraction = 0)")
    set_torch_threads(workspace.settings.workers.torch_threads())
    predictor = predictor_for(workspace.models, model_id, chosen_device(workspace.settings.workers.device))
    pixels = images.pixels(predictor.recipe)[torch.from_numpy(parts.test)]
    started = time.monotonic()
    probabilities = predictor.probabilities(pixels)
    speed = len(pixels) / (time.monotonic() - started)
    result = BenchmarkResult(card, evaluate(probabilities, images.labels[parts.test]), speed)
    _write(workspace.reports / f"benchmark-{model_id}", result)
    return result


def confusion_table(evaluation: Evaluation, slugs: list[str]) -> list[list[str]]:
    """Rows of text: true class, counts called each class, recall. The first row is the header."""
    rows = [["true \\ called", *[str(i) for i in range(len(slugs))], "recall"]]
    for i, slug in enumerate(slugs):
        recall = evaluation.recall[i]
        rows.append(
            [f"{i} {slug}", *[str(n) for n in evaluation.confusion[i]], "–" if recall != recall else f"{recall:.2f}"]
        )
    return rows


def to_markdown(result: BenchmarkResult) -> str:
    """The report for people."""
    table = confusion_table(result.evaluation, result.card.class_slugs)
    e = result.evaluation
    lines = [
        f"# Benchmark of {result.card.model_id}",
        "",
        f"Test split {result.card.split_digest} of {result.card.data['source']}"
        + (" (**simulated**)" if result.card.data.get("simulated") else "")
        + f", {e.n} images.",
        "",
        f"Accuracy {e.accuracy:.4f}, macro-F1 {e.macro_f1:.4f}, calibration error {e.ece:.4f}, Brier {e.brier:.4f}; "
        f"{result.images_per_second:.0f} images/s.",
        "",
        "| " + " | ".join(table[0]) + " |",
        "|" + "---|" * len(table[0]),
        *("| " + " | ".join(row) + " |" for row in table[1:]),
    ]
    return "\n".join(lines) + "\n"


def _write(stem: Path, result: BenchmarkResult) -> None:
    with written_whole(stem.with_suffix(".json")) as beside:
        beside.write_text(json.dumps(result.to_dict(), indent=1))
    with written_whole(stem.with_suffix(".md")) as beside:
        beside.write_text(to_markdown(result))
