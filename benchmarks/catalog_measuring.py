"""Time and memory of a step in a process of its own, and of questions that are asked again and again."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

REPEATS = 5
PATIENCE = 20.0  # seconds; what takes longer as it warms up is not repeated


@dataclass(frozen=True)
class Step:
    """A step in a process of its own: its time, its memory, and how many processes it had at once.

    `peak_mib` is the largest sum, at any moment, of the peaks so far (VmHWM) of the processes that live then. It is no
    less than what they took together; pages that they share count for each.
    """

    seconds: float
    peak_mib: float
    processes: int
    result: Any


@dataclass(frozen=True)
class Asked:
    """One question: median, fastest and slowest of the repeated runs in seconds, and a digest of the answer."""

    seconds: float
    fastest: float
    slowest: float
    runs: int
    answer: Any


def alone(step: Callable[..., Any], *arguments: Any) -> Step:
    """Run a step in a new process and watch the memory of its family."""
    peak, processes = 0, 0
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        parent = pool.submit(os.getpid).result()
        future = pool.submit(timed, step, *arguments)
        while wait([future], timeout=0.1).not_done:
            peaks = list(_peaks(parent))
            peak, processes = max(peak, sum(peaks)), max(processes, len(peaks))
        peak = max(peak, sum(_peaks(parent)))
        seconds, result = future.result()
    print(f"{step.__name__}: {seconds:.1f} s, {peak / 1024:.0f} MiB", file=sys.stderr, flush=True)
    return Step(seconds, peak / 1024, processes, result)


def timed(step: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds that a call takes, and what it returns."""
    started = time.perf_counter()
    result = step(*arguments)
    return time.perf_counter() - started, result


def _peaks(parent: int) -> Iterator[int]:
    """The peak so far, in KiB, of each process that lives: of this one and of all that descend from it."""
    for process in [psutil.Process(parent), *psutil.Process(parent).children(recursive=True)]:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:  # it has ended
            continue
        yield from (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def ask(question: Callable[[], Any]) -> Asked:
    """Time a question, after it was asked once; that once counts when it took too long to ask again."""
    first, answer = timed(question)
    seconds = [first] if first > PATIENCE else [timed(question)[0] for _ in range(REPEATS)]
    return Asked(statistics.median(seconds), min(seconds), max(seconds), len(seconds), answer)
