"""Why an object has its label: everything that is known of one row of the catalogue.

The stamp and its views are made again from the input. What is no longer available becomes a sentence in `problems`, and
the rest is shown without it. `explain_report` makes text or a page of an explanation.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from catalogs.atomic import atomic_write
from catalogs.schema import FLAG_MEANINGS, UNRELIABLE
from models.artifacts.registry import ModelCard
from models.inference.ensemble import Ensemble
from models.uncertainty.ood import FeatureSpace
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.splits import recorded_split
from pipeline.inspection.reproduce import (
    CataloguedObject,
    ReloadedStamp,
    find_object,
    load_ensemble_for,
    model_of,
    reload_pixels,
)

ALL_VIEWS = 8
SEARCHED = 512  # training images among which the nearest are found, evenly spread over the training split
_VIEW_NAMES = ("as it is", *(f"turned by {angle}°" for angle in (90, 180, 270)))


@dataclass(frozen=True)
class ClassProbability:
    """A class of an object: its probability in the catalogue, and whether it is in the prediction set.

    The model gave this class to `called` images of the evaluation split, of which the share `right` was of it; NaN
    if there are none.
    """

    slug: str
    name: str
    probability: float
    in_set: bool
    called: int
    right: float


@dataclass(frozen=True)
class ViewPrediction:
    """The prediction of one network for one view: its most probable class, and its probability of the label."""

    name: str
    label: str
    probability: float
    of_label: float


@dataclass(frozen=True)
class TrainingNeighbour:
    """A training image near the object among the network's features; `row` is that of the image set.

    `distance` is in standard deviations of the features within a class; `pixels` uint8 (3, S, S).
    """

    row: int
    label: str
    distance: float
    pixels: np.ndarray


@dataclass
class Explanation:
    """Everything about one object. `card` is None if the model is gone, `stamp` where the input is.

    `split` is the evaluation split of the model that the classes refer to. `calibration` says how often the model was
    right at confidences like this one. `neighbours_from` says among which images the neighbours were found, or why
    there are none. `problems` are sentences on what is not available.
    """

    entry: CataloguedObject
    card: ModelCard | None = None
    stamp: ReloadedStamp | None = None
    classes: list[ClassProbability] = field(default_factory=list)
    split: str = ""
    calibration: str = ""
    views: list[ViewPrediction] = field(default_factory=list)
    neighbours: list[TrainingNeighbour] = field(default_factory=list)
    neighbours_from: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def same_input(self) -> bool | None:
        """Whether the pixels are those that were classified; None if there are none."""
        return None if self.stamp is None else self.stamp.digest == self.entry.row["input_digest"]

    @property
    def flags(self) -> list[tuple[str, str, bool]]:
        """Name and meaning of each quality flag that is set, and whether it makes the row unreliable."""
        bits = int(self.entry.row["quality_flags"])
        return [
            (flag.name.lower(), meaning, bool(flag & UNRELIABLE))
            for flag, meaning in FLAG_MEANINGS.items()
            if bits & flag and flag.name
        ]


def explain(
    workspace: Workspace,
    object_id: int,
    *,
    release: str | None = None,
    images: ImageSet | None = None,
    neighbours: int = 5,
) -> Explanation:
    """Gather everything that is known of an object.

    `images` are the labelled images of the training, for the nearest examples; `neighbours` how many of these.

    Raises
    ------
    UserError : there is no such object.
    catalogs.errors.CatalogError : there is no (such) release.
    """
    explanation = Explanation(find_object(workspace, object_id, release))
    try:
        _explain_by_model(workspace, explanation, images, neighbours)
    except UserError as problem:
        explanation.problems.append(str(problem))
    if explanation.card is None:
        explanation.classes = _class_probabilities(explanation.entry.row, None, {})
    return explanation


def _explain_by_model(workspace: Workspace, explanation: Explanation, images: ImageSet | None, neighbours: int) -> None:
    """Add what the model says of the object and of its stamp, as far as there are both; UserError at what is gone."""
    entry = explanation.entry
    explanation.card, preprocessing = model_of(workspace, entry)
    card = explanation.card
    explanation.split = "test" if card.test else "validation" if card.validation else ""
    explanation.classes = _class_probabilities(entry.row, card, card.test or card.validation or {})
    explanation.calibration = _calibration_note(entry, card)
    explanation.stamp = reload_pixels(workspace, entry, preprocessing)
    if not entry.classified:
        return
    ensemble, pixels = load_ensemble_for(workspace, card), explanation.stamp.pixels
    explanation.views = _view_predictions(ensemble, card, pixels, str(entry.row["label"]))
    if neighbours:
        found = nearest_examples(workspace, ensemble, card, images, pixels, neighbours)
        explanation.neighbours, explanation.neighbours_from = found


def _class_probabilities(
    row: dict[str, Any], card: ModelCard | None, evaluation: dict[str, Any]
) -> list[ClassProbability]:
    """The classes, the most probable first; `evaluation` has the confusion matrix that says how often each is right."""
    slugs = [name.removeprefix("p_") for name in row if name.startswith("p_")]
    names = dict(zip(card.class_slugs, card.class_names, strict=True)) if card else {}
    confusion = np.array(evaluation.get("confusion", np.zeros((len(slugs), len(slugs)), dtype=np.int64)))
    called = confusion.sum(axis=0)
    classes = [
        ClassProbability(
            slug=slug,
            name=names.get(slug, slug),
            probability=float(row[f"p_{slug}"]),
            in_set=bool(int(row["pred_set"]) >> k & 1),
            called=int(called[k]),
            right=float(confusion[k, k] / called[k]) if called[k] else float("nan"),
        )
        for k, slug in enumerate(slugs)
    ]
    return sorted(classes, key=lambda one: -one.probability)


def _calibration_note(entry: CataloguedObject, card: ModelCard) -> str:
    """How often the model was right at confidences like this one: the nearest bin of its reliability table."""
    split = next((name for name in ("test", "validation") if name in card.calibration), "")
    bins = card.calibration[split].after["bins"] if split else []
    if not bins or not entry.classified:
        return ""
    confidence = float(entry.row["confidence"])
    nearest = min(bins, key=lambda one: abs(one["confidence"] - confidence))
    simulated = " simulated" if card.data.get("simulated") else ""
    return (
        f"of {nearest['n']}{simulated} {split} images called with a confidence near {nearest['confidence']:.2f}, "
        f"{nearest['accuracy']:.0%} were called rightly"
    )


def _view_predictions(ensemble: Ensemble, card: ModelCard, pixels: Tensor, label: str) -> list[ViewPrediction]:
    """The predictions of each network for all eight views, however many views the model averages in a survey."""
    averaged, ensemble.views = ensemble.views, ALL_VIEWS
    try:
        logits = ensemble.predict(pixels).logits[:, 0]
    finally:
        ensemble.views = averaged
    probabilities = (logits / card.temperature).softmax(dim=1).numpy()  # float32 (views × networks, C)
    networks = [f", {member.model_id}" for member in card.members] or [""]
    labelled = card.class_slugs.index(label)
    predictions = []
    for number, p in enumerate(probabilities):
        view, network = divmod(number, len(networks))
        name = _VIEW_NAMES[view % 4] + (", mirrored" if view >= 4 else "") + networks[network]
        best = int(p.argmax())
        predictions.append(ViewPrediction(name, card.class_slugs[best], float(p[best]), float(p[labelled])))
    return predictions


def nearest_examples(
    workspace: Workspace, ensemble: Ensemble, card: ModelCard, images: ImageSet | None, pixels: Tensor, count: int
) -> tuple[list[TrainingNeighbour], str]:
    """The training images nearest to model-ready pixels uint8 (1, 3, S, S), and among which they were found.

    At most `SEARCHED` training images are compared. Where the images are not those of the training there are no
    neighbours, and the sentence says why.
    """
    source = card.data["source"]
    if images is None:
        return [], f"the training images ({source}) are not at hand; name them to see the nearest"
    try:
        train = recorded_split(workspace.models, card, images).train
        image_pixels = images.pixels(ensemble.preprocessing, workspace.cache)
    except UserError as problem:
        return [], f"the training images cannot be used: {problem}"
    rows = train[np.unique(np.linspace(0, len(train) - 1, min(len(train), SEARCHED)).astype(np.int64))]
    own = ensemble.features(pixels, np.zeros(1, dtype=np.int64))
    distance = _distances(ensemble.spaces[0], _features(workspace, ensemble, card, image_pixels, rows), own[0])
    nearest = np.argsort(distance, kind="stable")[:count]
    simulated = ", simulated" if images.simulated else ""
    found = [
        TrainingNeighbour(int(row), images.class_slugs[images.labels[row]], float(far), image_pixels[int(row)].numpy())
        for row, far in zip(rows[nearest], distance[nearest], strict=True)
    ]
    return found, f"among {len(rows)} of {len(train)} training images of {source}{simulated}"


def _distances(space: FeatureSpace, features: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Distances float32 (n,) of features float32 (n, D) to one, float32 (D,), as `FeatureSpace.distance` measures."""
    return replace(space, means=own[None]).distance(features)


def _features(
    workspace: Workspace, ensemble: Ensemble, card: ModelCard, pixels: Tensor, rows: np.ndarray
) -> np.ndarray:
    """Features float32 (n, D) of training images; kept in the cache, because another object is often explained next."""
    key = hashlib.sha256(json.dumps([card.model_id, card.data["digest"], rows.tolist()]).encode()).hexdigest()[:16]
    path: Path = workspace.cache / f"features-{key}.npy"
    if path.is_file():
        kept = np.load(path, allow_pickle=False)
        if len(kept) == len(rows):
            return kept
    features = ensemble.features(pixels, rows)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, features, allow_pickle=False)
    return features
