"""Surveys that are killed: the driver, a worker, the Prefect server, or all of a run; then they are run again."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from pipeline.config.workspace import Workspace
from tests.chaos import driver
from tests.chaos.disk import entering, inside
from tests.chaos.moments import Moment
from tests.chaos.processes import (
    Child,
    Forked,
    Started,
    Way,
    ended_at_last,
    kill_group,
    python,
    servers_of,
    wait,
    workers_of,
)
from tests.chaos.results import Result
from tests.chaos.stage import Stage

Target = Literal["driver", "group", "worker", "server"]


@dataclass(frozen=True)
class Story:
    """The story of a survey without Prefect, forked ready to go."""

    overrides: tuple[str, ...] = ()
    name: str = "story"

    def start(self, workspace: Workspace) -> Child:
        namespace, root = inside(workspace.root)
        return Forked(driver.story, log_of(workspace), str(namespace), str(root), *self.overrides)


@dataclass(frozen=True)
class Cold:
    """The story of a survey in a process that starts from nothing, with variables in its environment."""

    environment: tuple[tuple[str, str], ...] = ()
    name: str = "story"

    def start(self, workspace: Workspace) -> Child:
        words = python("tests.pipeline.survey_driver", str(workspace.root))
        return Started(words, log_of(workspace), **dict(self.environment))


@dataclass(frozen=True)
class Command:
    """`morphcat survey`, with a Prefect server of its own, or the one at `api`."""

    overrides: tuple[str, ...] = ()
    api: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    name: str = "command"

    def start(self, workspace: Workspace) -> Child:
        settings = [word for override in self.overrides for word in ("--set", override)]
        namespace, root = inside(workspace.root)
        words = entering(namespace) + python("flows.cli.main", "--workspace", str(root), "survey", *settings)
        api = {"PREFECT_API_URL": self.api} if self.api else {}
        home = {"HOME": str(root.parent)}  # not the profile of whoever runs this
        return Started(words, log_of(workspace), **home, **api, **dict(self.environment))


@dataclass(frozen=True)
class Kill:
    """When to strike whom, by which signal."""

    moment: Moment
    target: Target = "driver"
    signal: signal.Signals = signal.SIGKILL

    def __str__(self) -> str:
        return f"{self.signal.name} {self.target}, {self.moment.name}"


def killed(stage: Stage, root: Path, way: Way, kills: Sequence[Kill], *, half: bool = False) -> Result:
    """Survey a fresh workspace, struck once in each run, and then to the end.

    A run that ends well in spite of it (its worker or server died, or it was over before) need not be run again.
    """
    workspace = stage.fresh(root, half=half)
    result = Result(f"{way.name}{', a release there' if half else ''}")
    status = -1
    for kill in kills:
        ready = kill.moment.awaited(workspace)
        with ended_at_last(way.start(workspace)) as child:
            hit = ready(child) and strike(child, workspace, kill)
            status = wait(child)
        result.kills += hit
        result.note(workspace, child, f"{kill}" if hit else f"{kill} (over before)")
    return result.compare(stage, workspace) if status == 0 else result.finish(stage, way, workspace)


def strike(child: Child, workspace: Workspace, kill: Kill) -> bool:
    """Send the signal; whether there was somebody to get it."""
    if kill.target == "group":
        kill_group(child, kill.signal)
        return True
    if kill.target == "driver":
        return _send(psutil.Process(child.pid), kill.signal)
    found = workers_of(child) if kill.target == "worker" else servers_of(workspace.root / ".prefect")
    return bool(found) and _send(found[0], kill.signal)


def _send(process: psutil.Process, number: signal.Signals) -> bool:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
        return True
    return False


def log_of(workspace: Workspace) -> Path:
    """Where the words of a workspace's processes go: beside it, but not on a small disk."""
    _, root = inside(workspace.root)
    return root.with_name(f"{root.name}.log")
