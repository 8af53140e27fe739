"""Which labelled images are meant, as plain values that travel to flows and workers, and how they are opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.config.inputs import InputSettings
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.datasets.image_folder import open_pictures
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.reference_sets import open_cifar10, open_cifar100, open_tiny_imagenet

_BY_FOLDER: dict[str, Callable[[Path], ImageSet]] = {
    "cifar10": open_cifar10,
    "cifar100": open_cifar100,
    "tiny_imagenet": open_tiny_imagenet,
}


class ImageSource(BaseModel):
    """One set of labelled images: its kind and where it lies; `table` and `label_column` belong to pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["galaxy10", "pictures", "cifar10", "cifar100", "tiny_imagenet"]
    path: Path
    table: Path | None = None
    label_column: str = ""


def open_images(source: ImageSource, settings: InputSettings) -> ImageSet:
    """Open labelled images of any kind.

    Raises
    ------
    UserError : what was named is not there or not usable.
    """
    path = source.path
    if source.kind == "galaxy10":
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; name labelled images with --galaxy10 FILE, or --images DIR --labels CSV "
                "(`morphcat simulate --benchmark 1200` makes a simulated file)"
            )
        return open_galaxy10(path, settings)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    if source.kind == "pictures":
        if source.table is None or not source.table.is_file():
            raise UserError(f"{source.table or path}: pictures need a table of labels (--labels CSV)")
        return open_pictures(path, source.table, settings, source.label_column)
    return _BY_FOLDER[source.kind](path)


def open_source(workspace: Workspace, source: dict[str, Any] | None) -> ImageSet:
    """The labelled images of an `ImageSource` given as plain values; the workspace's own benchmark file without one."""
    named = ImageSource.model_validate(source) if source else None
    return open_images(source_or_benchmark(workspace, named), workspace.settings.input)


def source_or_benchmark(workspace: Workspace, source: ImageSource | None) -> ImageSource:
    """What was named; else the workspace's own benchmark file."""
    return source or ImageSource(kind="galaxy10", path=workspace.benchmark / "galaxy10.h5")
