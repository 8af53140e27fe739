"""A model folder brought to life: model-ready pixels in, calibrated probabilities out.

One model per process: `predictor_for` keeps the last one used in a slot behind a lock, so that the threads of a
worker share it and a promotion needs no restart.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.recipe import Recipe
from models.registry import ModelCard, load_card
from models.weights import load_network, recipe_of


class Predictor:
    """A loaded network with its recipe and temperature on one device."""

    def __init__(self, card: ModelCard, network: nn.Module, device: torch.device, batch_size: int = 64) -> None:
        self.card = card
        self.recipe: Recipe = recipe_of(card)
        self.device = device
        self.batch_size = batch_size
        network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = network.eval()

    def probabilities(self, pixels: Tensor) -> np.ndarray:
        """Calibrated probabilities float32 (N, C) of model-ready pixels uint8 (N, 3, S, S).

        A batch that does not fit on the GPU is halved, from then on.
        """
        parts: list[np.ndarray] = []
        start = 0
        while start < len(pixels):
            batch = pixels[start : start + self.batch_size]
            try:
                parts.append(self._forward(batch))
                start += len(batch)
                continue
            except torch.cuda.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self.batch_size = max(1, len(batch) // 2)
            torch.cuda.empty_cache()  # not before: the exception held the memory of the batch
        return np.concatenate(parts) if parts else np.empty((0, len(self.card.class_slugs)), np.float32)

    def _forward(self, batch: Tensor) -> np.ndarray:
        with torch.inference_mode():
            logits = self._network(self.recipe.to_input(batch.to(self.device))).float()
            return torch.softmax(logits / self.card.temperature, dim=1).cpu().numpy()


_slot: dict[tuple[str, str, str, int], Predictor] = {}
_slot_lock = threading.Lock()


def predictor_for(root: Path, model_id: str, device: str, batch_size: int = 64) -> Predictor:
    """The predictor of a model on a device, loaded once per process. Raises ModelError when it can not be loaded."""
    key = (str(root), model_id, device, batch_size)
    with _slot_lock:
        if key not in _slot:
            card = load_card(root, model_id)
            predictor = Predictor(card, load_network(root, card), torch.device(device), batch_size)
            _slot.clear()  # the model before is no longer wanted
            _slot[key] = predictor
        return _slot[key]


def chosen_device(wanted: str) -> str:
    """The torch device of that name; for `auto`, `cuda` where a GPU is usable, else `cpu`."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"
