"""A model folder brought to life: model-ready pixels in, calibrated predictions out.

One model per process: `predictor_for` keeps the last one used in a slot behind a lock, so that the threads of a
worker share it and a promotion needs no restart.
"""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from torch import Tensor

from models.artifacts.registry import EnsembleMember, ModelCard, load_card
from models.artifacts.weights import load_network, preprocessing_of, tensors_digest
from models.errors import ModelError
from models.inference.ensemble import Ensemble
from models.inference.predictions import Prediction, UncertaintyModel
from models.preprocessing import Preprocessing
from models.uncertainty.ood import load_feature_space


class Predictor:
    """A model, single or ensemble, with its preprocessing and its calibration on one device."""

    def __init__(self, card: ModelCard, ensemble: Ensemble) -> None:
        self.card = card
        self._ensemble = ensemble
        self._confidence = UncertaintyModel(card.temperature, card.conformal, card.novelty)

    @property
    def preprocessing(self) -> Preprocessing:
        return self._ensemble.preprocessing

    @property
    def device(self) -> torch.device:
        return self._ensemble.device

    def predict(self, pixels: Tensor) -> Prediction:
        """The prediction for model-ready pixels uint8 (N, 3, S, S).

        Raises
        ------
        ModelError : the network gives logits that are not finite.
        """
        return self._confidence.of(self._ensemble.predict(pixels))


def load_ensemble(root: Path, card: ModelCard, device: torch.device, batch_size: int) -> Ensemble:
    """The networks of a model with their feature spaces.

    Raises
    ------
    ModelError : tensors are missing or damaged, or a member of an ensemble is not what it was.
    """
    cards = [_member_card(root, card, member) for member in card.members] or [card]
    return Ensemble(
        [load_network(root, each) for each in cards],
        [load_feature_space(root / each.model_id) for each in cards],
        preprocessing_of(card),
        views=card.views,
        device=device,
        batch_size=batch_size,
    )


def _member_card(root: Path, card: ModelCard, member: EnsembleMember) -> ModelCard:
    if not (root / member.model_id).is_dir():
        raise ModelError(
            f"{root / member.model_id}: not found, but the ensemble {card.model_id} cannot do without it; put the "
            "folder back, or make an ensemble of the models that are there"
        )
    found = tensors_digest(root / member.model_id)
    if found != member.digest:
        raise ModelError(
            f"{root / member.model_id}: its tensors have digest {found}, the ensemble {card.model_id} was calibrated "
            f"with {member.digest}; put the folder back as it was, or make the ensemble again"
        )
    return load_card(root, member.model_id)


_slot: dict[tuple[str, str, str, int], Predictor] = {}
_slot_lock = threading.Lock()


def predictor_for(root: Path, model_id: str, device: str, batch_size: int = 64) -> Predictor:
    """The predictor of a model on a device, `auto` included, loaded once per process.

    Raises
    ------
    ModelError : it cannot be loaded.
    """
    device = chosen_device(device)
    key = (str(root), model_id, device, batch_size)
    with _slot_lock:
        if key not in _slot:
            card = load_card(root, model_id)
            predictor = Predictor(card, load_ensemble(root, card, torch.device(device), batch_size))
            _slot.clear()  # the model before is no longer wanted
            _slot[key] = predictor
        return _slot[key]


def chosen_device(wanted: str) -> str:
    """The torch device of that name; for `auto`, `cuda` where a GPU is usable, else `cpu`."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"
