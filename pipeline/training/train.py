"""A training from labelled images to a model folder.

Plan (images, split, preprocessing), pixels, fit, calibrate, evaluate, publish: `train` reads in this order. Training
again what exists returns what exists; an interrupted training goes on from its last epoch. Selection and calibration
see the validation split only, and nothing is chosen by the test split.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict

import torch

from models.artifacts.registry import ModelCard, load_card, promote_if_first
from models.training.trainer import TrainingResult
from pipeline.config.workspace import Workspace
from pipeline.datasets.image_set import ImageSet
from pipeline.training.fit import fit, write_rows
from pipeline.training.learning_curves import curve_files
from pipeline.training.plan import TrainingPlan, plan_training, start_remarks
from pipeline.training.publish_model import TrainedNetwork, ensemble_of, measure, publish_network


def train(workspace: Workspace, images: ImageSet, split_file: str | None = None, *, may_lead: bool = True) -> ModelCard:
    """Train the network that the settings name on `images` and publish it; returns the card of the model.

    `split_file` is a split from elsewhere; without it one is made from the settings. The first model of a workspace
    becomes champion, unless it may not lead.

    Raises
    ------
    UserError : unknown names in the settings, too few images, or a loss that is no longer a number.
    ModelError : no such network, or weights to start from that do not fit.
    """
    planned = plan_training(workspace, images, split_file)
    if is_published(workspace, planned.model_id):
        if may_lead:
            promote_if_first(workspace.models, planned.model_id)
        return load_card(workspace.models, planned.model_id)
    result = _fit(workspace, planned)
    trained = _trained_network(workspace, planned, result)
    ensemble = ensemble_of(trained, torch.device(planned.job.device))
    measured = measure(ensemble, trained.pixels, images, planned.parts, trained.settings.coverage)
    files = _files(planned, result)
    card = publish_network(workspace.models, trained, ensemble, measured, files=files, may_lead=may_lead)
    _clean_up(planned)
    return card


def train_worker(workspace: Workspace, images: ImageSet, split_file: str | None = None) -> None:
    """Take part in a training that another process of torchrun, the one of rank 0, publishes."""
    planned = plan_training(workspace, images, split_file)
    if not is_published(workspace, planned.model_id):
        _fit(workspace, planned)


def is_published(workspace: Workspace, model_id: str) -> bool:
    """Whether a model of that id is there, so that its training has nothing to do."""
    return (workspace.models / model_id / "card.json").is_file()


def _fit(workspace: Workspace, plan: TrainingPlan) -> TrainingResult:
    """Write the pixels and rows that the processes of the training read, and train."""
    training_set = plan.training_set
    training_set.images.pixel_file(plan.job.preprocessing, workspace.cache)
    write_rows(plan.job, training_set.images.labels, training_set.parts.train, training_set.parts.validation)
    return fit(plan.job, workspace.settings.workers)


def _trained_network(workspace: Workspace, plan: TrainingPlan, result: TrainingResult) -> TrainedNetwork:
    job, training_set = plan.job, plan.training_set
    return TrainedNetwork(
        model_id=job.name,
        network=result.network,
        settings=job.settings,
        preprocessing=job.preprocessing,
        images=plan.images,
        parts=plan.parts,
        pixels=plan.images.pixels(job.preprocessing, workspace.cache),
        history=[asdict(record) for record in result.history],
        more_data=training_set.card_data(),
        remarks=(*start_remarks(workspace, plan), *training_set.remarks),
    )


def _files(plan: TrainingPlan, result: TrainingResult) -> dict[str, str | bytes]:
    """Further files of the model folder: the learning curve, and where labels come from if not with the images."""
    simulated = " (simulated images)" if plan.training_set.images.simulated else ""
    return {**curve_files(result.history, plan.model_id + simulated), **plan.training_set.files()}


def _clean_up(plan: TrainingPlan) -> None:
    shutil.rmtree(plan.job.folder, ignore_errors=True)
    # The next labels make another set of pixels: over the years these files would fill the disk.
    if "labels" in plan.training_set.data:
        plan.job.pixels.unlink(missing_ok=True)
