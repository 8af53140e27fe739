"""Units of work: a plain function mapped over small jobs, in this process or on the workers of a Dask cluster.

`run_tasks` yields a `TaskResult` for each job, as they end; the same function runs everywhere. How units are spread
over a cluster stands in `dask_executor`, how a cluster is opened in `clusters`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import UserError
from pipeline.execution.environment import WorkerRequirements
from pipeline.execution.task import Job, Receipt, TaskResult, run_task, set_torch_threads


def run_tasks(
    function: Callable[[Job], Receipt],
    jobs: Sequence[Job],
    settings: WorkerSettings,
    standard: WorkerRequirements | None = None,
) -> Iterator[TaskResult[Receipt]]:
    """Run `function` on every job and yield the outcomes as they come; a failed unit never stops the others.

    Where there is a cluster, its workers must be as `standard` says: they are asked before the first unit, and those
    that come later before their own first one.

    Raises
    ------
    UserError : the cluster cannot be had, a worker is not as `standard` says, or so many units in a row failed by the
        system that the rest would too.
    pipeline.core.errors.ClusterLost : the scheduler or all workers went away.
    """
    if not jobs:
        return
    ended = in_a_row = 0
    with closing(_outcomes(function, jobs, settings, standard)) as outcomes:
        for outcome in outcomes:
            yield outcome
            ended += 1
            in_a_row = in_a_row + 1 if outcome.by_system else 0
            if settings.max_consecutive_failures and in_a_row >= settings.max_consecutive_failures:
                raise UserError(_given_up(outcome, in_a_row, ended, len(jobs)))
    if ended != len(jobs):
        raise RuntimeError(f"{ended} outcomes of {len(jobs)} units")


def _outcomes(
    function: Callable[[Job], Receipt],
    jobs: Sequence[Job],
    settings: WorkerSettings,
    standard: WorkerRequirements | None,
) -> Generator[TaskResult[Receipt], None, None]:
    if settings.kind == "inline":
        set_torch_threads(settings.torch_threads())
        for job in jobs:
            yield run_task(function, job, settings.retries)
        return
    from pipeline.execution.clusters import needs_gpu, open_cluster
    from pipeline.execution.dask_executor import DaskExecutor  # Dask, only where there is a cluster
    from pipeline.execution.preflight import preflight

    with open_cluster(settings, len(jobs)) as client:
        if standard:
            preflight(client, standard, gpu_only=needs_gpu(settings))
        yield from DaskExecutor(client, function, jobs, settings, standard).outcomes()


def _given_up(last: TaskResult[Any], in_a_row: int, ended: int, jobs: int) -> str:
    return (
        f"the last {in_a_row} units all failed by the system, at last {last.name}: "
        f"{last.error.strip().splitlines()[-1]}. {ended} of {jobs} units have ended; what is committed stays. Put it "
        "right (room on the disk, the network), then run again, which goes on from there; "
        "workers.max_consecutive_failures sets how many failures in a row are too many"
    )
