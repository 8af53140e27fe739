"""The plan of a training: which images it learns from, in which split, with which preprocessing, and its model id.

Everything that determines the outcome enters the model id, so that a training that exists is found again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from models.artifacts.registry import WEIGHTS, list_models, load_card
from models.inference.predictor import chosen_device
from models.networks.factory import check_variant, default_image_size, recorded_layout
from models.preprocessing import DR8_GRZ, Preprocessing
from models.training.trainer import images_per_epoch
from pipeline.config.training import TrainingSettings
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.datasets.image_set import ImageSet, channel_statistics
from pipeline.datasets.splits import Split, read_split, split
from pipeline.training.fit import FitJob, start_report
from pipeline.training.human_labels import with_human_labels
from pipeline.training.pseudo_labels import with_pseudo_labels
from pipeline.training.training_set import TrainingSet

_UNFINISHED = ".training"


@dataclass(frozen=True)
class TrainingPlan:
    """What a training would do.

    images, parts : the labelled images and their frozen split, by which the model is calibrated and evaluated.
    training_set : what the network learns from: these images alone, or with objects of the sky.
    job : what each process of the training needs.
    """

    images: ImageSet
    parts: Split
    training_set: TrainingSet
    job: FitJob

    @property
    def model_id(self) -> str:
        return self.job.name


def plan_training(workspace: Workspace, images: ImageSet, split_file: str | None = None) -> TrainingPlan:
    """Plan the training that the settings describe; `split_file` is a split from elsewhere, else one is made.

    Writes the model-ready pixels of labelled images into the cache where they are missing; those of a set with objects
    of the sky are written by its training, because they serve that alone.

    Raises
    ------
    UserError : unknown names in the settings, or labels and images that do not fit each other.
    ModelError : no such network.
    """
    settings = workspace.settings.training
    preprocessing = preprocessing_for(settings, images)
    parts = read_split(Path(split_file), images) if split_file else split_of(settings, images)
    training_set = build_training_set(workspace, images, parts, preprocessing)
    if training_set.images is images:
        images.pixel_file(preprocessing, workspace.cache)
    if preprocessing.rendering != DR8_GRZ.name:
        # Measured on the 60 true Galaxy10 images, the default statistics do not fit other renderings.
        mean, std = channel_statistics(images.pixels(preprocessing, workspace.cache), parts.train)
        preprocessing = replace(preprocessing, mean=mean, std=std)
    initial, digest = _initial_weights(workspace)
    model_id = _model_id(settings, preprocessing, training_set.images, training_set.parts, digest)
    job = FitJob(
        name=model_id,
        settings=settings,
        preprocessing=preprocessing,
        num_classes=len(images.class_slugs),
        pixels=training_set.images.pixel_path(preprocessing, workspace.cache),
        folder=workspace.models / _UNFINISHED / model_id,
        device=chosen_device(workspace.settings.workers.device),
        images_per_epoch=images_per_epoch(len(training_set.parts.train), settings.batch_size),
        initial=initial,
    )
    return TrainingPlan(images, parts, training_set, job)


def build_training_set(
    workspace: Workspace, images: ImageSet, parts: Split, preprocessing: Preprocessing
) -> TrainingSet:
    """Labelled images, with objects that people labelled and confident rows of the catalogue if the settings ask."""
    settings = workspace.settings.training
    training_set = TrainingSet.of(images, parts)
    if settings.labels:
        training_set = with_human_labels(workspace, training_set, preprocessing)
    if settings.pseudo_labels:
        training_set = with_pseudo_labels(workspace, training_set, preprocessing)
    return training_set


def preprocessing_for(settings: TrainingSettings, images: ImageSet) -> Preprocessing:
    """The preprocessing of a training: the network's input size, the field of view and the rendering of its images."""
    check_variant(settings.variant)
    size = settings.image_size or default_image_size(settings.variant)
    return Preprocessing(image_size=size, field_pixels=images.field_pixels, rendering=images.rendering)


def split_of(settings: TrainingSettings, images: ImageSet) -> Split:
    """The split of a training, the same whenever settings and images are the same."""
    return split(images, validation=settings.validation_fraction, test=settings.test_fraction, seed=settings.split_seed)


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
    """The file of weights to start from and its digest; both empty if the training starts from scratch."""
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


def start_remarks(workspace: Workspace, plan: TrainingPlan) -> list[str]:
    """Which weights the network starts with, and whether those may come from images that this model is tested on."""
    name, remarks = workspace.settings.training.initial, []
    if name in list_models(workspace.models):
        card = load_card(workspace.models, name)
        if (first := _with_weights(workspace, name)) != name:
            remarks.append(
                f"{name} is an ensemble, without weights of its own: started from its first member, {first}."
            )
        if (card.data["digest"], card.split_digest) != (plan.images.digest, plan.parts.digest):
            remarks.append(
                f"{name}, whose weights were the start, was trained on other images or another split: it may have seen "
                "test images of this model, whose test numbers may then be too good."
            )
    return [*remarks, *start_report(plan.job)]


def _model_id(
    settings: TrainingSettings, preprocessing: Preprocessing, images: ImageSet, parts: Split, initial: str
) -> str:
    # Labels of people, and how often their objects come, are in images and parts: by content, not by a version's name.
    plain = settings.model_dump(exclude={"initial", "labels", "label_repeats"})
    values = [plain, preprocessing.digest, images.digest, parts.digest, initial]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return f"{settings.variant.replace('/', '-')}-{digest[:10]}"
