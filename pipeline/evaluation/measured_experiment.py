"""What one experiment measured: its card and its predictions of the test split, as rows of the leaderboard's tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from models.artifacts.registry import ModelCard
from models.metrics import Evaluation
from pipeline.evaluation.evaluate import PredictedSplit
from pipeline.evaluation.published_results import published_accuracy

METRICS = (
    "accuracy",
    "macro_f1",
    "ece_before",
    "ece",
    "brier_before",
    "brier",
    "nll_before",
    "nll",
    "coverage",
    "mean_set_size",
    "images_per_second",
    "training_images_per_second",
)
"""Numbers of an experiment. `_before` is at temperature 1, the others after calibration; `images_per_second` is
inference on the test split, `training_images_per_second` the median epoch."""


@dataclass(frozen=True)
class MeasuredExperiment:
    """One trained network and its predictions of the test split."""

    card: ModelCard
    run: PredictedSplit

    @cached_property
    def configuration(self) -> str:
        """Everything but the seed, as text: experiments with the same make one entry."""
        settings = {name: value for name, value in self.card.settings.items() if name != "seed"}
        return json.dumps([settings, self.card.recipe_digest], sort_keys=True)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Computed from the predictions."""
        return self.run.evaluation(self.card)

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether each test image is classified correctly, bool (n,)."""
        return self.run.probabilities.argmax(axis=1) == self.run.labels

    def numbers(self, label: str, benchmark: str | None) -> dict[str, Any]:
        """A row of `Leaderboard.experiments`; `benchmark` is the public one that the images are, if they are one."""
        card, evaluation = self.card, self.evaluation
        before = card.calibration["test"].before
        speeds = [epoch["images_per_second"] for epoch in card.history]
        measured = {
            **evaluation.to_dict(),
            **{f"{name}_before": before[name] for name in ("ece", "brier", "nll")},
            "images_per_second": self.run.images_per_second,
            "training_images_per_second": np.median(speeds) if speeds else np.nan,
        }
        published = published_accuracy(benchmark, card.variant, card.layout)
        return {
            "model_id": card.model_id,
            "label": label,
            "variant": card.variant,
            "layout": card.layout,
            "recipe": str(card.settings["preset"]),
            "seed": int(card.settings["seed"]),
            "epochs": card.settings["epochs"],
            "batch_size": card.settings["batch_size"],
            "image_size": card.image_size,
            "views": card.views,
            "parameters": card.parameters,
            "test_images": evaluation.n,
            **{metric: float(measured[metric]) for metric in METRICS},
            "temperature": card.temperature,
            "coverage_target": card.conformal.coverage,
            "validation_accuracy": card.validation["accuracy"] if card.validation else np.nan,
            "device": self.run.device,
            "reported_percent": np.nan if published is None else published,
            "image_set": self.run.image_set,
            "split": self.run.split,
        }

    def classes(self) -> pd.DataFrame:
        """Recall and coverage of each class; NaN without images."""
        labels, slugs = self.run.labels, self.card.class_slugs
        sets = self.card.conformal.sets(self.run.probabilities)
        coverage = pd.Series(sets[np.arange(len(labels)), labels]).groupby(labels).mean()
        return pd.DataFrame(
            {
                "class": range(len(slugs)),
                "slug": slugs,
                "images": np.sum(self.evaluation.confusion, axis=1),
                "recall": self.evaluation.recall,
                "coverage": coverage.reindex(range(len(slugs))).to_numpy(),
            }
        )

    def confusion(self) -> pd.DataFrame:
        """The number of images of each true and predicted class."""
        counts = np.array(self.evaluation.confusion)
        true, called = np.indices(counts.shape)
        return pd.DataFrame({"true": true.ravel(), "called": called.ravel(), "images": counts.ravel()})

    def scales(self) -> pd.DataFrame:
        """Images and accuracy at each pixel scale (arcsec, to three decimals); without rows if none is known."""
        table = pd.DataFrame({"pixscale": np.round(self.run.pixscale, 3), "correct": self.correct})
        by_scale = table[np.isfinite(table.pixscale)].groupby("pixscale").correct
        return by_scale.agg(images="size", accuracy="mean").reset_index()

    def reliability(self) -> pd.DataFrame:
        """The bins of the reliability tables on the test split that the card keeps."""
        test = self.card.calibration["test"]
        return pd.concat(
            [pd.DataFrame(getattr(test, when)["bins"]).assign(calibration=when) for when in ("before", "after")]
        )

    def epochs(self) -> pd.DataFrame:
        """Validation loss and accuracy of each epoch."""
        history = pd.DataFrame(self.card.history, columns=["validation_loss", "validation_accuracy"])
        return history.assign(epoch=range(1, len(history) + 1))
