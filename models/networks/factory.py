"""Any network by name: the variants of Astroformer, and timm's models as peers trained from scratch beside them.

Every network gives two halves, `penultimate` and `classify`, so that scores that read the features (a sample unlike
any of the training, say) work with all of them. timm is optional and is imported only when a peer is asked for; no
weights are ever downloaded. This module must not know files, checkpoints or class names.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import re
import sys
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.networks.astroformer import VARIANTS, Astroformer, create_model

log = logging.getLogger(__name__)

PEER_PREFIX = "timm/"
PEER_IMAGE_SIZE = 256  # pixels; that of the paper's variants, so that peers see the same images
PEER_LAYOUT = "-"  # what a card records as the layout of a network that has none
DEFAULT_LAYOUT = "CCCT"


class Network(Protocol):
    """What the rest of the package asks of a network, besides being an nn.Module.

    `forward(x)` equals `classify(penultimate(x))`; it reads float (N, 3, image_size, image_size).
    """

    num_classes: int
    image_size: int

    def penultimate(self, x: Tensor) -> Tensor:
        """Features float (N, D) of images float (N, 3, S, S): what the head reads, before any dropout."""

    def classify(self, features: Tensor) -> Tensor:
        """Logits float (N, C) of features float (N, D)."""


def create_network(
    variant: str,
    *,
    layout: str = DEFAULT_LAYOUT,
    image_size: int,
    num_classes: int,
    drop_path: float = 0.0,
    head_dropout: float = 0.0,
    checkpoint_activations: bool = False,
) -> Astroformer | Peer:
    """Build a freshly initialised network by name: a variant of Astroformer, or `timm/NAME`.

    variant : such as `astroformer_0`, `cpu_small`, `timm/resnet50`
    layout : of an Astroformer; a peer has none and accepts the default and "-" only
    image_size : side of the images in pixels
    drop_path, head_dropout : rates in [0, 1); a peer without such a setting is built without it, with a warning
    checkpoint_activations : trade time for memory in training; Astroformer only, without effect on any result

    Raises
    ------
    ModelError : an unknown name, a peer without timm, a peer with a layout, or a setting outside its range.
    """
    check_variant(variant)
    if is_peer(variant):
        if layout not in (DEFAULT_LAYOUT, PEER_LAYOUT):
            raise ModelError(f"{variant} has no layout, found {layout!r}: leave the layout at {DEFAULT_LAYOUT}")
        if checkpoint_activations:
            log.warning("%s: activation checkpointing is for Astroformer only; trained without it", variant)
        return Peer(variant, image_size, num_classes, drop_path, head_dropout)
    try:
        network = create_model(
            variant,
            layout=layout,
            image_size=image_size,
            num_classes=num_classes,
            drop_path=drop_path,
            head_dropout=head_dropout,
        )
    except ValueError as error:
        raise ModelError(str(error)) from error
    network.set_checkpointing(checkpoint_activations)
    return network


def is_peer(variant: str) -> bool:
    """Whether a name means a model of timm."""
    return variant.startswith(PEER_PREFIX)


def default_image_size(variant: str) -> int:
    """Side in pixels of the images that a network is usually built for."""
    return VARIANTS[variant].image_size if variant in VARIANTS else PEER_IMAGE_SIZE


def recorded_layout(variant: str, layout: str) -> str:
    """The layout as a model card records it: "-" for a peer, which has none."""
    return PEER_LAYOUT if is_peer(variant) else layout


def check_variant(variant: str) -> None:
    """Raise ModelError with the nearest known name unless `create_network` can build a network of that name."""
    if variant in VARIANTS:
        return
    if not is_peer(variant):
        near = difflib.get_close_matches(variant, VARIANTS, n=1, cutoff=0.0)[0]
        raise ModelError(
            f"unknown network {variant!r}; did you mean {near!r}? Expected one of {', '.join(VARIANTS)}, "
            f"or {PEER_PREFIX}NAME for a model of timm"
        )
    timm = import_timm()
    name = variant.removeprefix(PEER_PREFIX)
    if "." in name and timm.is_model(name):
        raise ModelError(
            f"{variant!r} names weights; peers are trained from scratch: use {PEER_PREFIX}{name.split('.')[0]}"
        )
    if not timm.is_model(name):
        near = ", ".join(PEER_PREFIX + match for match in difflib.get_close_matches(name, timm.list_models(), n=3))
        hint = f"did you mean {near}?" if near else "timm.list_models() lists them"
        raise ModelError(f"unknown network {variant!r}: timm {timm.__version__} has no model {name!r}; {hint}")


# --- peers --------------------------------------------------------------------------------------------------------


class Peer(nn.Module):
    """A model of timm as a `Network`, from random weights, for images of one size.

    Raises ModelError when it cannot be built for that size, cannot read it, or does not end in one linear layer.
    """

    def __init__(self, variant: str, image_size: int, num_classes: int, drop_path: float, head_dropout: float) -> None:
        super().__init__()
        self.image_size, self.num_classes = image_size, num_classes
        rates = {"drop_path_rate": drop_path, "drop_rate": head_dropout}
        self.body = _build(variant, image_size, num_classes, {key: rate for key, rate in rates.items() if rate})
        if not isinstance(self.body.get_classifier(), nn.Linear):
            raise ModelError(f"{variant} does not end in one linear layer: it cannot be a peer, choose another")
        _try(self, variant)

    def penultimate(self, x: Tensor) -> Tensor:
        """See `Network`; timm's own dropout, in training alone, stands before this point."""
        return self.body.forward_head(self.body.forward_features(x), pre_logits=True)

    def classify(self, features: Tensor) -> Tensor:
        """See `Network`."""
        return self.body.get_classifier()(features)

    def forward(self, x: Tensor) -> Tensor:
        """Logits float (N, classes) of images float (N, 3, S, S)."""
        return self.classify(self.penultimate(x))


def _build(variant: str, image_size: int, num_classes: int, rates: dict[str, float]) -> Any:
    """timm's model with the rates that it knows; those that it does not know are left out with a warning."""
    timm = import_timm()
    name = variant.removeprefix(PEER_PREFIX)
    defaults = timm.get_pretrained_cfg(name)
    size = {"img_size": image_size} if defaults is not None and defaults.fixed_input_size else {}
    while True:
        try:
            return timm.create_model(name, pretrained=False, num_classes=num_classes, **size, **rates)
        except TypeError as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None or unknown[1] not in rates:
                raise
            log.warning("%s knows no %s: built without it", variant, unknown[1])
            rates = {key: rate for key, rate in rates.items() if key != unknown[1]}
        except (AssertionError, ValueError, RuntimeError) as error:
            raise ModelError(f"timm cannot build {name} for {image_size} px: {error}; choose another size") from error


def _try(peer: Peer, variant: str) -> None:
    """Show a peer one black image: many models of timm find out only then that a size does not suit them."""
    peer.eval()
    try:
        with torch.inference_mode():
            image = torch.zeros(1, 3, peer.image_size, peer.image_size)
            same = torch.allclose(peer(image), peer.body(image))
    except (AssertionError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{variant} cannot read images of {peer.image_size} px: {error}; choose another size"
        ) from error
    if not same:
        raise ModelError(f"{variant} does more than one linear layer on its features: it cannot be a peer")
    peer.train()


def import_timm() -> ModuleType:
    """timm, once torchvision, which it imports, is importable. Raises ModelError when it is not installed."""
    try:
        _import_torchvision()
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ModelError(
            f"peers need timm; there is no module {error.name!r} here: install it with pip install 'morphcat[peers]'"
        ) from error


_torchvision_schemas: list[torch.library.Library] = []  # definitions last as long as these objects


def _import_torchvision() -> None:
    """Import torchvision, also where its compiled operators do not load (a build for CUDA beside a torch for CPUs).

    There its import fails at two operators for which it registers shapes; with their signatures declared the import
    succeeds. They stay without an implementation, and timm's models call neither. Where torchvision works, or fails
    for another reason, nothing is declared.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    else:
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # the half-imported package
    schemas = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _torchvision_schemas.append(schemas)
    importlib.import_module("torchvision")
