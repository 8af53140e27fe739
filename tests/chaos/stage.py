"""The workspace that is disturbed: a few sky tiles of several kinds (simulated), a tiny model, the undisturbed rows."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config.workspace import FILE_NAME, Workspace, open_workspace
from tests.chaos.outcomes import Outcome, outcome_of
from tests.conftest import SMALL_TRAINING
from tests.pipeline import brick_makers
from tests.pipeline.makers import galaxy, hdf5_columns, write_cutout, write_cutouts, write_hdf5, write_pictures
from tests.pipeline.survey_driver import run

_LATER = ("night/D", "rgb.h5")  # sources that a workspace with a release still lacks
_SETTINGS = (
    *SMALL_TRAINING,
    "survey.rows=5",
    "survey.batch=4",
    "bricks.stamp_pixels=64",
    "release.max_rows=40",
    "workers.retries=1",
)


@dataclass(frozen=True)
class Stage:
    """Two workspaces to copy from, and what a survey of either gives in the end.

    `new` was never surveyed, `half` has a release without the tiles of some sources, which it still lacks.
    """

    new: Path
    half: Path
    truth: Outcome
    tiles: int

    def fresh(self, root: Path, *, half: bool = False) -> Workspace:
        """A copy of the workspace with all its inputs, times of change and all; with `half` on top of a release."""
        shutil.copytree(self.half if half else self.new, root)
        if half:
            for name in _LATER:
                self.put_back(root, name)
        return open_workspace(root)

    def surveyed(self, root: Path) -> Workspace:
        """A copy with the release of some of the sources, and the others not there: nothing is to be done."""
        shutil.copytree(self.half, root)
        return open_workspace(root)

    def sources(self) -> list[str]:
        """Every input file, by its path below `incoming`."""
        incoming = self.new / "incoming"
        return sorted(path.relative_to(incoming).as_posix() for path in incoming.rglob("*") if path.is_file())

    def put_back(self, root: Path, name: str) -> None:
        """Copy an input file or folder into a workspace, with its times of change."""
        source, target = self.new / "incoming" / name, root / "incoming" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)


def make_stage(folder: Path, models: Path) -> Stage:
    """Write the workspaces with models that are there, and survey them undisturbed."""
    new, half, whole = folder / "new", folder / "half", folder / "whole"
    new.mkdir(parents=True)
    (new / FILE_NAME).write_text(_toml([*_SETTINGS, f'folders.models="{models}"']))
    _write_sky(new / "incoming")
    shutil.copytree(new, half)
    for name in _LATER:
        path = half / "incoming" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not run(open_workspace(half)).failed
    shutil.copytree(new, whole)
    summary = run(open_workspace(whole))
    assert not summary.failed and summary.quarantined == 3, summary
    return Stage(new, half, outcome_of(open_workspace(whole)), summary.tiles)


def _toml(settings: list[str]) -> str:
    """Settings as a file, so that they hold for whatever command is run."""
    sections: dict[str, list[str]] = {}
    for setting in settings:
        section, _, line = setting.partition(".")
        name, _, value = line.partition("=")
        text = value if value.startswith('"') or value.replace(".", "").isdigit() else f'"{value}"'
        sections.setdefault(section, []).append(f"{name} = {text}")
    return "\n".join(f"[{section}]\n" + "\n".join(lines) for section, lines in sections.items()) + "\n"


def _write_sky(incoming: Path) -> None:
    """Cutouts, pictures, HDF5 of pictures and of flux, a brick with its objects; three inputs are broken."""
    write_cutouts(incoming / "C", 9)
    write_cutout(incoming / "C" / "blank.fits", galaxy() * 0, ra=1, dec=1)
    (incoming / "C" / "broken.fits").write_bytes(b"<html>")
    for i in range(6):
        write_cutout(incoming / "night" / "D" / f"d{i}.fits", galaxy(50 + i), ra=200 + i / 100, dec=-3)
    write_pictures(incoming / "P", 4)
    (incoming / "P" / "p003.jpg").write_bytes(b"")
    write_hdf5(incoming / "rgb.h5", hdf5_columns(50))
    columns = hdf5_columns(7, flux=True)
    columns["ra"] += 40
    write_hdf5(incoming / "flux.h5", columns, bands="grz")
    (incoming / "bad.h5").write_bytes(b"no HDF5")
    brick = brick_makers.BRICK
    brick_makers.write_brick(brick_makers.coadd(incoming, brick))
    objects = brick_makers.rows(np.array([40.0, 70, 100, 130, 150]), np.array([50.0, 80, 100, 120, 140]))
    brick_makers.write_rows(incoming / "tractor" / brick[:3] / f"tractor-{brick}.fits", objects)
