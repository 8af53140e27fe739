"""Two surveys of one workspace at once: one does the work and the other says who does; no tile is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.workspace import Workspace
from pipeline.runs.locks import survey_lock
from tests.chaos.processes import Way, ended_at_last, said, wait
from tests.chaos.results import Result
from tests.chaos.stage import Stage

_PAUSE = 0.02


def two_at_once(stage: Stage, root: Path, way: Way, *, locked: bool = True) -> Result:
    """Start two surveys together. Where they are not `locked`, their lock is deleted all the time.

    Then both may classify the same tiles; the lock of releases is left alone, for builds share a folder behind it.
    """
    workspace = stage.fresh(root)
    result = Result(f"{way.name}, two at once{'' if locked else ', their lock deleted'}")
    with (
        _without_lock(workspace, not locked),
        ended_at_last(way.start(workspace)) as one,
        ended_at_last(way.start(workspace)) as other,
    ):
        statuses = sorted((wait(one), wait(other)))
    result.note(workspace, one, "together")
    result.ended = [f"{statuses[0]} and {statuses[1]}"]
    if locked and statuses not in ([0, 0], [0, 1]):
        result.wrong.append("neither did the work")
    if locked and statuses == [0, 1] and "under way" not in said(one):
        result.wrong.append(f"the one that gave way does not say why: {said(one)[-600:]}")
    return result.compare(stage, workspace) if locked else result.finish(stage, way, workspace)


@contextmanager
def _without_lock(workspace: Workspace, yes: bool) -> Iterator[None]:
    """Delete the lock of surveys again and again, so that each process makes one of its own."""
    stop, path = threading.Event(), survey_lock(workspace.catalog)

    def work() -> None:
        while not stop.wait(_PAUSE):
            path.unlink(missing_ok=True)

    thread = threading.Thread(target=work)
    if yes:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if yes:
            thread.join()
