"""A Dask scheduler and workers started by hand, in processes of their own on the loopback interface."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.paths import ROOT

_START_SECONDS = 60.0


@dataclass(frozen=True)
class Started:
    """A scheduler with its file, and nannies of one worker process each."""

    file: Path
    scheduler: subprocess.Popen[bytes]
    nannies: list[subprocess.Popen[bytes]]

    def workers(self) -> list[psutil.Process]:
        """The worker processes that run now."""
        children = [child for nanny in self.nannies for child in psutil.Process(nanny.pid).children(recursive=True)]
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@contextmanager
def started(folder: Path, workers: int = 2, *arguments: str) -> Iterator[Started]:
    """Start `dask scheduler` and `dask worker` (under nannies), and end them afterwards."""
    file = folder / "scheduler.json"
    processes = [_dask(folder, "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))]
    own = ("--scheduler-file", str(file), "--nthreads", "1", "--host", "127.0.0.1", "--local-directory", str(folder))
    try:
        processes += [_dask(folder, "worker", *own, *arguments) for _ in range(workers)]
        wait_until(file.is_file)
        yield Started(file, processes[0], processes[1:])
    finally:
        below = [child for each in processes if each.poll() is None for child in _children(each.pid)]
        for process in reversed(processes):
            process.kill()
            process.wait()
        for child in below:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def _dask(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / f"{arguments[0]}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until(true: Callable[[], bool], seconds: float = _START_SECONDS) -> None:
    """Wait until a function says yes."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
