"""A small grid of real trainings on simulated galaxies, run once, for the tests of grid and leaderboard."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.config.workspace import Workspace, open_workspace
from pipeline.datasets.loading import ImageSource
from pipeline.evaluation.experiments import Axes, Grid, make_grid
from pipeline.evaluation.grid import run_grid
from pipeline.evaluation.leaderboard import Leaderboard
from tests.conftest import SMALL_TRAINING, Small

ONE_EPOCH = (*SMALL_TRAINING, "training.epochs=1")
SPEEDS = ("images_per_second", "training_images_per_second", "device")


@dataclass(frozen=True)
class RanGrid:
    """A workspace with a grid of two layouts and two seeds that has run; not to be changed."""

    workspace: Workspace
    source: ImageSource
    grid: Grid
    board: Leaderboard

    def copied_to(self, root: Path, *overrides: str) -> Workspace:
        """A workspace of its own with the same models and leaderboard."""
        shutil.copytree(self.workspace.root, root, dirs_exist_ok=True)
        return open_workspace(root, [*ONE_EPOCH, *overrides])


def small_grid(workspace: Workspace) -> Grid:
    """Two layouts, two seeds."""
    return make_grid("", workspace.settings.training, Axes(layouts=("CCCT", "CCCC"), seeds=(0, 1)))


def source_of(small: Small) -> ImageSource:
    """The simulated benchmark of the fixture `small`."""
    return ImageSource(kind="galaxy10", path=Path(small.images.source))


def run_small_grid(root: Path, small: Small) -> RanGrid:
    """Train and measure the four experiments."""
    workspace = open_workspace(root, ONE_EPOCH)
    grid, source = small_grid(workspace), source_of(small)
    return RanGrid(workspace, source, grid, run_grid(workspace, source, grid))


def numbers(folder: Path) -> list[dict[str, Any]]:
    """What `cells.parquet` of a leaderboard holds, without what depends on the clock."""
    table = pq.read_table(folder / "cells.parquet").drop_columns(list(SPEEDS))
    return table.to_pylist()
