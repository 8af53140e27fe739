"""Units on the workers of a Dask cluster, in a bounded window; units of dead workers run again; every wait ends.

First all units together, `WINDOW` for each thread of the workers that exist now, so that the driver's memory stays flat
and clusters may grow and shrink. Each future is released as soon as its result is in, because Dask runs kept ones again
when their worker dies. Units that were on a worker when it died run once more at the end, alone: each pinned to a
worker that has nothing else, so that one that kills its worker takes no other along.

A scheduler that is gone, or no worker for `workers.patience_seconds`, raises `ClusterLost`.
Knows nothing of what units do, nor of how the cluster was started.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Generic

from distributed import KilledWorker
from distributed.client import ClosedClientError
from distributed.comm import CommClosedError

from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import ClusterLost, UserError
from pipeline.execution.clusters import current_workers, needs_gpu
from pipeline.execution.environment import WorkerRequirements, check_worker
from pipeline.execution.task import Job, Receipt, TaskResult, run_task, set_torch_threads
from pipeline.execution.timeouts import process_ends_after

logger = logging.getLogger(__name__)

WINDOW = 3  # jobs under way for each thread of the workers
_FETCH_SECONDS = 10.0  # for a receipt of under 1 KB, or for a lost unit to run again
_TICK = 0.2  # seconds to wait for a unit to end before the workers are polled
_POLL_SECONDS = 1.0  # seconds between two polls of the workers


@dataclass(frozen=True)
class TaskLimits:
    """Limits of a unit: torch threads (0: as they are), seconds until its process is ended, further tries.

    `requirements` are checked in the worker's process before its first unit; None: no check.
    """

    threads: int
    seconds: float
    retries: int
    requirements: WorkerRequirements | None = None


def run_on_worker(function: Callable[[Job], Receipt], job: Job, limits: TaskLimits) -> TaskResult[Receipt]:
    """Run one unit in a worker's process, which ends itself when the unit takes too long."""
    if limits.threads and "torch" in sys.modules:  # else the unit, imported by now, needs none
        set_torch_threads(limits.threads)
    with process_ends_after(limits.seconds):
        if limits.requirements:
            check_worker(limits.requirements)
        return run_task(function, job, limits.retries)


@dataclass
class _RunningTask(Generic[Job]):
    """A unit that was sent: to any worker, or pinned to one, apart from others; `fetched` is its result's task."""

    job: Job
    future: Any
    since: float
    worker: str = ""
    fetched: asyncio.Future[Any] | None = None


@dataclass
class _Lost(Generic[Job]):
    """A unit whose worker died: how often it was tried apart from others, and what is known of its end."""

    job: Job
    tries: int = 0
    why: str = "KilledWorker: its worker died; workers.max_worker_deaths = 0 leaves it at that"


class DaskExecutor(Generic[Job, Receipt]):
    """The jobs of one stage on a cluster; `results` runs them."""

    def __init__(
        self,
        client: Any,
        function: Callable[[Job], Receipt],
        jobs: Sequence[Job],
        settings: WorkerSettings,
        requirements: WorkerRequirements | None = None,
    ) -> None:
        self._client, self._function, self._jobs, self._settings = client, function, jobs, settings
        self._limits = TaskLimits(settings.worker_threads(), settings.unit_seconds, settings.retries, requirements)
        self._running: dict[str, _RunningTask[Job]] = {}
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lost: deque[_Lost[Job]] = deque()
        self._done = 0
        self._workers: dict[str, int] = {}
        self._polled = float("-inf")
        self._last_seen = time.monotonic()  # when there was a worker

    def results(self) -> Iterator[TaskResult[Receipt]]:
        """The results of all jobs as they come.

        Raises
        ------
        ClusterLost : the scheduler went away, or no worker was there for too long.
        UserError : workers die one after another and no unit ends; a worker that joined does not meet the requirements.
        """
        try:
            for result in itertools.chain(self._run_together(), self._run_alone()):
                self._done += 1
                yield result
        except (ClosedClientError, CancelledError) as error:
            raise self._cluster_lost("the connection to its scheduler broke") from error

    def _run_together(self) -> Iterator[TaskResult[Receipt]]:
        waiting = deque(self._jobs)
        lost_in_a_row = 0
        while waiting or self._running:
            self._poll_workers()
            window = WINDOW * sum(self._workers.values())
            while waiting and len(self._running) < window:
                self._submit(waiting.popleft())
            for unit in self._next_ended():
                result = self._result_of(unit)
                if result is None:
                    lost_in_a_row += 1
                    self._lost.append(_Lost(unit.job))
                else:
                    lost_in_a_row = 0
                    yield result
            self._stop_if_workers_die(lost_in_a_row, window)

    def _run_alone(self) -> Iterator[TaskResult[Receipt]]:
        """Run units whose worker died again, each alone on a worker, until the worker survives or no tries are left."""
        tried: dict[str, _Lost[Job]] = {}
        while self._lost or self._running:
            self._poll_workers(0.0)  # a unit must not be pinned to a worker that is gone
            if self._lost and self._lost[0].tries >= self._settings.max_worker_deaths:
                lost = self._lost.popleft()
                yield TaskResult(lost.job.name, None, lost.why)
                continue
            busy = {unit.worker for unit in self._running.values()}
            for worker in self._workers.keys() - busy:
                if self._lost and self._lost[0].tries < self._settings.max_worker_deaths:
                    lost = self._lost.popleft()
                    tried[self._submit(lost.job, worker)] = lost
            for unit in self._next_ended() + self._orphaned():
                lost = tried.pop(unit.future.key)
                result = self._result_of(unit)
                if result is None:
                    self._lost.append(_Lost(lost.job, lost.tries + 1, self._why(unit, lost.tries + 1)))
                else:
                    yield result

    def _submit(self, job: Job, worker: str = "") -> str:
        """Send a unit to a worker; returns the key of its future."""
        future = self._client.submit(
            run_on_worker,
            self._function,
            job,
            self._limits,
            pure=False,
            workers=[worker] if worker else None,
            resources={"GPU": 1} if needs_gpu(self._settings) else None,
        )
        self._running[future.key] = _RunningTask(job, future, time.monotonic(), worker)
        future.add_done_callback(lambda ended: self._client.loop.add_callback(self._fetch, ended))
        return future.key

    async def _fetch(self, future: Any) -> None:
        """Get the result of a unit that has ended, in the client's event loop, beside those of others.

        A result lies on its worker until it is fetched: a unit may have finished and be lost all the same. Dask then
        runs it again by itself, without end where the worker dies each time; hence the limit.
        """
        fetched = asyncio.ensure_future(future.result(timeout=_FETCH_SECONDS))
        await asyncio.wait([fetched])
        fetched.exception()  # retrieved, so that Dask does not warn about it
        self._ended.put((future.key, fetched))

    def _next_ended(self) -> list[_RunningTask[Job]]:
        """The units that have ended by now; waits a moment for one when none has."""
        found = []
        try:
            found.append(self._ended.get(timeout=_TICK))
            while True:
                found.append(self._ended.get_nowait())
        except queue.Empty:
            pass
        units = []
        for key, fetched in found:
            if unit := self._running.pop(key, None):  # else it was orphaned
                unit.fetched = fetched
                units.append(unit)
        return units

    def _orphaned(self) -> list[_RunningTask[Job]]:
        """Units pinned to workers that are gone, which would wait for ever."""
        gone = [key for key, unit in self._running.items() if unit.worker not in self._workers]
        return [self._running.pop(key) for key in gone]

    def _result_of(self, unit: _RunningTask[Job]) -> TaskResult[Receipt] | None:
        """The result of a unit, whose future is released; None when its worker died."""
        try:
            if unit.future.status == "cancelled":
                raise self._cluster_lost("its scheduler went away")
            return unit.fetched.result() if unit.fetched else None
        except (KilledWorker, TimeoutError, CommClosedError):
            return None
        finally:
            unit.future.release()

    def _poll_workers(self, every: float = _POLL_SECONDS) -> None:
        """Update the workers, at most every so many seconds; raise if there is none for too long, or no scheduler."""
        if self._client.status != "running":
            raise self._cluster_lost("its scheduler went away")
        now = time.monotonic()
        if now - self._polled < every:
            return
        missing = "no worker"
        try:
            self._workers = current_workers(self._client, needs_gpu(self._settings))
        except OSError as error:
            self._workers, missing = {}, "no answer of its scheduler"
            logger.warning("the scheduler does not answer (%s)", error or type(error).__name__)
        self._polled = time.monotonic()
        if self._workers:
            self._last_seen = now
        elif now - self._last_seen > self._settings.longest_absence():
            raise self._cluster_lost(f"{missing} for {now - self._last_seen:.0f} s (workers.patience_seconds)")

    def _cluster_lost(self, why: str) -> ClusterLost:
        return ClusterLost(
            f"the cluster was lost, {why}: {self._done} of {len(self._jobs)} units are done and stay; "
            "run again to go on from there"
        )

    def _stop_if_workers_die(self, lost_in_a_row: int, window: int) -> None:
        """Stop when more units in a row are lost than one event takes along, with all workers."""
        if self._settings.max_consecutive_failures and lost_in_a_row > self._settings.max_consecutive_failures + window:
            raise UserError(
                f"{lost_in_a_row} units in a row lost their worker, and none has ended meanwhile; {self._done} of "
                f"{len(self._jobs)} are done and stay. Workers that take more memory than there is are killed so: use "
                "fewer (workers.count) or a smaller survey.batch; then run again, which goes on from there"
            )

    def _why(self, unit: _RunningTask[Job], tries: int) -> str:
        """What is known of the end of a unit whose worker died."""
        seconds, limit = time.monotonic() - unit.since, self._settings.unit_seconds
        if limit and seconds >= limit:
            return (
                f"KilledWorker: the unit was ended after {seconds:.0f} s, for workers.unit_seconds = {limit:g}; the "
                "log of the worker has a traceback of where it was"
            )
        return (
            f"KilledWorker: its worker died in each of {tries} tries with nothing beside it, at last after "
            f"{seconds:.1f} s; a process that takes more memory than there is, is killed so"
        )
