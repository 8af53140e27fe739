"""A clock that is turned back, for one process and its children, by a small preloaded library (`turned_clock.c`).

Only the time of day is turned, as by an operator or a time server; clocks that measure how long something took go on,
and so do the times that the file system gives to files. libfaketime 0.9.10 cannot do that: under it Python's
`time.sleep` fails, or its waits do not end.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.chaos import moments
from tests.chaos.processes import Way, ended_at_last, wait
from tests.chaos.results import Result
from tests.chaos.stage import Stage
from tests.chaos.surveys import Kill, strike

MISSING = "no C compiler (cc) for the library that turns the clock"
_DAYS = 40  # into another month, after which releases are named


class Clock:
    """A clock of processes that are started with its `environment`; right until it is turned."""

    def __init__(self, folder: Path) -> None:
        compiler, library = shutil.which("cc"), folder / "turned_clock.so"
        assert compiler is not None, MISSING
        source = Path(__file__).with_name("turned_clock.c")
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self._hands = folder / "hands"
        self._hands.write_bytes(bytes(8))
        self.environment = (("LD_PRELOAD", str(library)), ("CHAOS_CLOCK", str(self._hands)))

    def turn(self, days: int) -> None:
        """Show a time so many days from the right one, to processes that run as well."""
        with self._hands.open("r+b") as file:
            file.write((86_400 * days).to_bytes(8, "little", signed=True))


def turned_back(stage: Stage, root: Path, way: Way, clock: Clock, tiles: int, then: moments.Moment) -> Result:
    """Turn the clock back in the midst of a run, kill it later, and survey to the end while the clock is still wrong.

    `way` runs surveys by this clock. In the end a survey with the right time must find nothing to do.
    """
    workspace = stage.fresh(root, half=True)
    result = Result(f"{way.name}, clock turned back {_DAYS} d")
    first, second = moments.tiles(tiles).awaited(workspace), then.awaited(workspace)
    with ended_at_last(way.start(workspace)) as child:
        if first(child):
            clock.turn(-_DAYS)
        hit = second(child) and strike(child, workspace, Kill(then))
        wait(child)
    result.kills += hit
    result.note(workspace, child, f"clock back after {tiles} tiles, SIGKILL driver, {then.name}")
    result.finish(stage, way, workspace)
    pointer = workspace.catalog / "CURRENT"
    released = pointer.read_text()
    clock.turn(0)
    with ended_at_last(way.start(workspace)) as child:
        if wait(child) != 0 or pointer.read_text() != released:
            result.wrong.append("a survey by the right clock found something to do afterwards")
    return result
