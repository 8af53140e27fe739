"""A training from labelled images to a model folder: split, train, calibrate, evaluate, publish.

Everything that determines the outcome enters the model id. Training again what exists returns what exists; an
interrupted training goes on from its last epoch. Calibration sees the validation split only, and nothing is chosen by
the test split.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.astroformer import VARIANTS, create_model
from models.calibration import fit_temperature
from models.metrics import evaluate
from models.predictor import chosen_device
from models.recipe import Recipe
from models.registry import ModelCard, load_card, publish
from models.training import EpochRecord, LabelledPixels, Trained, TrainingDiverged, predict_logits, train_network
from models.weights import save_network
from pipeline.classes import CLASS_NAMES, CLASS_SLUGS
from pipeline.errors import UserError
from pipeline.image_sets import ImageSet, Split, split
from pipeline.progress import track
from pipeline.settings import TrainingSettings, Workspace
from pipeline.versions import software_versions
from pipeline.workers import set_torch_threads

_UNFINISHED = ".training"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def train(workspace: Workspace, images: ImageSet) -> ModelCard:
    """Train the network that the settings name on `images` and publish it; returns the card of the model.

    Raises
    ------
    UserError : unknown variant or layout, too few images, or a loss that is no longer a number.
    """
    settings = workspace.settings.training
    recipe = recipe_for(settings, images)
    parts = split_of(settings, images)
    model_id = _model_id(settings, recipe, images, parts)
    if (workspace.models / model_id / "card.json").is_file():
        return load_card(workspace.models, model_id)
    set_torch_threads(workspace.settings.workers.torch_threads())
    device = torch.device(chosen_device(workspace.settings.workers.device))
    if device.type == "cpu":
        keep_freed_memory()
    pixels = images.pixels(recipe)
    unfinished = workspace.models / _UNFINISHED / model_id
    trained = _fit(settings, recipe, pixels, images.labels, parts, device, unfinished / "checkpoint.pt")
    card = _card(model_id, settings, recipe, images, parts, trained, pixels, device)
    publish(
        workspace.models,
        card,
        partial(save_network, trained.network),
        files={"split.json": json.dumps(parts.to_dict())},
    )
    shutil.rmtree(unfinished, ignore_errors=True)
    return load_card(workspace.models, model_id)  # as every later reader will see it


def recipe_for(settings: TrainingSettings, images: ImageSet) -> Recipe:
    """The recipe of a training: the network's input size and the rendering of its images."""
    if settings.variant not in VARIANTS:
        raise UserError(f"training.variant = {settings.variant!r}: expected one of {', '.join(VARIANTS)}")
    size = settings.image_size or VARIANTS[settings.variant].image_size
    return Recipe(image_size=size, rendering=images.rendering)


def split_of(settings: TrainingSettings, images: ImageSet) -> Split:
    """The split of a training, the same whenever settings and images are the same."""
    parts = split(
        images, validation=settings.validation_fraction, test=settings.test_fraction, seed=settings.split_seed
    )
    if len(parts.train) < 2 or len(parts.validation) < 1:
        raise UserError(
            f"{images.source}: {len(images)} labelled images are too few to split into training ({len(parts.train)}), "
            f"validation ({len(parts.validation)}) and test ({len(parts.test)})"
        )
    return parts


def keep_freed_memory() -> None:
    """Let the C library reuse freed blocks instead of giving each back to the system.

    A training step frees and takes the same large buffers again and again; on a CPU the page faults of fresh ones
    cost 5 to 40 % of the speed (benchmarks/training_memory.py). Other C libraries than glibc are left as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _model_id(settings: TrainingSettings, recipe: Recipe, images: ImageSet, parts: Split) -> str:
    what = json.dumps([settings.model_dump(), recipe.digest, images.digest, parts.digest, CLASS_SLUGS], sort_keys=True)
    return f"{settings.variant}-{hashlib.sha256(what.encode()).hexdigest()[:10]}"


def _fit(
    settings: TrainingSettings,
    recipe: Recipe,
    pixels: Tensor,
    labels: np.ndarray,
    parts: Split,
    device: torch.device,
    checkpoint: Path,
) -> Trained:
    network = _build(settings, recipe.image_size)
    classes = torch.from_numpy(labels)

    def take(rows: np.ndarray) -> LabelledPixels:
        index = torch.from_numpy(rows)
        return LabelledPixels(pixels[index], classes[index])

    with track(f"training {settings.variant}", settings.epochs) as step:

        def tell(record: EpochRecord) -> None:
            done = record.epoch + 1 if not told else 1  # the first report of a resumed training counts what was there
            told.append(record.epoch)
            step(
                done,
                f"loss {record.loss:.3f}, validation accuracy {record.validation_accuracy:.3f}, "
                f"{record.images_per_second:.0f} images/s",
            )

        told: list[int] = []
        try:
            return train_network(
                network,
                take(parts.train),
                take(parts.validation),
                settings,
                recipe,
                device=device,
                checkpoint=checkpoint,
                on_epoch=tell,
            )
        except TrainingDiverged as error:
            raise UserError(str(error)) from error


def _build(settings: TrainingSettings, image_size: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            return create_model(
                settings.variant,
                layout=settings.layout,
                image_size=image_size,
                num_classes=len(CLASS_SLUGS),
                drop_path=settings.drop_path,
                head_dropout=settings.head_dropout,
            )
        except ValueError as error:
            raise UserError(f"training settings: {error}") from error


def _card(
    model_id: str,
    settings: TrainingSettings,
    recipe: Recipe,
    images: ImageSet,
    parts: Split,
    trained: Trained,
    pixels: Tensor,
    device: torch.device,
) -> ModelCard:
    temperature = fit_temperature(trained.validation_logits, torch.from_numpy(images.labels[parts.validation]))

    def numbers(logits: Tensor, rows: np.ndarray) -> dict[str, object] | None:
        if len(rows) == 0:
            return None
        probabilities = torch.softmax(logits / temperature, dim=1).numpy()
        return evaluate(probabilities, images.labels[rows]).to_dict()

    test = predict_logits(trained.network, pixels[torch.from_numpy(parts.test)], recipe, device=device)
    known = images.pixscale[np.isfinite(images.pixscale)]
    return ModelCard(
        model_id=model_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        variant=settings.variant,
        layout=settings.layout,
        image_size=recipe.image_size,
        parameters=sum(p.numel() for p in trained.network.parameters()),
        class_slugs=list(CLASS_SLUGS),
        class_names=list(CLASS_NAMES),
        recipe=recipe.to_dict(),
        recipe_digest=recipe.digest,
        temperature=temperature,
        settings=settings.model_dump(),
        data={
            "source": Path(images.source).name,
            "kind": images.kind,
            "simulated": images.simulated,
            "digest": images.digest,
            "counts": {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)},
        },
        envelope={"pixscale": [float(known.min()), float(known.max())] if len(known) else None},
        split_digest=parts.digest,
        validation=numbers(trained.validation_logits, parts.validation),
        test=numbers(test, parts.test),
        history=[asdict(record) for record in trained.history],
        versions=software_versions(),
    )
