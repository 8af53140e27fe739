"""Units of work: a plain function mapped over small jobs, in this process or on the workers of a Dask cluster.

`run_units` yields an `Outcome` for each job, as they end; the same function runs everywhere. How units are spread over
a cluster stands in `fan_out`, how a cluster is opened in `clusters`.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pipeline.cluster_settings import WorkerSettings
from pipeline.errors import UserError, is_transient
from pipeline.fitness import Standard
from pipeline.logs import Said, gathered
from pipeline.secrecy import without_secrets

logger = logging.getLogger(__name__)

_PAUSE = 0.5  # seconds before a second try, doubled each time


class Named(Protocol):
    """A job with a name for messages."""

    @property
    def name(self) -> str: ...


Job = TypeVar("Job", bound=Named)
Receipt = TypeVar("Receipt")


@dataclass(frozen=True)
class Outcome(Generic[Receipt]):
    """How one unit ended: with a receipt, or with the error that failed it.

    `seconds` is how long it ran, with all its tries; `worker` the host and process id; `said` what our packages logged
    meanwhile. They are not known of a unit whose worker died. `by_system` says that disk or network failed it.
    """

    name: str
    receipt: Receipt | None
    error: str = ""
    seconds: float = 0.0
    worker: str = ""
    said: tuple[Said, ...] = ()
    by_system: bool = False


def run_units(
    function: Callable[[Job], Receipt],
    jobs: Sequence[Job],
    settings: WorkerSettings,
    standard: Standard | None = None,
) -> Iterator[Outcome[Receipt]]:
    """Run `function` on every job and yield the outcomes as they come; a failed unit never stops the others.

    Where there is a cluster, its workers must be as `standard` says: they are asked before the first unit, and those
    that come later before their own first one.

    Raises
    ------
    UserError : the cluster can not be had, a worker is not as `standard` says, or so many units in a row failed by the
        system that the rest would too.
    pipeline.errors.ClusterLost : the scheduler or all workers went away.
    """
    if not jobs:
        return
    ended = in_a_row = 0
    with closing(_outcomes(function, jobs, settings, standard)) as outcomes:
        for outcome in outcomes:
            yield outcome
            ended += 1
            in_a_row = in_a_row + 1 if outcome.by_system else 0
            if settings.give_up and in_a_row >= settings.give_up:
                raise UserError(_given_up(outcome, in_a_row, ended, len(jobs)))
    if ended != len(jobs):
        raise RuntimeError(f"{ended} outcomes of {len(jobs)} units")


def _outcomes(
    function: Callable[[Job], Receipt],
    jobs: Sequence[Job],
    settings: WorkerSettings,
    standard: Standard | None,
) -> Generator[Outcome[Receipt], None, None]:
    if settings.kind == "inline":
        set_torch_threads(settings.torch_threads())
        for job in jobs:
            yield attempt(function, job, settings.retries)
        return
    from pipeline.clusters import needs_gpu, open_cluster
    from pipeline.fan_out import FanOut  # Dask, only where there is a cluster
    from pipeline.preflight import preflight

    with open_cluster(settings, len(jobs)) as client:
        if standard:
            preflight(client, standard, gpu_only=needs_gpu(settings))
        yield from FanOut(client, function, jobs, settings, standard).outcomes()


def _given_up(last: Outcome[Any], in_a_row: int, ended: int, jobs: int) -> str:
    return (
        f"the last {in_a_row} units all failed by the system, at last {last.name}: "
        f"{last.error.strip().splitlines()[-1]}. {ended} of {jobs} units have ended; what is committed stays. Put it "
        "right (room on the disk, the network), then run again, which goes on from there; workers.give_up sets how "
        "many failures in a row are too many"
    )


def attempt(function: Callable[[Job], Receipt], job: Job, retries: int) -> Outcome[Receipt]:
    """Run one unit; system failures are tried again, anything else that is raised becomes the outcome."""
    started = time.perf_counter()
    with gathered() as log:
        receipt, error, by_system = _tried(function, job, retries)
    seconds, worker = round(time.perf_counter() - started, 3), f"{socket.gethostname()}:{os.getpid()}"
    return Outcome(job.name, receipt, without_secrets(error), seconds, worker, log.said, by_system)


def _tried(function: Callable[[Job], Receipt], job: Job, retries: int) -> tuple[Receipt | None, str, bool]:
    """The receipt of a unit, or its error and whether the system failed it.

    The only broad `except` below the command line: a bug in one unit must not cost the run.
    """
    for again in range(retries + 1):
        try:
            return function(job), "", False
        except Exception as error:  # the unit's own failure, reported with its traceback
            if is_transient(error) and again < retries:
                logger.info("%s: %s; trying again", job.name, error)
                time.sleep(_PAUSE * 2**again)
                continue
            return None, "".join(traceback.format_exception(error)), is_transient(error)
    raise AssertionError("unreachable")


def set_torch_threads(threads: int) -> None:
    """Threads torch may use in this process."""
    import torch  # deferred: a run without units never loads it

    torch.set_num_threads(threads)
