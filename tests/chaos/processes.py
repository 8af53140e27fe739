"""Processes that the harness starts and ends: by their ids, with all that they have started themselves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import psutil

from pipeline.config.workspace import Workspace

ROOT = Path(__file__).parents[2]
_MARK = "MORPHCAT_CHAOS"  # in the environment of everything that is started here, whoever its parent is by then
_PATIENCE = 600.0  # seconds; a run whose Prefect server is gone tries for minutes to tell it how it went
_MINE = f"{os.getpid()}-{uuid4().hex[:8]}"


class Child(Protocol):
    """A process in a group of its own."""

    log: Path

    @property
    def pid(self) -> int: ...

    def status(self) -> int | None:
        """Its exit status, the negative of a signal; None while it runs."""


class Way(Protocol):
    """How a survey is run."""

    @property
    def name(self) -> str: ...

    def start(self, workspace: Workspace) -> Child:
        """Start a survey of a workspace."""


class Forked:
    """A process forked from one that has imported everything; `function` stands in `tests.chaos.driver`."""

    def __init__(self, function: Callable[..., None], log: Path, *arguments: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.chaos.driver"])
        os.environ[_MARK] = _MINE
        self.log = log
        self._process = context.Process(target=function, args=(str(log), *arguments))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def status(self) -> int | None:
        return self._process.exitcode


class Started:
    """A command in a process of its own."""

    def __init__(self, words: list[str], log: Path, **environment: str) -> None:
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                words,
                cwd=ROOT,
                env={**os.environ, _MARK: _MINE, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def status(self) -> int | None:
        return self._process.poll()


def python(module: str, *words: str) -> list[str]:
    """The command line of a module."""
    return [sys.executable, "-m", module, *words]


class Stuck(Exception):
    """A process does not end."""


def wait(child: Child) -> int:
    """The exit status of a process, once it has ended. Raises Stuck when it takes too long."""
    deadline = time.monotonic() + _PATIENCE
    while (status := child.status()) is None:
        if time.monotonic() > deadline:
            raise Stuck(f"process {child.pid} still runs after {_PATIENCE:g} s: {said(child)[-600:]}")
        time.sleep(0.005)
    return status


def said(child: Child) -> str:
    """What a process has printed so far."""
    return child.log.read_text(errors="replace") if child.log.is_file() else ""


@contextmanager
def ended_at_last(child: Child) -> Iterator[Child]:
    """A process that is killed at the end of the context, with its group, if it still runs."""
    try:
        yield child
    finally:
        if child.status() is None:
            kill_group(child)


def kill_group(child: Child, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process and all of its group."""
    with suppress(ProcessLookupError):  # it had no time yet for a group of its own, or is gone
        return os.killpg(child.pid, number)
    with suppress(ProcessLookupError):
        os.kill(child.pid, number)


def workers_of(child: Child) -> list[psutil.Process]:
    """The processes of a local cluster below a driver, the oldest first."""
    try:
        below = psutil.Process(child.pid).children(recursive=True)
        return [process for process in below if any("spawn_main" in word for word in process.cmdline())]
    except psutil.Error:
        return []


def servers_of(home: Path) -> list[psutil.Process]:
    """Prefect servers of a PREFECT_HOME."""
    return [p for p in _started_here() if "prefect.server" in " ".join(p.cmdline()) and _home_of(p) == str(home)]


def end_all() -> int:
    """Kill whatever was started here and still runs; returns how many that were."""
    rest = _started_here()
    for process in rest:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(rest, timeout=10)
    return len(rest)


def _home_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("PREFECT_HOME", "")
    except psutil.Error:
        return ""


def _started_here() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(_MARK) == _MINE:
                found.append(process)
    return found
