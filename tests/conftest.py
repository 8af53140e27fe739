"""What tests share: the folder of real data, where there is one, and one small trained model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.paths import SHARED

os.environ.setdefault("PYTHONSAFEPATH", "")  # commands that run in this process would set it, for drivers of tests too
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: small tensors are quicker on one thread

from models.artifacts.registry import ModelCard
from models.preprocessing import colour_rule
from pipeline.config.inputs import InputSettings
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.datasets.image_set import ImageSet
from pipeline.simulation import write_galaxy10
from pipeline.training.train import train

SMALL_TRAINING = (
    "training.variant=cpu_tiny",
    "training.image_size=32",
    "training.epochs=2",
    "training.batch_size=16",
    "training.warmup_epochs=0.5",
    "workers.threads=1",
    "workers.device=cpu",
)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository; tests that need it are skipped where it is not."""
    folder = SHARED
    if not folder.is_dir():
        pytest.skip("no folder `shared` beside the repository")
    return folder


@dataclass(frozen=True)
class Small:
    """A workspace with a small simulated benchmark and a small model trained on it."""

    workspace: Workspace
    images: ImageSet
    card: ModelCard

    def elsewhere(self, root: Path, *overrides: str) -> Workspace:
        """A fresh workspace that uses the same models."""
        return open_workspace(root, [*SMALL_TRAINING, f'folders.models="{self.workspace.models}"', *overrides])


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp("small"))


def make_small(root: Path) -> Small:
    """Simulate a small benchmark in a workspace and train a small model on it."""
    workspace = open_workspace(root, SMALL_TRAINING)
    path = workspace.benchmark / "galaxy10.h5"
    write_galaxy10(path, seed=3, images=80, render=colour_rule)
    images = open_galaxy10(path, InputSettings())
    return Small(workspace, images, train(workspace, images))


@pytest.fixture
def as_was() -> object:
    """A context in which no file of a folder may change: content, size or time."""

    @contextmanager
    def unchanged(folder: Path) -> Iterator[None]:
        before = _state(folder)
        yield
        assert _state(folder) == before

    return unchanged


def _state(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".lock")
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}
