"""Input files that vanish, are cut short, replaced or moved away for an instant while a survey reads them."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from pathlib import Path

from pipeline.config.workspace import Workspace
from tests.chaos.moments import at_work
from tests.chaos.processes import Way, ended_at_last, wait
from tests.chaos.results import Result
from tests.chaos.stage import Stage

_PAUSE = 0.02  # seconds between two strokes, on average


class Vandal:
    """A thread that damages files below `incoming` until it is told to stop; `strokes` counts what it did."""

    def __init__(self, workspace: Workspace, names: list[str], seed: int) -> None:
        self.strokes: list[str] = []
        self._incoming, self._names, self._random = workspace.incoming, names, random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Vandal:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(self._random.uniform(0, 2 * _PAUSE)):
            path = self._incoming / self._random.choice(self._names)
            stroke = self._random.choice((_delete, _cut, _replace, _blink))
            if path.is_file():
                stroke(path, self._random)
                self.strokes.append(f"{stroke.__name__[1:]} {path.name}")


def _delete(path: Path, seed: random.Random) -> None:
    path.unlink()


def _cut(path: Path, seed: random.Random) -> None:
    os.truncate(path, seed.randrange(path.stat().st_size + 1))


def _replace(path: Path, seed: random.Random) -> None:
    """The file of another object in its place, as a download that is repeated does it."""
    others = sorted(p for p in path.parent.iterdir() if p.suffix == path.suffix and p.is_file())
    beside = path.with_name(f".{path.name}.new")
    shutil.copyfile(seed.choice(others), beside)
    os.replace(beside, path)


def _blink(path: Path, seed: random.Random) -> None:
    """Away for an instant and back as it was: size and time of change stay the same."""
    away = path.with_name(f".{path.name}.away")
    os.replace(path, away)
    time.sleep(seed.uniform(0, _PAUSE))
    os.replace(away, path)


def vandalised(stage: Stage, root: Path, way: Way, seed: int, *, half: bool = False) -> Result:
    """Survey while files are damaged, put them all back, half of them with other times of change, and survey again."""
    workspace = stage.fresh(root, half=half)
    result = Result(f"{way.name}, inputs change while read")
    names = stage.sources()
    with ended_at_last(way.start(workspace)) as child, Vandal(workspace, names, seed) as vandal:
        wait(child)
    result.note(workspace, child, f"{len(vandal.strokes)} files vanished, were cut short, replaced or moved")
    for number, name in enumerate(names):
        stage.put_back(root, name)
        if number % 2:
            os.utime(workspace.incoming / name)
    return result.finish(stage, way, workspace)


def blinking(stage: Stage, root: Path, way: Way, name: str, seed: int) -> Result:
    """Survey while one file is moved away and back again and again, as soon as the run knows it.

    What is committed must not believe that it was gone: its size and time of change are those that the plan was made
    with, before and after.
    """
    workspace = stage.fresh(root)
    result = Result(f"{way.name}, a file comes and goes")
    path, chosen, begun = workspace.incoming / name, random.Random(seed), at_work(0).awaited(workspace)
    with ended_at_last(way.start(workspace)) as child:
        if begun(child):
            while child.status() is None:
                _blink(path, chosen)
                time.sleep(chosen.uniform(0, _PAUSE))
        wait(child)
    result.note(workspace, child, f"{path.name} moved away and back all the time")
    return result.finish(stage, way, workspace)
