"""The steps of a retraining: from corrected labels to a candidate, its benchmark, a verdict and perhaps a promotion.

`pipeline.promotion.retraining_trigger` decides when one is due. Each step keeps what exists already (the model of these
labels, its benchmark, the verdict, the promotion), so that a lost event costs an hour, a repeated one nothing, and an
interrupted retraining continues where it stopped.
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
from pipeline.promotion.promote import promote, rollback_from, was_promoted
from pipeline.promotion.retraining_trigger import LabelSet, RetrainingResult
from pipeline.training.human_labels import usable
from pipeline.training.plan import can_start_from, split_of
from pipeline.training.train import train


def candidate_workspace(workspace: Workspace, labels: LabelSet) -> Workspace:
    """The workspace with the training settings of the candidate for these labels."""
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
    """Train on `images` and these labels, with the champion's split; returns the card, also of a model that exists.

    Raises what `pipeline.training.train.train` raises.
    """
    return train(candidate_workspace(workspace, labels), images, _split_file(workspace, images), may_lead=False)


def nothing_to_learn(workspace: Workspace, labels: LabelSet, images: ImageSet) -> bool:
    """Whether no label of a set can be used, for example as all are of held-out images; reads no pixels."""
    if not labels.labels:
        return False  # all were reverted: the candidate learns from the images alone
    own_workspace, split = candidate_workspace(workspace, labels), _split_file(workspace, images)
    parts = read_split(Path(split), images) if split else split_of(own_workspace.settings.training, images)
    return usable(own_workspace, images, parts) == 0


def measure(workspace: Workspace, images: ImageSet, model_id: str) -> Path:
    """The report of a model's benchmark; the model is measured unless the report exists."""
    path = workspace.reports / f"benchmark-{model_id}.json"
    if not path.is_file():
        benchmark(workspace, images, model_id)
    return path


def decide(
    workspace: Workspace, labels: LabelSet, images: ImageSet, candidate: str
) -> tuple[RetrainingResult, Decision]:
    """Compare a candidate with the champion and promote it if it passes, once for each verdict; writes the report.

    A candidate that a person has rolled back is not promoted again.
    """
    before = _champion(workspace)
    verdict = compare(workspace, images, candidate, before)
    decided = was_promoted(workspace.models, verdict.key) or rollback_from(workspace.models, candidate)
    promoted = verdict.passed and not decided
    if promoted:
        reason = f"retrained on {labels.labels} labels of version {labels.version}; {verdict.why}"
        promote(workspace, candidate, verdict, by="retraining", reason=reason)
    result = RetrainingResult(labels, before, candidate, verdict.passed, promoted, verdict.why, verdict.key)
    _report(workspace, result)
    return result, verdict


def _report(workspace: Workspace, result: RetrainingResult) -> None:
    path = workspace.reports / f"retraining-{result.candidate}-{result.verdict}.json"
    if path.is_file() and not result.promoted:
        return  # the report of the promotion stays
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(result.to_dict(), indent=1))


def _split_file(workspace: Workspace, images: ImageSet) -> str | None:
    """The file of the champion's split, if these are the images that it was trained with."""
    card = load_card(workspace.models, _champion(workspace))
    split = workspace.models / card.model_id / "split.json"
    return str(split) if card.data["digest"] == images.digest and split.is_file() else None


def _champion(workspace: Workspace) -> str:
    name = champion(workspace.models)
    if name is None:
        raise UserError(f"no model in {workspace.models} to retrain: `morphcat train` makes one")
    return name
