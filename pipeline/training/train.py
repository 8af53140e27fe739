"""A training from labelled images to a model folder: split, fit, calibrate, measure, publish.

Everything that determines the outcome enters the model id. Training again what exists returns what exists; an
interrupted training goes on from its last epoch. Selection and calibration see the validation split only, and nothing
is chosen by the test split.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch

from models.artifacts.registry import WEIGHTS, ModelCard, list_models, load_card, promote_if_first
from models.inference.predictor import chosen_device
from models.networks.factory import check_variant, default_image_size, recorded_layout
from models.preprocessing import DR8_GRZ, Preprocessing
from models.training.trainer import TrainingResult, images_per_epoch
from pipeline.config.training import TrainingSettings
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.datasets.image_set import ImageSet, channel_statistics
from pipeline.datasets.splits import Split, read_split, split
from pipeline.training.fit import FitJob, fit, prepare, start_report
from pipeline.training.human_labels import with_human_labels
from pipeline.training.learning_curves import curve_files
from pipeline.training.pseudo_labels import with_pseudo_labels
from pipeline.training.publish_model import FinishedFit, publish_fit
from pipeline.training.training_set import TrainingSet

_UNFINISHED = ".training"


def train(workspace: Workspace, images: ImageSet, split_file: str | None = None, *, may_lead: bool = True) -> ModelCard:
    """Train the network that the settings name on `images` and publish it; returns the card of the model.

    `split_file` is a split from elsewhere; without it one is made from the settings. The first model of a workspace
    becomes champion, unless it may not lead.

    Raises
    ------
    UserError : unknown names in the settings, too few images, or a loss that is no longer a number.
    ModelError : no such network, or weights to start from that do not fit.
    """
    job, parts, lesson = plan(workspace, images, split_file)
    if is_published(workspace, job.name):
        if may_lead:
            promote_if_first(workspace.models, job.name)
        return load_card(workspace.models, job.name)
    trained = _fitted(workspace, job, lesson)
    finished = FinishedFit(
        model_id=job.name,
        network=trained.network,
        settings=job.settings,
        recipe=job.recipe,
        images=images,
        parts=parts,
        pixels=images.pixels(job.recipe, workspace.cache),
        history=[asdict(record) for record in trained.history],
        more_data=lesson.card_data(),
        remarks=(*_start_remarks(workspace, job, images, parts), *lesson.remarks),
    )
    files = curve_files(trained.history, f"{job.name}{' (simulated images)' if lesson.images.simulated else ''}")
    files |= lesson.files()
    card = publish_fit(workspace.models, finished, torch.device(job.device), files=files, may_lead=may_lead)
    shutil.rmtree(job.folder, ignore_errors=True)
    if "labels" in lesson.data:  # the next labels make another set: over the years these files would fill the disk
        job.pixels.unlink(missing_ok=True)
    return card


def train_worker(workspace: Workspace, images: ImageSet, split_file: str | None = None) -> None:
    """Take part in a training that another process of torchrun, the one of rank 0, publishes."""
    job, _, lesson = plan(workspace, images, split_file)
    if not is_published(workspace, job.name):
        _fitted(workspace, job, lesson)


def plan(workspace: Workspace, images: ImageSet, split_file: str | None = None) -> tuple[FitJob, Split, TrainingSet]:
    """What a training would do, the split of `images`, and what is learned from: these alone, or with rows of the sky.

    Writes the model-ready pixels of labelled images into the cache where they are missing; those of a set with rows of
    the sky are written by its training, for they serve that alone.
    """
    settings = workspace.settings.training
    recipe = recipe_for(settings, images)
    parts = read_split(Path(split_file), images) if split_file else split_of(settings, images)
    lesson = TrainingSet.of(images, parts)
    if settings.labels:
        lesson = with_human_labels(workspace, lesson, recipe)
    if settings.pseudo_labels:
        lesson = with_pseudo_labels(workspace, lesson, recipe)
    if lesson.images is images:
        images.pixel_file(recipe, workspace.cache)
    if recipe.rendering != DR8_GRZ.name:  # measured on the 60 true Galaxy10 images, the defaults do not fit
        mean, std = channel_statistics(images.pixels(recipe, workspace.cache), parts.train)
        recipe = replace(recipe, mean=mean, std=std)
    initial, digest = _initial_weights(workspace)
    model_id = _model_id(settings, recipe, lesson.images, lesson.parts, digest)
    job = FitJob(
        name=model_id,
        settings=settings,
        recipe=recipe,
        num_classes=len(images.class_slugs),
        pixels=lesson.images.pixel_path(recipe, workspace.cache),
        folder=workspace.models / _UNFINISHED / model_id,
        device=chosen_device(workspace.settings.workers.device),
        images_per_epoch=images_per_epoch(len(lesson.parts.train), settings.batch_size),
        initial=initial,
    )
    return job, parts, lesson


def recipe_for(settings: TrainingSettings, images: ImageSet) -> Preprocessing:
    """The recipe of a training: the network's input size, the field of view and the rendering of its images."""
    check_variant(settings.variant)
    size = settings.image_size or default_image_size(settings.variant)
    return Preprocessing(image_size=size, field_pixels=images.field_pixels, rendering=images.rendering)


def split_of(settings: TrainingSettings, images: ImageSet) -> Split:
    """The split of a training, the same whenever settings and images are the same."""
    return split(images, validation=settings.validation_fraction, test=settings.test_fraction, seed=settings.split_seed)


def is_published(workspace: Workspace, model_id: str) -> bool:
    """Whether a model of that id is there, so that its training has nothing to do."""
    return (workspace.models / model_id / "card.json").is_file()


def _fitted(workspace: Workspace, job: FitJob, lesson: TrainingSet) -> TrainingResult:
    lesson.images.pixel_file(job.recipe, workspace.cache)
    prepare(job, lesson.images.labels, lesson.parts.train, lesson.parts.validation)
    return fit(job, workspace.settings.workers)


def can_start_from(workspace: Workspace, model_id: str) -> bool:
    """Whether the network of the settings can start from a model of the workspace: it is the same network.

    Of an ensemble its first member is meant.

    Raises
    ------
    ModelError : there is no such model.
    """
    settings, card = workspace.settings.training, load_card(workspace.models, _with_weights(workspace, model_id))
    size = settings.image_size or default_image_size(settings.variant)
    wanted = (settings.variant, recorded_layout(settings.variant, settings.layout), size)
    return (card.variant, card.layout, card.image_size) == wanted


def _with_weights(workspace: Workspace, model_id: str) -> str:
    """The model whose weights are meant: of an ensemble, which has none of its own, the first member."""
    members = load_card(workspace.models, model_id).members
    return members[0].model_id if members else model_id


def _initial_weights(workspace: Workspace) -> tuple[str, str]:
    """The file of weights to start from and its digest; both empty where the training starts from scratch."""
    name, models = workspace.settings.training.initial, workspace.models
    if not name:
        return "", ""
    known = list_models(models)
    path = models / _with_weights(workspace, name) / WEIGHTS if name in known else Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"training.initial = {name!r}: neither a model of this workspace (known: {', '.join(known) or 'none yet'}) "
            "nor a file"
        )
    with path.open("rb") as file:
        return str(path.absolute()), hashlib.file_digest(file, "sha256").hexdigest()


def _start_remarks(workspace: Workspace, job: FitJob, images: ImageSet, parts: Split) -> list[str]:
    """What the network starts with, in sentences, and whether that may have seen what this model is tested on."""
    name, said = workspace.settings.training.initial, []
    if name in list_models(workspace.models):
        card = load_card(workspace.models, name)
        if (first := _with_weights(workspace, name)) != name:
            said.append(f"{name} is an ensemble, without weights of its own: started from its first member, {first}.")
        if (card.data["digest"], card.split_digest) != (images.digest, parts.digest):
            said.append(
                f"{name}, whose weights were the start, was trained on other images or another split: it may have seen "
                "test images of this model, whose test numbers may then be too good."
            )
    return [*said, *start_report(job)]


def _model_id(settings: TrainingSettings, recipe: Preprocessing, images: ImageSet, parts: Split, initial: str) -> str:
    # Labels of people, and how often their objects come, are in images and parts: by content, not by a version's name.
    plain = settings.model_dump(exclude={"initial", "labels", "label_repeats"})
    values = [plain, recipe.digest, images.digest, parts.digest, initial]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return f"{settings.variant.replace('/', '-')}-{digest[:10]}"
