"""Where units of work run: in this process, or on the workers of a Dask cluster. Only this and `gang` name Dask.

`run_units` maps a plain function over small jobs and yields an `Outcome` for each, as they end. A bounded window of
jobs is under way at any time, and each future is released as soon as its result is in: kept ones would run again when
their worker dies. Units that were on a worker as it died run again one by one, so that one that kills its worker takes
no other along.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import is_transient

logger = logging.getLogger(__name__)

WINDOW = 3  # jobs under way for each worker
_FETCH_SECONDS = 60.0  # for a receipt of under 1 KB, or for a lost unit to run again
_PAUSE = 0.5  # seconds before a second try, doubled each time


class Named(Protocol):
    """A job with a name for messages."""

    @property
    def name(self) -> str: ...


Job = TypeVar("Job", bound=Named)
Receipt = TypeVar("Receipt")


class WorkerSettings(BaseModel):
    """Where units of work run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["inline", "local"] = Field(
        "inline", description="inline: this process; local: a Dask cluster on this machine"
    )
    n: int = Field(2, ge=1, description="number of worker processes")
    threads: int = Field(0, ge=0, description="torch threads a process; 0 shares the cores among the processes")
    gang: int = Field(1, ge=1, description="processes that train one network together, a GPU each where there are any")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="torch device; auto: a GPU where one is usable")
    retries: int = Field(2, ge=0, description="further tries after a failure of the system (disk, network)")
    deaths: int = Field(2, ge=0, description="further tries, alone, of a unit whose worker died")

    def torch_threads(self) -> int:
        """Threads of each process."""
        processes = 1 if self.kind == "inline" else self.n
        return self.threads or max(1, len(os.sched_getaffinity(0)) // processes)


@dataclass(frozen=True)
class Outcome(Generic[Receipt]):
    """How one unit ended: with a receipt, or with the error that failed it."""

    name: str
    receipt: Receipt | None
    error: str = ""


def run_units(
    function: Callable[[Job], Receipt], jobs: Sequence[Job], settings: WorkerSettings
) -> Iterator[Outcome[Receipt]]:
    """Run `function` on every job and yield the outcomes as they come; a failed unit never stops the others."""
    if not jobs:
        return
    if settings.kind == "inline":
        set_torch_threads(settings.torch_threads())
        for job in jobs:
            yield attempt(function, job, settings.retries)
    else:
        yield from _run_on_cluster(function, jobs, settings)


def attempt(function: Callable[[Job], Receipt], job: Job, retries: int) -> Outcome[Receipt]:
    """Run one unit; system failures are tried again, anything else that is raised becomes the outcome.

    The only broad `except` below the command line: a bug in one unit must not cost the run.
    """
    for again in range(retries + 1):
        try:
            return Outcome(job.name, function(job))
        except Exception as error:  # the unit's own failure, reported with its traceback
            if is_transient(error) and again < retries:
                time.sleep(_PAUSE * 2**again)
                continue
            return Outcome(job.name, None, "".join(traceback.format_exception(error)))
    raise AssertionError("unreachable")


def set_torch_threads(threads: int) -> None:
    """Threads torch may use in this process."""
    import torch  # deferred: a run without units never loads it

    torch.set_num_threads(threads)


@contextmanager
def local_cluster(
    settings: WorkerSettings, jobs: int, *, memory_limit: str | None = "auto", silent_below: int = logging.ERROR
) -> Iterator[Any]:
    """A Dask client of a cluster of processes on this machine, on the loopback interface, with the cores shared out.

    There are no more processes than jobs. A process that takes over 95 % of `memory_limit` is ended by Dask ("auto":
    its share of the memory; None: no limit). Log lines of Dask below the level `silent_below` are not shown.
    """
    import dask
    from distributed import Client, LocalCluster

    threads = settings.torch_threads()
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    configuration = {
        "distributed.scheduler.allowed-failures": 0,  # who was there when a worker died is tried again alone, below
        # Without the nanny's MALLOC_TRIM_THRESHOLD_: with it units take three times as long, and they trim themselves.
        "distributed.nanny.pre-spawn-environ": {name: str(threads) for name in names},
        "distributed.comm.timeouts.connect": "60s",
    }
    logging.getLogger("distributed").setLevel(logging.ERROR)  # after its import, which sets it to INFO
    with dask.config.set(configuration):  # before the start, which reads it once
        cluster = LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=min(settings.n, jobs),
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any free port
            memory_limit=memory_limit,
            silence_logs=silent_below,
        )
        try:
            with Client(cluster) as client:  # type: ignore[no-untyped-call]
                client.run(set_torch_threads, threads)
                yield client
        finally:
            _end(cluster)


def _end(cluster: Any) -> None:
    """End the processes of a cluster.

    Dask waits 5 s for each and then kills it; one that is still starting in the place of a dead one, on a busy
    machine, takes longer, which must not hide how the work ended.
    """
    try:
        cluster.close()
    except TimeoutError:
        logger.warning("a worker process was killed, for it took too long to end")


def _run_on_cluster(
    function: Callable[[Job], Receipt], jobs: Sequence[Job], settings: WorkerSettings
) -> Iterator[Outcome[Receipt]]:
    with local_cluster(settings, len(jobs)) as client:
        from distributed import as_completed

        waiting = iter(jobs)
        submitted: dict[str, Job] = {}
        lost: list[Job] = []

        def submit(job: Job) -> Any:
            future = client.submit(attempt, function, job, settings.retries, pure=False)
            submitted[future.key] = job
            return future

        first = [submit(job) for job in itertools.islice(waiting, WINDOW * settings.n)]
        running = as_completed(first)  # type: ignore[no-untyped-call]
        del first
        for future in running:
            job = submitted.pop(future.key)
            outcome = _outcome(future)
            if outcome is None:
                lost.append(job)
            else:
                yield outcome
            future.release()
            following = next(waiting, None)
            if following is not None:
                running.add(submit(following))
        for job in lost:
            yield _alone(submit, job, settings.deaths)


def _alone(submit: Callable[[Job], Any], job: Job, tries: int) -> Outcome[Any]:
    """The outcome of a unit with no other beside it, tried again as long as its worker dies."""
    from distributed import wait

    error = "its worker died"
    for _ in range(tries):
        future = submit(job)
        wait(future)
        outcome = _outcome(future)
        if outcome is not None:
            return outcome
        error = _loss(future)
        future.release()
    return Outcome(job.name, None, error)


def _outcome(future: Any) -> Outcome[Any] | None:
    """The outcome of a future that ended; None when a worker died with it.

    A result lies on its worker until it is fetched: a unit may have finished and be lost all the same. Dask then runs
    it again by itself, without end where the worker dies each time; hence the limit.
    """
    from distributed import KilledWorker

    if future.status != "finished":
        return None
    try:
        return future.result(timeout=_FETCH_SECONDS)
    except (KilledWorker, TimeoutError):
        return None


def _loss(future: Any) -> str:
    """Why a future without a result ended: its worker died too often, or the scheduler went away."""
    error = future.exception() if future.status == "error" else None
    return f"{type(error).__name__}: {error}" if error else f"the unit was {future.status}"
