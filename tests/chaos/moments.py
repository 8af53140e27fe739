"""Moments at which to strike: so long after the start, or when something appears in the workspace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.workspace import Workspace
from tests.chaos.processes import Child

_TICK = 0.0003  # seconds between two looks: the moments that are aimed at last some milliseconds


@dataclass(frozen=True)
class Moment:
    """So many seconds after a sign.

    `sign` gets the workspace before the run, and returns what is asked again and again whether the sign is there.
    """

    name: str
    sign: Callable[[Workspace], Callable[[], bool]]
    later: float = 0.0

    def awaited(self, workspace: Workspace) -> Callable[[Child], bool]:
        """Returns what waits for the moment; call this before the process starts, that before it strikes."""
        come = self.sign(workspace)

        def wait(child: Child) -> bool:
            """Whether the moment came before the process ended."""
            since = None
            while child.status() is None:
                if since is None and come():
                    since = time.monotonic()
                if since is not None and time.monotonic() - since >= self.later:
                    return True
                time.sleep(_TICK)
            return False

        return wait


def from_start(seconds: float) -> Moment:
    """Seconds after the process was started."""
    return Moment(f"{seconds:.2f} s from the start", lambda workspace: lambda: True, seconds)


def appears(name: str, pattern: str, seconds: float = 0.0) -> Moment:
    """Seconds after something appears below the workspace that was not there when the process was started."""

    def sign(workspace: Workspace) -> Callable[[], bool]:
        before = set(workspace.root.glob(pattern))
        return lambda: bool(set(workspace.root.glob(pattern)) - before)

    return Moment(name, sign, seconds)


def at_work(seconds: float) -> Moment:
    """Seconds after the run began with its first tile."""
    return appears(f"{seconds:.2f} s into the work", "reports/runs/[!.]*.json", seconds)


def tiles(count: int) -> Moment:
    """So many more tiles are committed, and another one is half written."""

    def sign(workspace: Workspace) -> Callable[[], bool]:
        there = len(list(_tiles(workspace)))
        return lambda: len(list(_tiles(workspace))) >= there + count and any(_half_tiles(workspace))

    return Moment(f"a tile half written after {count} more", sign)


def building(name: str = "a release begun", pattern: str = "") -> Moment:
    """A release is being built, and something in it is there."""
    within = f"catalog/releases/.building/{pattern}"
    return Moment(name, lambda workspace: lambda: any(workspace.root.glob(within)))


def leaf_there() -> Moment:
    """The first pixel of a release is there."""
    return building("a pixel of the release there", "morphology/morphology/dataset/Norder=*/Dir=*/Npix=*.parquet")


def summed() -> Moment:
    """A release in the making has its checksums, the last of its files."""
    return building("a release summed up", "sidecar/manifest.sha256")


def unseen() -> Moment:
    """A release is whole, and `CURRENT` does not name it yet."""
    return appears("a release whole, not current", "catalog/releases/[!.]*")


def labels_written() -> Moment:
    """A version of the labels is written, and `HEAD` does not name it yet."""
    return appears("a version whole, not in HEAD", "labels/0*.parquet")


def rollback_kept() -> Moment:
    """A rollback stands in the history, and `CURRENT` is still the old one."""
    return appears("kept in the history, not done", "catalog/history.jsonl")


def pointed() -> Moment:
    """`CURRENT` has been replaced."""

    def sign(workspace: Workspace) -> Callable[[], bool]:
        pointer = workspace.catalog / "CURRENT"
        before = pointer.read_text()
        return lambda: pointer.read_text() != before

    return Moment("CURRENT replaced", sign)


def _tiles(workspace: Workspace) -> Iterator[Path]:
    return (workspace.catalog / "tiles").glob("*/??/[!.]*.parquet")


def _half_tiles(workspace: Workspace) -> Iterator[Path]:
    return (workspace.catalog / "tiles").glob("*/??/.*")
