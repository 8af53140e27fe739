"""The long run: `python -m tests.chaos --kills 50 --seed 1` disturbs surveys until so many kills have hit.

Prints a table and a summary, and ends with exit status 1 when any row differs from those of an undisturbed run. The
sky is simulated. It takes 20 to 35 minutes on two cores; everything lies in a temporary folder.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.chaos import clock, moments, other_commands, sources, together
from tests.chaos.disk import NoSmallDisk, disk_full, size_of, small_disk
from tests.chaos.processes import Stuck, Way, end_all, ended_at_last, said, wait
from tests.chaos.results import Result, as_table, summary
from tests.chaos.server import Server
from tests.chaos.stage import Stage, make_stage
from tests.chaos.surveys import Cold, Command, Kill, Story, Target, killed
from tests.conftest import make_small

Disturbance = Callable[[Path], Result]
_AIMED = (moments.building(), moments.leaf_there(), moments.summed(), moments.unseen())
_GENTLE = (signal.SIGTERM, signal.SIGINT)


class Programme:
    """What is disturbed, in which order: everything that a seed decides."""

    def __init__(self, stage: Stage, server: Server, folder: Path, seed: int) -> None:
        self._stage, self._server, self._random = stage, server, random.Random(seed)
        self._story, self._command = Story(), Command(api=server.api, name="command")
        self._two = Command(("workers.kind=local", "workers.count=2"), server.api, name="command, two workers")
        self._alone = Command(name="command, temporary server")
        ways: list[Way] = [self._story, self._story, self._command]  # the first waits for what is forked from
        self._lengths = {way.name: _lengths(way, stage, folder / f"undisturbed{i}") for i, way in enumerate(ways)}

    def faults(self) -> Iterator[Disturbance]:
        """Everything but kills of a survey, once or a few times each."""
        stage, story, command = self._stage, self._story, self._command
        yield partial(together.two_at_once, stage, way=command)
        yield partial(together.two_at_once, stage, way=story)
        yield partial(together.two_at_once, stage, way=story, locked=False)
        for seed in range(4):
            yield partial(sources.vandalised, stage, way=story, seed=seed, half=seed % 2 == 0)
        for seed, name in enumerate(("rgb.h5", "rgb.h5", "C/g003.fits", "P/positions.csv")):
            yield partial(sources.blinking, stage, way=story, name=name, seed=seed)
        yield partial(sources.vandalised, stage, way=command, seed=9)
        need = size_of(stage.half)
        for way, share in ((story, 0.1), (story, 0.9), (command, 0.03), (command, 0.7)):
            yield partial(self._full_disk, way=way, free=int(share * need))
        yield partial(self._full_disk, way=self._alone, free=3 << 20)  # Prefect's database lies on it too
        yield partial(self._clock, way=Cold())
        yield partial(self._clock, way=command)
        yield self._without_server
        for seconds in (0.03, 0.08, 0.13, 0.18):
            yield partial(other_commands.labels_add_killed, stage, moment=moments.from_start(seconds))
        yield partial(other_commands.labels_add_killed, stage, moment=moments.labels_written())
        for moment in (moments.from_start(0.02), moments.rollback_kept(), moments.pointed()):
            yield partial(other_commands.rollback_killed, stage, moment=moment)

    def kills(self) -> Iterator[Disturbance]:
        """Kills of surveys without end: random and aimed moments, all targets, on top of a release or not."""
        draw, number = self._random, 0
        while True:
            number += 1
            half, aimed = number % 2 == 0, _AIMED[number % len(_AIMED)]
            yield self._kill(self._command, [Kill(self._moment(self._command))], half)
            yield self._kill(self._story, [Kill(self._moment(self._story)) for _ in range(3)], half)
            yield self._kill(self._story, [Kill(moments.tiles(draw.randrange(12 if half else 19))), Kill(aimed)], half)
            yield self._kill(self._command, [Kill(aimed)], half)
            yield self._kill(self._two, [Kill(moments.tiles(draw.randrange(8)), "worker")], half)
            yield self._kill(self._story, [Kill(self._moment(self._story)), Kill(self._moment(self._story))], half)
            target: Target = "group" if half else "driver"
            yield self._kill(self._two, [Kill(moments.tiles(draw.randrange(8)), target)], half)
            yield self._kill(self._command, [Kill(self._moment(self._command), "driver", draw.choice(_GENTLE))], half)
            target = "server" if half else "driver"  # one that was left behind is ended by the next run
            yield self._kill(self._alone, [Kill(self._moment(self._command), target)], half)

    def _kill(self, way: Way, kills: list[Kill], half: bool) -> Disturbance:
        return partial(killed, self._stage, way=way, kills=kills, half=half)

    def _moment(self, way: Way) -> moments.Moment:
        """Any moment of an undisturbed run; most of them while it works."""
        before, work = self._lengths[way.name]
        if self._random.random() < 0.15:
            return moments.from_start(self._random.uniform(0, before))
        return moments.at_work(self._random.uniform(0, work))

    def _full_disk(self, root: Path, way: Way, free: int) -> Result:
        try:
            with small_disk(root) as disk:
                return disk_full(self._stage, way, disk, "W", free)
        except NoSmallDisk as missing:
            return Result("disk full", skipped=str(missing))

    def _clock(self, root: Path, way: Cold | Command) -> Result:
        if shutil.which("cc") is None:
            return Result("clock turned back", skipped=clock.MISSING)
        root.mkdir()
        turned = clock.Clock(root)
        ways = replace(way, environment=turned.environment)
        return clock.turned_back(self._stage, root / "W", ways, turned, 3, moments.leaf_there())

    def _without_server(self, root: Path) -> Result:
        """The Prefect server of the user dies in the midst of a run and is started again."""
        workspace = self._stage.fresh(root)
        result = Result("command, the user's server killed")
        ready = moments.tiles(5).awaited(workspace)
        with ended_at_last(self._command.start(workspace)) as child:
            if ready(child):
                self._server.kill()
                result.kills += 1
            wait(child)
        result.note(workspace, child, "SIGKILL server, after 5 tiles")
        self._server.start()
        return result.finish(self._stage, self._command, workspace)


def main() -> int:
    """Disturb until so many kills have hit; the exit status says whether all rows were right."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many kills have to hit (50)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new folder and leave it behind")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            results = _run(folder.absolute(), arguments.kills, arguments.seed)
        finally:
            end_all()
    print("\n" + as_table(results) + "\n\n" + summary(results))
    return int(any(not result.equal for result in results))


def _run(folder: Path, kills: int, seed: int) -> list[Result]:
    started = time.monotonic()
    stage = make_stage(folder / "stage", make_small(folder / "small").workspace.models)
    programme = Programme(stage, Server(folder / "server"), folder, seed)
    results: list[Result] = []

    def disturb(disturbance: Disturbance) -> None:
        try:
            result = disturbance(folder / f"{len(results):03d}")
        except Stuck as stuck:
            result = Result(f"disturbance {len(results)}", wrong=[str(stuck)])
        results.append(result)
        print(f"{time.monotonic() - started:5.0f} s, {_hits(results)} kills: {result}", flush=True)

    for disturbance in programme.faults():
        disturb(disturbance)
    for disturbance in programme.kills():
        if _hits(results) >= kills:
            break
        disturb(disturbance)
    return results


def _lengths(way: Way, stage: Stage, root: Path) -> tuple[float, float]:
    """Seconds of an undisturbed run before it begins with its first tile, and from then on."""
    workspace = stage.fresh(root)
    begun = moments.at_work(0).awaited(workspace)
    started = time.monotonic()
    with ended_at_last(way.start(workspace)) as child:
        begun(child)
        working = time.monotonic()
        assert wait(child) == 0, said(child)
    return working - started, time.monotonic() - working


def _hits(results: list[Result]) -> int:
    return sum(one.kills for one in results)


if __name__ == "__main__":
    sys.exit(main())
