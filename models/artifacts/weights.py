"""Weights of a network to and from a model folder, as safetensors: loading them never runs code from the file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from models.artifacts.registry import WEIGHTS, ModelCard
from models.errors import ModelError
from models.networks.factory import create_network
from models.preprocessing import Preprocessing
from models.uncertainty.ood import FEATURES

_REASON = 200  # characters of a reason that are shown


def save_network(network: nn.Module, folder: Path) -> None:
    """Write the weights of a network into a model folder."""
    save_file({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}, folder / WEIGHTS)


def load_network(root: Path, card: ModelCard) -> nn.Module:
    """Build the network of a card and load its weights, in evaluation mode.

    Raises
    ------
    ModelError : the weights are missing, damaged or of another network, or the variant is unknown here.
    """
    path = root / card.model_id / WEIGHTS
    try:
        network = create_network(
            card.variant, layout=card.layout, image_size=card.image_size, num_classes=len(card.class_slugs)
        )
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:_REASON]  # torch names every tensor that is missing
        raise ModelError(f"{path}: the weights cannot be loaded ({why}); train the model again") from error
    return network.eval()


def tensors_digest(folder: Path) -> str:
    """Sixteen hexadecimal digits over the files of tensors in a model folder, by which an ensemble knows a member.

    Raises
    ------
    ModelError : a file is missing, or cannot be read.
    """
    digest = hashlib.sha256()
    for path in (folder / WEIGHTS, folder / FEATURES):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror}); train the model again") from error
    return digest.hexdigest()[:16]


def preprocessing_of(card: ModelCard) -> Preprocessing:
    """The preprocessing of a model, checked against its digest.

    Raises
    ------
    ModelError : this version of the software would treat pixels in another way than the training did.
    """
    try:
        preprocessing = Preprocessing.from_dict(card.recipe)
        found = preprocessing.digest
    except (KeyError, TypeError, AttributeError) as error:  # settings that this version does not know, or misses
        preprocessing, found = None, f"none like it ({error})"
    if preprocessing is None or found != card.recipe_digest:
        raise ModelError(
            f"model {card.model_id} was trained with preprocessing {card.recipe_digest}, this version has {found}: "
            f"use the version that trained it ({card.versions.get('morphcat', 'unknown')}), or train again"
        )
    return preprocessing
