"""What each process of torchrun does: `-m tests.pipeline.train_driver ROOT GALAXY10.h5 SEEDS [section.key=value …]`."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.config.workspace import open_workspace
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.execution.process_group import rank_from_environment
from pipeline.training.train import train, train_worker


def main(root: str, galaxy10: str, seeds: str, *overrides: str) -> None:
    seat = rank_from_environment()
    assert seat is not None
    for seed in range(int(seeds)):  # one after the other, by the same processes
        workspace = open_workspace(Path(root), [*overrides, f"training.seed={seed}"])
        images = open_galaxy10(Path(galaxy10), workspace.settings.input)
        (train if seat.rank == 0 else train_worker)(workspace, images)


if __name__ == "__main__":
    main(*sys.argv[1:])
