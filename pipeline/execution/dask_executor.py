"""Units on the workers of a Dask cluster: a window of them under way, losses made good, nothing waited for without end.

First all units together, `WINDOW` for each thread of the workers that are there now, so that the driver's memory stays
flat and clusters may grow and shrink. Each future is released as soon as its result is in: kept ones would run again
when their worker dies. Units that were on a worker as it died are lost. They run once more at the end, apart: each
pinned to a worker that has nothing else, so that one that kills its worker takes no other along.

Every wait ends: a scheduler that is gone, or no worker for `workers.patience_seconds` seconds, is `ClusterLost`.
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
_TICK = 0.2  # seconds; how long to wait for a unit to end before looking around
_LOOK = 1.0  # seconds between two questions who is there


@dataclass(frozen=True)
class TaskLimits:
    """What a unit is told of its worker: torch threads (0: as they are), seconds until it is ended, further tries.

    `standard` is what the worker's process has to be like, made sure of before its first unit; None: anything.
    """

    threads: int
    seconds: float
    retries: int
    standard: WorkerRequirements | None = None


def run_on_worker(function: Callable[[Job], Receipt], job: Job, terms: TaskLimits) -> TaskResult[Receipt]:
    """Run one unit in a worker's process, which ends itself when the unit takes too long."""
    if terms.threads and "torch" in sys.modules:  # else the unit, imported by now, needs none
        set_torch_threads(terms.threads)
    with process_ends_after(terms.seconds):
        if terms.standard:
            check_worker(terms.standard)
        return run_task(function, job, terms.retries)


@dataclass
class _UnderWay(Generic[Job]):
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
    """The jobs of one stage on a cluster; `outcomes` runs them."""

    def __init__(
        self,
        client: Any,
        function: Callable[[Job], Receipt],
        jobs: Sequence[Job],
        settings: WorkerSettings,
        standard: WorkerRequirements | None = None,
    ) -> None:
        self._client, self._function, self._jobs, self._settings = client, function, jobs, settings
        self._terms = TaskLimits(settings.worker_threads(), settings.unit_seconds, settings.retries, standard)
        self._under_way: dict[str, _UnderWay[Job]] = {}
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lost: deque[_Lost[Job]] = deque()
        self._done = 0
        self._workers: dict[str, int] = {}
        self._looked = float("-inf")
        self._seen = time.monotonic()  # when there was a worker for the last time

    def outcomes(self) -> Iterator[TaskResult[Receipt]]:
        """The outcomes of all jobs as they come.

        Raises
        ------
        ClusterLost : the scheduler went away, or no worker was there for too long.
        UserError : workers die one after another, and no unit ends; a worker that came later is not fit for the run.
        """
        try:
            for outcome in itertools.chain(self._together(), self._apart()):
                self._done += 1
                yield outcome
        except (ClosedClientError, CancelledError) as error:
            raise self._cluster_lost("the connection to its scheduler broke") from error

    def _together(self) -> Iterator[TaskResult[Receipt]]:
        waiting = deque(self._jobs)
        lost_in_a_row = 0
        while waiting or self._under_way:
            self._look()
            window = WINDOW * sum(self._workers.values())
            while waiting and len(self._under_way) < window:
                self._submit(waiting.popleft())
            for unit in self._next_ended():
                outcome = self._outcome(unit)
                if outcome is None:
                    lost_in_a_row += 1
                    self._lost.append(_Lost(unit.job))
                else:
                    lost_in_a_row = 0
                    yield outcome
            self._stop_dying(lost_in_a_row, window)

    def _apart(self) -> Iterator[TaskResult[Receipt]]:
        """Units that were lost, each on a worker of its own, tried again as long as that dies."""
        tried: dict[str, _Lost[Job]] = {}
        while self._lost or self._under_way:
            self._look(0.0)  # a unit must not be pinned to a worker that is gone
            if self._lost and self._lost[0].tries >= self._settings.max_worker_deaths:
                lost = self._lost.popleft()
                yield TaskResult(lost.job.name, None, lost.why)
                continue
            busy = {unit.worker for unit in self._under_way.values()}
            for worker in self._workers.keys() - busy:
                if self._lost and self._lost[0].tries < self._settings.max_worker_deaths:
                    lost = self._lost.popleft()
                    tried[self._submit(lost.job, worker)] = lost
            for unit in self._next_ended() + self._stranded():
                lost = tried.pop(unit.future.key)
                outcome = self._outcome(unit)
                if outcome is None:
                    self._lost.append(_Lost(lost.job, lost.tries + 1, self._why(unit, lost.tries + 1)))
                else:
                    yield outcome

    def _submit(self, job: Job, worker: str = "") -> str:
        """Send a unit to a worker; returns the key of its future."""
        future = self._client.submit(
            run_on_worker,
            self._function,
            job,
            self._terms,
            pure=False,
            workers=[worker] if worker else None,
            resources={"GPU": 1} if needs_gpu(self._settings) else None,
        )
        self._under_way[future.key] = _UnderWay(job, future, time.monotonic(), worker)
        future.add_done_callback(lambda ended: self._client.loop.add_callback(self._fetch, ended))
        return future.key

    async def _fetch(self, future: Any) -> None:
        """Get the result of a unit that has ended, in the client's event loop, beside those of others.

        A result lies on its worker until it is fetched: a unit may have finished and be lost all the same. Dask then
        runs it again by itself, without end where the worker dies each time; hence the limit.
        """
        fetched = asyncio.ensure_future(future.result(timeout=_FETCH_SECONDS))
        await asyncio.wait([fetched])
        fetched.exception()  # looked at, also where nobody wants it any longer
        self._ended.put((future.key, fetched))

    def _next_ended(self) -> list[_UnderWay[Job]]:
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
            if unit := self._under_way.pop(key, None):  # else it was stranded
                unit.fetched = fetched
                units.append(unit)
        return units

    def _stranded(self) -> list[_UnderWay[Job]]:
        """Units pinned to workers that are gone: they would wait for ever."""
        gone = [key for key, unit in self._under_way.items() if unit.worker not in self._workers]
        return [self._under_way.pop(key) for key in gone]

    def _outcome(self, unit: _UnderWay[Job]) -> TaskResult[Receipt] | None:
        """The outcome of a unit, whose future is released; None when its worker died."""
        try:
            if unit.future.status == "cancelled":
                raise self._cluster_lost("its scheduler went away")
            return unit.fetched.result() if unit.fetched else None
        except (KilledWorker, TimeoutError, CommClosedError):
            return None
        finally:
            unit.future.release()

    def _look(self, every: float = _LOOK) -> None:
        """See who is there, at most `every` so many seconds; raise when nobody is for too long, or no scheduler."""
        if self._client.status != "running":
            raise self._cluster_lost("its scheduler went away")
        now = time.monotonic()
        if now - self._looked < every:
            return
        missing = "no worker"
        try:
            self._workers = current_workers(self._client, needs_gpu(self._settings))
        except OSError as error:
            self._workers, missing = {}, "no answer of its scheduler"
            logger.warning("the scheduler does not answer (%s)", error or type(error).__name__)
        self._looked = time.monotonic()
        if self._workers:
            self._seen = now
        elif now - self._seen > self._settings.longest_absence():
            raise self._cluster_lost(f"{missing} for {now - self._seen:.0f} s (workers.patience_seconds)")

    def _cluster_lost(self, why: str) -> ClusterLost:
        return ClusterLost(
            f"the cluster was lost, {why}: {self._done} of {len(self._jobs)} units are done and stay; "
            "run again to go on from there"
        )

    def _stop_dying(self, lost_in_a_row: int, window: int) -> None:
        """Stop when more units in a row are lost than one event takes along, with all workers."""
        if self._settings.max_consecutive_failures and lost_in_a_row > self._settings.max_consecutive_failures + window:
            raise UserError(
                f"{lost_in_a_row} units in a row lost their worker, and none has ended meanwhile; {self._done} of "
                f"{len(self._jobs)} are done and stay. Workers that take more memory than there is are killed so: use "
                "fewer (workers.count) or a smaller survey.batch; then run again, which goes on from there"
            )

    def _why(self, unit: _UnderWay[Job], tries: int) -> str:
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
