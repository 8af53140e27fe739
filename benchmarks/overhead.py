"""What a unit of work costs beside its work: time, and memory of the process that hands the units out.

    python benchmarks/overhead.py [--units 10000] [--workers 2] [--out FILE.json]

Units that do nothing, and units that commit a tile file without rows, run through `run_tasks` on local Dask workers
and in this process. Memory is the resident set of this process, sampled five times a second.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from overhead_units import EmptyJob, commit_nothing, do_nothing

from pipeline.config.workers import WorkerSettings
from pipeline.execution.executor import run_tasks

_SAMPLES_EACH = 0.2  # seconds


def main() -> None:
    """Run each case in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    local = WorkerSettings(kind="local", count=arguments.workers, threads=1)
    inline = WorkerSettings(threads=1)
    cases = {
        f"{arguments.workers} local workers, no work": (local, do_nothing),
        f"{arguments.workers} local workers, an empty tile committed": (local, commit_nothing),
        "inline, no work": (inline, do_nothing),
        "inline, an empty tile committed": (inline, commit_nothing),
    }
    report = {
        "units": arguments.units,
        "utc": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "machine": f"{platform.machine()}, {len(psutil.Process().cpu_affinity() or [])} cores",
        "load_before": psutil.getloadavg()[0],
        "versions": {name: version(name) for name in ("dask", "distributed", "pyarrow")},
        "python": platform.python_version(),
        "cases": {name: measured(*case, arguments.units) for name, case in cases.items()},
    }
    print(as_table(report))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def measured(settings: WorkerSettings, function: Callable[[EmptyJob], str], units: int) -> dict[str, Any]:
    """Milliseconds from the first outcome to the last, a unit, and memory of this process meanwhile in MB."""
    names, ended = set(), []
    with tempfile.TemporaryDirectory() as folder:
        jobs = [EmptyJob(number, folder) for number in range(units)]
        with sampled_memory() as samples:
            for outcome in run_tasks(function, jobs, settings):
                names.add(outcome.receipt)
                ended.append(time.perf_counter())
        tiles = sum(1 for _ in Path(folder).rglob("*.parquet"))
    if names != {job.name for job in jobs}:
        sys.exit(f"{len(names)} of {units} units gave a receipt")
    during = [megabytes for when, megabytes in samples if ended[0] <= when <= ended[-1]]
    tenth = max(1, len(during) // 10)
    return {
        "ms_a_unit": 1000 * (ended[-1] - ended[0]) / (units - 1),
        "tiles": tiles,
        "mb_first_tenth": median(during[:tenth]),
        "mb_middle": median(during[len(during) // 2 :][:tenth]),
        "mb_last_tenth": median(during[-tenth:]),
        "mb_most": max(during),
    }


@contextmanager
def sampled_memory() -> Iterator[list[tuple[float, float]]]:
    """A list that grows by (time, MB resident in this process), until the block is left."""
    samples: list[tuple[float, float]] = []
    over, process = threading.Event(), psutil.Process()

    def sample() -> None:
        while not over.wait(_SAMPLES_EACH):
            samples.append((time.perf_counter(), process.memory_info().rss / 1e6))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def as_table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "| case | ms a unit | tiles committed | driver, MB: first tenth | middle | last tenth | most |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in report["cases"].items():
        megabytes = (f"{case[key]:.0f}" for key in ("mb_first_tenth", "mb_middle", "mb_last_tenth", "mb_most"))
        lines.append(f"| {name} | {case['ms_a_unit']:.2f} | {case['tiles']} | {' | '.join(megabytes)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
