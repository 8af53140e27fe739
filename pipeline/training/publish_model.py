"""From a trained network to a model folder: calibrate, evaluate, describe, publish.

Calibration sees the validation split only; the test split is measured once, and nothing is chosen by it. What is
calibrated and measured runs through the same `Ensemble` that serves, with the same number of views.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.artifacts.registry import Calibration, ModelCard, load_card, publish
from models.artifacts.weights import save_network
from models.inference.ensemble import Ensemble, EnsembleLogits
from models.inference.predictions import UncertaintyModel, calibrated_probabilities, fit_uncertainty
from models.metrics import evaluate, reliability
from models.networks.factory import recorded_layout
from models.preprocessing import Preprocessing
from models.uncertainty.ood import fit_feature_space
from pipeline.config.training import TrainingSettings
from pipeline.core.versions import software_versions
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.splits import Split
from pipeline.training.domain_envelope import envelope

_FEATURE_ROWS = 20_000  # training images, evenly spread, that the feature space is fitted to
_FEW = 100  # validation images; with fewer, the remarks of a card say so


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, before calibration, and what it was trained from.

    pixels : uint8 (N, 3, S, S), model-ready, of the whole image set; `parts` are rows of it.
    history : one entry an epoch, plain values.
    more_data, remarks : further entries of the card's `data` and `remarks`.
    """

    model_id: str
    network: nn.Module
    settings: TrainingSettings
    preprocessing: Preprocessing
    images: ImageSet
    parts: Split
    pixels: Tensor
    history: list[dict[str, Any]]
    more_data: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeasuredModel:
    """What calibration found and how good the result is: the part of a card that validation and test splits give."""

    confidence: UncertaintyModel
    validation: dict[str, Any]
    test: dict[str, Any] | None
    calibration: dict[str, Calibration]
    remarks: list[str]

    def fields(self, remarks: tuple[str, ...] = ()) -> dict[str, Any]:
        """As fields of a model card; `remarks` are further ones, which come first."""
        return {
            "temperature": self.confidence.temperature,
            "conformal": self.confidence.conformal,
            "novelty": self.confidence.novelty,
            "validation": self.validation,
            "test": self.test,
            "calibration": self.calibration,
            "remarks": [*remarks, *self.remarks],
        }


def ensemble_of(trained: TrainedNetwork, device: torch.device) -> Ensemble:
    """The trained network as it will predict: with its views, and the feature space of its training images."""
    ensemble = Ensemble([trained.network], [], trained.preprocessing, views=trained.settings.views, device=device)
    train = trained.parts.train
    rows = train[np.linspace(0, len(train) - 1, min(len(train), _FEATURE_ROWS)).astype(np.int64)]
    features = ensemble.features(trained.pixels, rows)
    ensemble.spaces.append(fit_feature_space(features, trained.images.labels[rows]))
    return ensemble


def measure(ensemble: Ensemble, pixels: Tensor, images: ImageSet, parts: Split, coverage: float) -> MeasuredModel:
    """Calibrate an ensemble on the validation split and evaluate it there and on the test split."""
    labels = images.labels[parts.validation]
    outputs = ensemble.predict(pixels, parts.validation)
    confidence = fit_uncertainty(outputs, labels, coverage)
    numbers, validation = _evaluated(confidence, outputs, labels)
    calibration, test = {"validation": validation}, None
    if len(parts.test):
        test_labels = images.labels[parts.test]
        test, calibration["test"] = _evaluated(confidence, ensemble.predict(pixels, parts.test), test_labels)
    return MeasuredModel(confidence, numbers, test, calibration, _remarks(confidence, images, parts))


def publish_network(
    models: Path,
    trained: TrainedNetwork,
    ensemble: Ensemble,
    measured: MeasuredModel,
    *,
    files: dict[str, str | bytes] | None = None,
    may_lead: bool = True,
) -> ModelCard:
    """Write the model folder of a calibrated network; `files` are further files by name.

    The first model of a folder becomes champion, unless it may not lead.
    """
    settings = trained.settings
    card = ModelCard(
        model_id=trained.model_id,
        variant=settings.variant,
        layout=recorded_layout(settings.variant, settings.layout),
        parameters=sum(parameter.numel() for parameter in trained.network.parameters()),
        members=[],
        views=settings.views,
        settings=settings.model_dump(),
        history=trained.history,
        **common_fields(trained.preprocessing, trained.images, trained.parts, trained.more_data),
        **measured.fields(trained.remarks),
    )

    def save(folder: Path) -> None:
        save_network(trained.network, folder)
        ensemble.spaces[0].save(folder)

    all_files = {"split.json": json.dumps(trained.parts.to_dict()), **(files or {})}
    publish(models, card, save, files=all_files, may_lead=may_lead)
    return load_card(models, trained.model_id)  # as every later reader will see it


def common_fields(
    preprocessing: Preprocessing, images: ImageSet, parts: Split, more_data: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The fields of a card that say what a model was made from, and when; `more_data` are further entries of `data`."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "image_size": preprocessing.image_size,
        "class_slugs": list(images.class_slugs),
        "class_names": list(images.class_names),
        "recipe": preprocessing.to_dict(),
        "recipe_digest": preprocessing.digest,
        "data": {
            "source": Path(images.source).name,
            "kind": images.kind,
            "simulated": images.simulated,
            "digest": images.digest,
            "counts": {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)},
            **(more_data or {}),
        },
        "envelope": envelope(images, preprocessing),
        "split_digest": parts.digest,
        "versions": software_versions(),
    }


def _evaluated(
    confidence: UncertaintyModel, outputs: EnsembleLogits, labels: np.ndarray
) -> tuple[dict[str, Any], Calibration]:
    """The evaluation of a split, and its calibration before and after temperature scaling."""
    predicted = confidence.of(outputs)
    raw = calibrated_probabilities(outputs, 1.0)
    numbers = evaluate(predicted.probabilities, labels, predicted.sets).to_dict()
    calibration = Calibration(
        before=_calibration_numbers(raw, evaluate(raw, labels).to_dict(), labels),
        after=_calibration_numbers(predicted.probabilities, numbers, labels),
    )
    return numbers, calibration


def _calibration_numbers(probabilities: np.ndarray, numbers: dict[str, Any], labels: np.ndarray) -> dict[str, Any]:
    chosen = {name: numbers[name] for name in ("ece", "ece_equal_count", "brier", "nll")}
    return {**chosen, "bins": [asdict(each) for each in reliability(probabilities, labels)]}


def _remarks(confidence: UncertaintyModel, images: ImageSet, parts: Split) -> list[str]:
    """What a user of the model should be careful with, in sentences."""
    sets, slugs = confidence.conformal, images.class_slugs
    remarks: list[str] = []
    if len(parts.validation) < _FEW:
        remarks.append(
            f"Calibrated on only {len(parts.validation)} validation images: temperature, prediction sets and novelty "
            "scores are rough."
        )
    if sets.pooled == 0:
        remarks.append("Too few validation images for prediction sets: every class is in every set.")
    borrowed = [slug for slug, own in zip(slugs, sets.own, strict=True) if not own]
    if borrowed:
        remarks.append(
            f"Too few validation images of {', '.join(borrowed)} for a threshold of their own: their prediction sets "
            "use that of all classes together."
        )
    unseen = sorted(set(range(len(slugs))) - set(images.labels[parts.train].tolist()))
    if unseen:
        remarks.append(f"No training images of {', '.join(slugs[c] for c in unseen)}: never called.")
    return remarks
