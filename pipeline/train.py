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

from models.networks import check_variant, default_image_size
from models.predictor import chosen_device
from models.recipe import DR8_GRZ, Recipe
from models.registry import WEIGHTS, ModelCard, lead_if_first, list_models, load_card
from models.training import Trained, images_per_epoch
from pipeline.curves import curve_files
from pipeline.errors import UserError
from pipeline.fit import FitJob, fit, prepare, start_report
from pipeline.image_sets import ImageSet, channel_statistics
from pipeline.model_cards import FinishedFit, publish_fit
from pipeline.pseudo_labels import Lesson, with_pseudo_labels
from pipeline.settings import Workspace
from pipeline.splits import Split, read_split, split
from pipeline.training_settings import TrainingSettings

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
            lead_if_first(workspace.models, job.name)
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
        remarks=(*start_report(job), *lesson.remarks),
    )
    files = curve_files(trained.history, f"{job.name}{' (simulated images)' if lesson.images.simulated else ''}")
    files |= lesson.files()
    card = publish_fit(workspace.models, finished, torch.device(job.device), files=files, may_lead=may_lead)
    shutil.rmtree(job.folder, ignore_errors=True)
    return card


def assist(workspace: Workspace, images: ImageSet, split_file: str | None = None) -> None:
    """Take part in a training that another process of torchrun, the one of rank 0, publishes."""
    job, _, lesson = plan(workspace, images, split_file)
    if not is_published(workspace, job.name):
        _fitted(workspace, job, lesson)


def plan(workspace: Workspace, images: ImageSet, split_file: str | None = None) -> tuple[FitJob, Split, Lesson]:
    """What a training would do, the split of `images`, and what is learned from: these alone, or with rows of the sky.

    Writes the model-ready pixels into the cache where they are missing.
    """
    settings = workspace.settings.training
    recipe = recipe_for(settings, images)
    parts = read_split(Path(split_file), images) if split_file else split_of(settings, images)
    lesson = Lesson(images, parts)
    if settings.pseudo_labels:
        lesson = with_pseudo_labels(workspace, images, parts, recipe)
    pixels = lesson.images.pixel_file(recipe, workspace.cache)
    if recipe.rendering != DR8_GRZ.name:  # measured on the 60 true Galaxy10 images, the defaults do not fit
        mean, std = channel_statistics(images.pixels(recipe, workspace.cache), parts.train)
        recipe = replace(recipe, mean=mean, std=std)
    initial, digest = _initial(workspace)
    model_id = _model_id(settings, recipe, lesson.images, lesson.parts, digest)
    job = FitJob(
        name=model_id,
        settings=settings,
        recipe=recipe,
        num_classes=len(images.class_slugs),
        pixels=pixels,
        folder=workspace.models / _UNFINISHED / model_id,
        device=chosen_device(workspace.settings.workers.device),
        images_per_epoch=images_per_epoch(len(lesson.parts.train), settings.batch_size),
        initial=initial,
    )
    return job, parts, lesson


def recipe_for(settings: TrainingSettings, images: ImageSet) -> Recipe:
    """The recipe of a training: the network's input size, the field of view and the rendering of its images."""
    check_variant(settings.variant)
    size = settings.image_size or default_image_size(settings.variant)
    return Recipe(image_size=size, field_pixels=images.field_pixels, rendering=images.rendering)


def split_of(settings: TrainingSettings, images: ImageSet) -> Split:
    """The split of a training, the same whenever settings and images are the same."""
    return split(images, validation=settings.validation_fraction, test=settings.test_fraction, seed=settings.split_seed)


def is_published(workspace: Workspace, model_id: str) -> bool:
    """Whether a model of that id is there, so that its training has nothing to do."""
    return (workspace.models / model_id / "card.json").is_file()


def _fitted(workspace: Workspace, job: FitJob, lesson: Lesson) -> Trained:
    prepare(job, lesson.images.labels, lesson.parts.train, lesson.parts.validation)
    return fit(job, workspace.settings.workers)


def _initial(workspace: Workspace) -> tuple[str, str]:
    """The file of weights to start from and its digest; both empty where the training starts from scratch."""
    name = workspace.settings.training.initial
    if not name:
        return "", ""
    path = workspace.models / name / WEIGHTS
    path = path if path.is_file() else Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(list_models(workspace.models)) or "none yet"
        raise UserError(f"training.initial = {name!r}: neither a model of this workspace (known: {known}) nor a file")
    with path.open("rb") as file:
        return str(path.absolute()), hashlib.file_digest(file, "sha256").hexdigest()


def _model_id(settings: TrainingSettings, recipe: Recipe, images: ImageSet, parts: Split, initial: str) -> str:
    values = [settings.model_dump(exclude={"initial"}), recipe.digest, images.digest, parts.digest, initial]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return f"{settings.variant.replace('/', '-')}-{digest[:10]}"
