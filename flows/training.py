"""The flows that train a network and measure it: thin stories over `pipeline.train` and `pipeline.benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.progress import kept_by_prefect
from flows.retries import if_transient
from models.registry import ModelCard, describe
from pipeline import benchmark as measuring
from pipeline import train as training
from pipeline.benchmark import BenchmarkResult
from pipeline.classes import CLASS_SLUGS
from pipeline.image_sets import ImageSet, open_images
from pipeline.settings import Workspace, open_workspace


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5, retry_condition_fn=if_transient)
def fit(workspace: Workspace, images: ImageSet) -> ModelCard:
    with kept_by_prefect():
        return training.train(workspace, images)


@task(cache_policy=NO_CACHE)
def measure(workspace: Workspace, images: ImageSet, model_id: str) -> BenchmarkResult:
    return measuring.benchmark(workspace, images, model_id)


@flow(name="train")
def train(
    workspace: str,
    galaxy10: str | None = None,
    images: str | None = None,
    labels: str | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Train the network of the settings; returns the card of the model as plain values.

    `galaxy10` is a file of the Galaxy10 layout, `images` and `labels` a folder of pictures with its table; the
    workspace's own benchmark file when none is given. An interrupted training goes on from its last epoch.
    """
    place = open_workspace(Path(workspace), overrides or [])
    card = fit(place, _images(place, galaxy10, images, labels))
    get_run_logger().info("trained %s", card.model_id)
    create_markdown_artifact(describe(card), key="model-card", description=card.model_id)
    return card.model_dump()


@flow(name="benchmark")
def benchmark(
    workspace: str,
    model: str,
    galaxy10: str | None = None,
    images: str | None = None,
    labels: str | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Evaluate a model on the frozen test split of its data set; returns the numbers as plain values."""
    place = open_workspace(Path(workspace), overrides or [])
    result = measure(place, _images(place, galaxy10, images, labels), model)
    create_markdown_artifact(measuring.to_markdown(result), key="benchmark", description=model)
    return result.to_dict()


def _images(workspace: Workspace, galaxy10: str | None, images: str | None, labels: str | None) -> ImageSet:
    settings = workspace.settings
    return open_images(
        galaxy10=Path(galaxy10) if galaxy10 else None,
        pictures=Path(images) if images else None,
        table=Path(labels) if labels else None,
        default=workspace.benchmark / "galaxy10.h5",
        settings=settings.input,
        label_column=settings.training.label_column,
        num_classes=len(CLASS_SLUGS),
    )
