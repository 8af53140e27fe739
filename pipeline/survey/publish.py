"""Releases of a workspace: where the units of a release run, and how their progress and failures are shown.

What a release is, and how it is built from committed tiles, is in `catalogs.releases.build`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from catalogs.errors import CatalogError
from catalogs.releases.build import Receipt, RunUnits, publish
from catalogs.releases.partition_writer import PartitionJob
from catalogs.releases.registry import ReleaseInfo
from pipeline.config.workers import WorkerSettings
from pipeline.config.workspace import Workspace
from pipeline.core.progress import track
from pipeline.execution.environment import WorkerRequirements, requirements
from pipeline.execution.executor import run_tasks
from pipeline.execution.task import TaskResult
from pipeline.runs.records import run_records
from pipeline.runs.run_log import log_result

_SYSTEM_ERROR = re.compile(r"^\w+: \[Errno (?P<number>\d+)\] (?P<message>.*)\s*\Z", re.MULTILINE)
FEW_ROWS = 1_000_000  # done in this process in the time that a cluster takes to start


def build_release(workspace: Workspace, model_id: str) -> ReleaseInfo | None:
    """Publish what is committed of a model by `catalogs.releases.build.publish`, with the workspace's settings."""
    settings = workspace.settings
    return publish(
        workspace.catalog,
        model_id,
        max_rows=settings.release.max_rows,
        exports=settings.release.exports,
        runs=run_records(workspace),
        run_units=on_workers(settings.workers),
    )


def on_workers(settings: WorkerSettings, few_rows: int = FEW_ROWS) -> RunUnits:
    """A function that runs units of a release on the workers, or in this process for few rows, and shows progress."""
    inline = settings.model_copy(update={"kind": "inline"})

    def run(what: str, function: Callable[[PartitionJob], Receipt], jobs: Sequence[PartitionJob]) -> Iterator[Receipt]:
        workers = settings if sum(job.rows for job in jobs) > few_rows else inline
        with track(what, len(jobs)) as step:
            for result in run_tasks(function, jobs, workers, _worker_requirements(function, jobs)):
                log_result(result)
                if result.receipt is None:
                    raise _failure(result)
                step(1, result.name)
                yield result.receipt

    return run


def _worker_requirements(
    function: Callable[[PartitionJob], Receipt], jobs: Sequence[PartitionJob]
) -> WorkerRequirements | None:
    """What a worker needs to run these units."""
    if not jobs:
        return None
    return requirements(device="cpu", writes=Path(jobs[0].root).parent, module=function.__module__)


def _failure(result: TaskResult[Receipt]) -> Exception:
    """The exception for a unit that failed: with a message if a person can put it right, else with its traceback."""
    _, is_catalog_error, message = result.error.rpartition(f"{CatalogError.__module__}.{CatalogError.__name__}: ")
    if is_catalog_error:
        return CatalogError(" ".join(message.split()))
    system_error = _SYSTEM_ERROR.search(result.error) if result.transient else None
    if system_error:  # such as a full disk: no bug, and worth another try
        return OSError(int(system_error["number"]), f"{result.name}: {system_error['message']}")
    return RuntimeError(f"{result.name}: {result.error}")
