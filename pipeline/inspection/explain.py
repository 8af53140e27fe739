"""Why an object has its label: everything that is known of one row of the catalogue, gathered and put in words.

The stamp and the views are made anew from the input; what cannot be had any more is said, and never in the way of
the rest. `explain_page` makes a page of it.
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
SEARCHED = 512  # training images that are looked through for the nearest, evenly spread over the training split
_VIEW_NAMES = ("as it is", *(f"turned by {angle}°" for angle in (90, 180, 270)))


@dataclass(frozen=True)
class ClassProbability:
    """A class of an object: its probability in the catalogue, whether it is in the prediction set.

    `called` images of the `split` were given this class by the model, of which the share `right` was of it; NaN where
    that is not known.
    """

    slug: str
    name: str
    probability: float
    in_set: bool
    called: int
    right: float


@dataclass(frozen=True)
class ViewPrediction:
    """What one view, seen by one network, says by itself: the class it calls, and its probability of the label."""

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
    """Everything about one object. `card` is None where the model is gone, `seen` where the input is.

    `problems` are sentences on what could not be had; `honesty` says how honest confidences like this one are.
    """

    thing: CataloguedObject
    card: ModelCard | None = None
    seen: ReloadedStamp | None = None
    classes: list[ClassProbability] = field(default_factory=list)
    split: str = ""
    honesty: str = ""
    views: list[ViewPrediction] = field(default_factory=list)
    neighbours: list[TrainingNeighbour] = field(default_factory=list)
    neighbours_from: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def same_input(self) -> bool | None:
        """Whether the pixels are those that were classified; None where there are none."""
        return None if self.seen is None else self.seen.digest == self.thing.row["input_digest"]

    @property
    def flags(self) -> list[tuple[str, str, bool]]:
        """Name and meaning of each quality flag that is set, and whether it makes the row unreliable."""
        bits = int(self.thing.row["quality_flags"])
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
    """Gather what there is to say about an object.

    `images` are the labelled images of the training, for the nearest examples; `neighbours` how many of these.

    Raises
    ------
    UserError : there is no such object.
    catalogs.errors.CatalogError : there is no (such) release.
    """
    told = Explanation(find_object(workspace, object_id, release))
    try:
        told.card, recipe = model_of(workspace, told.thing)
    except UserError as problem:
        told.problems.append(str(problem))
    told.split, told.classes = _classes(told.thing.row, told.card)
    if told.card is None:
        return told
    told.honesty = _honesty(told.thing, told.card)
    try:
        told.seen = reload_pixels(workspace, told.thing, recipe)
    except UserError as problem:
        told.problems.append(str(problem))
        return told
    if not told.thing.classified:
        return told
    try:
        panel = load_ensemble_for(workspace, told.card)
    except UserError as problem:
        told.problems.append(str(problem))
        return told
    told.views = _views(panel, told.card, told.seen.pixels, str(told.thing.row["label"]))
    if neighbours:
        told.neighbours, told.neighbours_from = nearest_examples(
            workspace, panel, told.card, images, told.seen.pixels, neighbours
        )
    return told


def _classes(row: dict[str, Any], card: ModelCard | None) -> tuple[str, list[ClassProbability]]:
    """The classes, the most probable first, and the split that tells how often each is right."""
    slugs = [name.removeprefix("p_") for name in row if name.startswith("p_")]
    names = dict(zip(card.class_slugs, card.class_names, strict=True)) if card else {}
    split = "" if card is None else "test" if card.test else "validation" if card.validation else ""
    numbers = (card.test or card.validation) if card else None
    confusion = np.array(numbers["confusion"]) if numbers else np.zeros((len(slugs), len(slugs)), dtype=np.int64)
    called = confusion.sum(axis=0)
    classes = [
        ClassProbability(
            slug,
            names.get(slug, slug),
            float(row[f"p_{slug}"]),
            bool(int(row["pred_set"]) >> k & 1),
            int(called[k]),
            float(confusion[k, k] / called[k]) if called[k] else float("nan"),
        )
        for k, slug in enumerate(slugs)
    ]
    return split, sorted(classes, key=lambda one: -one.probability)


def _honesty(thing: CataloguedObject, card: ModelCard) -> str:
    """How often the model was right where it was as confident as here: the nearest bin of its reliability table."""
    split = next((name for name in ("test", "validation") if name in card.calibration), "")
    bins = card.calibration[split].after["bins"] if split else []
    if not bins or not thing.classified:
        return ""
    confidence = float(thing.row["confidence"])
    near = min(bins, key=lambda one: abs(one["confidence"] - confidence))
    simulated = " simulated" if card.data.get("simulated") else ""
    return (
        f"of {near['n']}{simulated} {split} images called with a confidence near {near['confidence']:.2f}, "
        f"{near['accuracy']:.0%} were called rightly"
    )


def _views(panel: Ensemble, card: ModelCard, pixels: Tensor, label: str) -> list[ViewPrediction]:
    """All eight views, each by each network, whatever number of views the model averages when it serves."""
    served, panel.views = panel.views, ALL_VIEWS
    try:
        logits = panel.passes(pixels).logits[:, 0]
    finally:
        panel.views = served
    shares = (logits / card.temperature).softmax(dim=1).numpy()
    members = [member.model_id for member in card.members] or [""]
    wanted = card.class_slugs.index(label)
    views = []
    for number, p in enumerate(shares):
        view, member = divmod(number, len(members))
        name = (
            _VIEW_NAMES[view % 4]
            + (", mirrored" if view >= 4 else "")
            + (f", {members[member]}" if card.members else "")
        )
        best = int(p.argmax())
        views.append(ViewPrediction(name, card.class_slugs[best], float(p[best]), float(p[wanted])))
    return views


def nearest_examples(
    workspace: Workspace, panel: Ensemble, card: ModelCard, images: ImageSet | None, pixels: Tensor, count: int
) -> tuple[list[TrainingNeighbour], str]:
    """The training images nearest to model-ready pixels uint8 (1, 3, S, S), and among what they were looked for.

    At most `SEARCHED` training images are looked through. Where the images are not those of the training there is
    none, and the sentence says why.
    """
    source = card.data["source"]
    if images is None:
        return [], f"the training images ({source}) are not at hand; name them to see the nearest"
    try:
        train = recorded_split(workspace.models, card, images).train
        theirs = images.pixels(panel.recipe, workspace.cache)
    except UserError as problem:
        return [], f"the training images cannot be used: {problem}"
    rows = train[np.unique(np.linspace(0, len(train) - 1, min(len(train), SEARCHED)).astype(np.int64))]
    own = panel.features(pixels, np.zeros(1, dtype=np.int64))
    distance = _distances(panel.spaces[0], _features(workspace, panel, card, theirs, rows), own[0])
    nearest = np.argsort(distance, kind="stable")[:count]
    simulated = ", simulated" if images.simulated else ""
    found = [
        TrainingNeighbour(int(row), images.class_slugs[images.labels[row]], float(far), theirs[int(row)].numpy())
        for row, far in zip(rows[nearest], distance[nearest], strict=True)
    ]
    return found, f"among {len(rows)} of {len(train)} training images of {source}{simulated}"


def _distances(space: FeatureSpace, features: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Distances float32 (n,) of features float32 (n, D) to one, float32 (D,), as `FeatureSpace.distance` measures."""
    return replace(space, means=own[None]).distance(features)


def _features(workspace: Workspace, panel: Ensemble, card: ModelCard, pixels: Tensor, rows: np.ndarray) -> np.ndarray:
    """Features float32 (n, D) of training images; kept in the cache, for the next object is asked about soon."""
    key = hashlib.sha256(json.dumps([card.model_id, card.data["digest"], rows.tolist()]).encode()).hexdigest()[:16]
    path: Path = workspace.cache / f"features-{key}.npy"
    if path.is_file():
        kept = np.load(path, allow_pickle=False)
        if len(kept) == len(rows):
            return kept
    features = panel.features(pixels, rows)
    with atomic_write(path) as beside, beside.open("wb") as file:
        np.save(file, features, allow_pickle=False)
    return features


def to_text(told: Explanation) -> list[str]:
    """The explanation as lines of text, without characters that a terminal would obey."""
    row, card = told.thing.row, told.card
    lines = [
        f"object {told.thing.object_id}  ({row['source_name']})",
        f"ra {row['ra']:.6f}  dec {row['dec']:+.6f}",
        *_said(told),
        *_flags_and_views(told),
    ]
    if told.neighbours_from:
        lines.append(f"nearest training examples: {told.neighbours_from}")
        lines += [f"  #{n.row:<7} {n.label:<20} distance {n.distance:.2f}" for n in told.neighbours]
    if told.same_input is not None:
        same = "the pixels are those that were classified"
        lines.append(f"input: {same if told.same_input else 'CHANGED, stamp and views show it as it is now'}")
    lines += [f"{name}: {value}" for name, value in origins(told)]
    lines += [f"remark on the model: {remark}" for remark in (card.remarks if card else [])]
    lines += [f"not available: {problem}" for problem in told.problems]
    return ["".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines]


def _said(told: Explanation) -> list[str]:
    """Label and probabilities as lines of text."""
    row = told.thing.row
    sure = "reliable" if row["is_reliable"] else "not reliable"
    if not told.thing.classified:
        return ["not classified"]
    lines = [f"label {row['label']}, confidence {row['confidence']:.4f}, {sure}"]
    lines += [f"  calibration: {told.honesty}"] if told.honesty else []
    for one in told.classes:
        bar = "█" * round(one.probability * 30)
        right = "" if one.right != one.right else f"right in {one.right:.0%} of {one.called} calls ({told.split})"
        lines.append(f"  {one.slug:<20} {one.probability:.4f} {'*' if one.in_set else ' '} {bar:<30} {right}".rstrip())
    return [*lines, f"  * in the prediction set; novelty {row['ood_score']:.3f}, entropy {row['entropy']:.3f}"]


def _flags_and_views(told: Explanation) -> list[str]:
    row = told.thing.row
    lines = ["flags:" if told.flags else "flags: none"]
    lines += [f"  {name}: {meaning}{'' if bad else ' (leaves it reliable)'}" for name, meaning, bad in told.flags]
    if told.views:
        agree = sum(view.label == row["label"] for view in told.views)
        lines.append(f"views: {agree} of {len(told.views)} call it {row['label']} ({row['n_views']} averaged)")
        lines += [f"  {v.name:<24} {v.label:<20} {v.probability:.4f}   label {v.of_label:.4f}" for v in told.views]
    return lines


def _known(value: float) -> str:
    """A number in words; empty for NaN, which stands for unknown."""
    return "" if value != value else f"{value:.3f}"


def origins(told: Explanation) -> list[tuple[str, str]]:
    """Where everything comes from: release, tile, model, run, versions."""
    row, run, card = told.thing.row, told.thing.run, told.card
    versions = json.loads(run.get("versions") or "{}")
    simulated = ", simulated" if card and card.data.get("simulated") else ""
    trained = f"{card.data['source']}{simulated}, {card.created}, recipe {card.recipe_digest}" if card else ""
    told_of = [
        ("release", told.thing.release),
        ("sky tile", f"{row['tile_id']} ({told.thing.origin or 'origin unknown'})"),
        ("layer", str(row["survey_layer"])),
        ("pixel scale of the input, arcsec", _known(row["pixscale"])),
        ("r magnitude", _known(row["mag_r"])),
        ("model", str(row["model_id"])),
        ("trained on", trained),
        ("run", f"{row['run_id']}, MJD {row['mjd_predicted']:.5f}"),
        ("settings of the run", run.get("settings_digest") or ""),
        ("git revision of the run", run.get("git_revision") or ""),
        ("versions of the run", ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))),
        ("digest of the pixels", str(row["input_digest"])),
    ]
    return [(name, value) for name, value in told_of if value]
