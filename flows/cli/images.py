"""The options that name labelled images, shared by every command that trains or measures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from pipeline.datasets.loading import ImageSource

_OPTIONS = {  # option → kind of image set
    "galaxy10": "galaxy10",
    "images": "pictures",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "tiny_imagenet": "tiny_imagenet",
}


def image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of which `image_source` makes a source."""
    group = parser.add_argument_group("labelled images (one set; benchmark/galaxy10.h5 of the workspace without any)")
    group.add_argument("--galaxy10", metavar="FILE", help="HDF5 file of the Galaxy10 layout")
    group.add_argument("--images", metavar="DIR", help="folder of JPEG or PNG pictures, with --labels")
    group.add_argument("--labels", metavar="CSV", help="table with a column of file names and one of class numbers")
    group.add_argument("--label-column", metavar="NAME", help="name of the label column, where it cannot be guessed")
    group.add_argument("--cifar10", metavar="DIR", help="CIFAR-10 as unpacked, Python or binary version")
    group.add_argument("--cifar100", metavar="DIR", help="CIFAR-100 as unpacked, Python or binary version")
    group.add_argument("--tiny-imagenet", metavar="DIR", help="Tiny ImageNet as unpacked")


def image_source(arguments: argparse.Namespace) -> ImageSource | None:
    """The labelled images that the options name; None when they name none.

    Raises
    ------
    UserError : several sets are named, or pictures without their table or a table without pictures.
    """
    named = {option: path for option in _OPTIONS if (path := getattr(arguments, option, None))}
    labels, column = getattr(arguments, "labels", None), getattr(arguments, "label_column", None)
    if len(named) > 1:
        raise UserError(f"name one set of images, not {len(named)}: {', '.join(map(_flag, named))}")
    if bool(labels) != ("images" in named) or (column and not labels):
        raise UserError("--images DIR and --labels CSV go together, and --label-column with them")
    if not named:
        return None
    from pipeline.datasets.loading import ImageSource

    ((option, path),) = named.items()
    return ImageSource.model_validate(
        {
            "kind": _OPTIONS[option],
            "path": Path(path).absolute(),
            "table": Path(labels).absolute() if labels else None,
            "label_column": column or "",
        }
    )


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
