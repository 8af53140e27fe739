"""Releases of a workspace: their pixels mapped over the workers.

What a release is and how it is built stands in catalogs.releases.build; here is where its units run and how far
they are.
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

_TOLD_BY_SYSTEM = re.compile(r"^\w+: \[Errno (?P<number>\d+)\] (?P<words>.*)\s*\Z", re.MULTILINE)
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
    """Runs units of a release where the settings say, in this process for few rows, and shows how far they are."""
    inline = settings.model_copy(update={"kind": "inline"})

    def run(what: str, function: Callable[[PartitionJob], Receipt], jobs: Sequence[PartitionJob]) -> Iterator[Receipt]:
        with track(what, len(jobs)) as step:
            where = settings if sum(job.rows for job in jobs) > few_rows else inline
            for outcome in run_tasks(function, jobs, where, _standard(function, jobs)):
                log_result(outcome)
                if outcome.receipt is None:
                    raise _failure(outcome)
                step(1, outcome.name)
                yield outcome.receipt

    return run


def _standard(function: Callable[[PartitionJob], Receipt], jobs: Sequence[PartitionJob]) -> WorkerRequirements | None:
    """What the workers of a release have to be like."""
    if not jobs:
        return None
    return requirements(device="cpu", writes=Path(jobs[0].root).parent, module=function.__module__)


def _failure(outcome: TaskResult[Receipt]) -> Exception:
    """What failed a unit: in words when it is something that a person can put right, else with its traceback."""
    _, raised, words = outcome.error.rpartition(f"{CatalogError.__module__}.{CatalogError.__name__}: ")
    if raised:
        return CatalogError(" ".join(words.split()))
    told = _TOLD_BY_SYSTEM.search(outcome.error) if outcome.by_system else None
    if told:  # such as a full disk: no bug, and worth another try
        return OSError(int(told["number"]), f"{outcome.name}: {told['words']}")
    return RuntimeError(f"{outcome.name}: {outcome.error}")
