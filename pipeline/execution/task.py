"""One unit of work: a plain function of a small job, tried in this process; its receipt or its error.

Knows nothing of clusters: the executors of this process and of Dask both run units by `run_task`.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pipeline.core.errors import is_transient
from pipeline.core.redaction import redact
from pipeline.runs.run_log import LogRecord, capture_logs

logger = logging.getLogger(__name__)

_PAUSE = 0.5  # seconds before a second try, doubled each time


class NamedJob(Protocol):
    """A job with a name for messages."""

    @property
    def name(self) -> str: ...


Job = TypeVar("Job", bound=NamedJob)
Receipt = TypeVar("Receipt")


@dataclass(frozen=True)
class TaskResult(Generic[Receipt]):
    """How one unit ended: with a receipt, or with the error that failed it.

    `seconds` is how long it ran, with all its tries; `worker` the host and process id; `logs` what our packages logged
    meanwhile. These three are unknown for a unit whose worker died. `transient` says that disk or network failed it,
    so that another run may succeed.
    """

    name: str
    receipt: Receipt | None
    error: str = ""
    seconds: float = 0.0
    worker: str = ""
    logs: tuple[LogRecord, ...] = ()
    transient: bool = False


def run_task(function: Callable[[Job], Receipt], job: Job, retries: int) -> TaskResult[Receipt]:
    """Run one unit; system failures are tried again, any other exception becomes the result."""
    started = time.perf_counter()
    with capture_logs() as log:
        receipt, error, transient = _try(function, job, retries)
    seconds, worker = round(time.perf_counter() - started, 3), f"{socket.gethostname()}:{os.getpid()}"
    return TaskResult(job.name, receipt, redact(error), seconds, worker, log.records, transient)


def _try(function: Callable[[Job], Receipt], job: Job, retries: int) -> tuple[Receipt | None, str, bool]:
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
