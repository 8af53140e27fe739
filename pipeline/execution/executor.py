"""Units of work: a plain function mapped over small jobs, in this process or on the workers of a Dask cluster.

`run_tasks` yields a `TaskResult` for each job, as they finish; the same function runs everywhere. `dask_executor`
spreads units over a cluster, `clusters` opens one.
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
    requirements: WorkerRequirements | None = None,
) -> Iterator[TaskResult[Receipt]]:
    """Run `function` on every job and yield the results as they come; a failed unit never stops the others.

    On a cluster, workers must meet the `requirements`: they are checked before the first unit, and those that join
    later before their own first unit.

    Raises
    ------
    UserError : the cluster cannot be started, a worker does not meet the requirements, or so many units in a row failed
        by the system that the rest would too.
    pipeline.core.errors.ClusterLost : the scheduler or all workers went away.
    """
    if not jobs:
        return
    finished = in_a_row = 0
    with closing(_results(function, jobs, settings, requirements)) as results:
        for result in results:
            yield result
            finished += 1
            in_a_row = in_a_row + 1 if result.transient else 0
            if settings.max_consecutive_failures and in_a_row >= settings.max_consecutive_failures:
                raise UserError(_too_many_failures(result, in_a_row, finished, len(jobs)))
    if finished != len(jobs):
        raise RuntimeError(f"{finished} results of {len(jobs)} units")


def _results(
    function: Callable[[Job], Receipt],
    jobs: Sequence[Job],
    settings: WorkerSettings,
    requirements: WorkerRequirements | None,
) -> Generator[TaskResult[Receipt], None, None]:
    if settings.kind == "inline":
        set_torch_threads(settings.torch_threads())
        for job in jobs:
            yield run_task(function, job, settings.retries)
        return
    from pipeline.execution.clusters import needs_gpu, open_cluster
    from pipeline.execution.dask_executor import DaskExecutor  # Dask, only if there is a cluster
    from pipeline.execution.preflight import preflight

    with open_cluster(settings, len(jobs)) as client:
        if requirements:
            preflight(client, requirements, gpu_only=needs_gpu(settings))
        yield from DaskExecutor(client, function, jobs, settings, requirements).results()


def _too_many_failures(last: TaskResult[Any], in_a_row: int, finished: int, jobs: int) -> str:
    return (
        f"the last {in_a_row} units all failed by the system, at last {last.name}: "
        f"{last.error.strip().splitlines()[-1]}. {finished} of {jobs} units have ended; what is committed stays. "
        "Put it right (room on the disk, the network), then run again, which goes on from there; "
        "workers.max_consecutive_failures sets how many failures in a row are too many"
    )
