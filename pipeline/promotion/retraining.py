"""From corrected labels to a candidate for the champion, step by step as plain functions.

When it is due stands in `pipeline.promotion.retraining_trigger`. Each step finds what is there already (the model of
these labels, its benchmark, the verdict, the promotion), so that a lost event costs an hour, a double one nothing, and
a killed retraining goes on where it was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from catalogs.atomic import atomic_write
from models.artifacts.registry import ModelCard, champion, load_card
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.splits import read_split
from pipeline.evaluation.evaluate import benchmark
from pipeline.promotion.compare import compare
from pipeline.promotion.decision import Decision
from pipeline.promotion.promote import promote, turned_back, was_promoted
from pipeline.promotion.retraining_trigger import LabelSet, Retraining
from pipeline.training.human_labels import usable
from pipeline.training.plan import can_start_from, split_of
from pipeline.training.train import train


def candidate_workspace(workspace: Workspace, labels: LabelSet) -> Workspace:
    """The workspace with the training settings of the candidate that these labels ask for."""
    wanted = workspace.settings.retraining
    name = _champion(workspace)
    if wanted.recipe == "champion":
        workspace = workspace.changed(training=load_card(workspace.models, name).settings)
    changes: dict[str, Any] = {"labels": labels.version, "initial": "", "initial_partial": False}
    if wanted.epochs:
        changes["epochs"] = wanted.epochs
    if wanted.warm_start and can_start_from(workspace, name):
        changes["initial"] = name
    return workspace.changed(training=changes)


def train_candidate(workspace: Workspace, labels: LabelSet, images: ImageSet) -> ModelCard:
    """Train on `images` and these labels, on the champion's own split; returns the card, also of a model that is there.

    Raises what `pipeline.training.train.train` raises.
    """
    return train(candidate_workspace(workspace, labels), images, _split_file(workspace, images), may_lead=False)


def nothing_to_learn(workspace: Workspace, labels: LabelSet, images: ImageSet) -> bool:
    """Whether no label of a set can be used, because all are of held-out images, say; found without reading pixels."""
    if not labels.labels:
        return False  # all are taken back: the candidate learns from the images alone
    place, split = candidate_workspace(workspace, labels), _split_file(workspace, images)
    parts = read_split(Path(split), images) if split else split_of(place.settings.training, images)
    return usable(place, images, parts) == 0


def measure(workspace: Workspace, images: ImageSet, model_id: str) -> Path:
    """The report of a model's benchmark, made unless it is there."""
    path = workspace.reports / f"benchmark-{model_id}.json"
    if not path.is_file():
        benchmark(workspace, images, model_id)
    return path


def decide(workspace: Workspace, labels: LabelSet, images: ImageSet, candidate: str) -> tuple[Retraining, Decision]:
    """Let the gate judge a candidate and promote it where it passes, once for each verdict; keeps the report.

    What a person has rolled back since is not promoted again.
    """
    before = _champion(workspace)
    verdict = compare(workspace, images, candidate, before)
    decided = was_promoted(workspace.models, verdict.key) or turned_back(workspace.models, candidate)
    fresh = verdict.passed and not decided
    if fresh:
        reason = f"retrained on {labels.labels} labels of version {labels.version}; {verdict.why}"
        promote(workspace, candidate, verdict, by="retraining", reason=reason)
    result = Retraining(labels, before, candidate, verdict.passed, fresh, verdict.why, verdict.key)
    _report(workspace, result)
    return result, verdict


def _report(workspace: Workspace, result: Retraining) -> None:
    path = workspace.reports / f"retraining-{result.candidate}-{result.verdict}.json"
    if path.is_file() and not result.promoted:
        return  # what is kept says who promoted it
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(result.to_dict(), indent=1))


def _split_file(workspace: Workspace, images: ImageSet) -> str | None:
    """The champion's own split, where these are the images that it was trained with."""
    card = load_card(workspace.models, _champion(workspace))
    split = workspace.models / card.model_id / "split.json"
    return str(split) if card.data["digest"] == images.digest and split.is_file() else None


def _champion(workspace: Workspace) -> str:
    name = champion(workspace.models)
    if name is None:
        raise UserError(f"no model in {workspace.models} to retrain: `morphcat train` makes one")
    return name
