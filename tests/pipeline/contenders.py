"""A champion that is right on its test images, and copies of it that are as good or worse on purpose."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from models.artifacts.registry import ModelCard, publish
from models.artifacts.weights import load_network, save_network
from models.inference.predictor import Predictor, load_ensemble
from models.uncertainty.ood import FEATURES
from pipeline.config.inputs import InputSettings
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.splits import Split
from tests.conftest import SMALL_TRAINING, Small

CHAMPION = "tiny-champion"
SETTINGS = (*SMALL_TRAINING, "gate.min_speed=0")  # a busy machine must not decide a test
_SURE = 0.01  # temperature: every confidence is nearly 1


@dataclass(frozen=True)
class Ring:
    """A workspace with models of its own. On the test images the champion is always right, and sure of it."""

    workspace: Workspace
    images: ImageSet
    card: ModelCard

    def changed(self, *overrides: str) -> Workspace:
        """The same folders under other settings."""
        return open_workspace(self.workspace.root, [*SETTINGS, *overrides])

    def put(self, model_id: str, *, noise: float = 0.0, **fields: Any) -> str:
        """Publish a copy of the champion, its last layer disturbed by so much noise, other fields of its card set."""
        network = load_network(self.workspace.models, self.card)
        generator = torch.Generator().manual_seed(1)
        last = [p for name, p in network.named_parameters() if name.startswith("head")]
        with torch.no_grad():
            for p in last:
                p += noise * p.std() * torch.randn(p.shape, generator=generator)
        home = self.workspace.models / self.card.model_id

        def save(folder: Path) -> None:
            save_network(network, folder)
            shutil.copy(home / FEATURES, folder)

        card = self.card.model_copy(update={"model_id": model_id, **fields})
        publish(self.workspace.models, card, save, files={"split.json": (home / "split.json").read_bytes()})
        return model_id


def make_ring(small: Small, root: Path) -> Ring:
    """The small model as the champion of another workspace: most images are for the test, their labels what it says."""
    workspace = open_workspace(root, SETTINGS)
    home = small.workspace.models / small.card.model_id
    rows = np.arange(len(small.images))
    first = np.unique(small.images.labels, return_index=True)[1]
    parts = Split(np.sort(first), np.setdiff1d(rows, first)[:5], np.setdiff1d(rows, first)[5:])
    predictor = Predictor(small.card, load_ensemble(small.workspace.models, small.card, torch.device("cpu"), 64))
    pixels = small.images.pixels(predictor.preprocessing, small.workspace.cache)
    called = predictor.predict(pixels[torch.from_numpy(parts.test)]).probabilities.argmax(axis=1)
    path = workspace.benchmark / "galaxy10.h5"
    path.parent.mkdir(parents=True)
    shutil.copy(small.workspace.benchmark / "galaxy10.h5", path)
    with h5py.File(path, "r+") as file:
        file["ans"][parts.test] = called.astype(file["ans"].dtype)
    images = open_galaxy10(path, InputSettings())
    card = small.card.model_copy(
        update={
            "model_id": CHAMPION,
            "temperature": _SURE,
            "data": {**small.card.data, "digest": images.digest},
            "split_digest": parts.digest,
        }
    )

    def save(folder: Path) -> None:
        save_network(load_network(small.workspace.models, small.card), folder)
        shutil.copy(home / FEATURES, folder)

    publish(workspace.models, card, save, files={"split.json": json.dumps(parts.to_dict())})
    return Ring(workspace, images, card)
