"""Before the first unit, every worker of a Dask cluster is asked whether it can do the run as the driver would.

A worker with other software, another folder under the same name or a wrong clock waits, fails or, worst, writes other
rows. `environment` describes a process and compares it with the requirements; this module asks all workers within a
time limit and evaluates their replies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from distributed.comm import CommClosedError

from pipeline.core.errors import ClusterLost, UserError
from pipeline.execution.clusters import current_workers
from pipeline.execution.environment import (
    WorkerEnvironment,
    WorkerRequirements,
    inspect_environment,
    problems,
    warnings,
)

_log = logging.getLogger(__name__)

ANSWER_SECONDS = 120.0  # for all checks of a worker: importing torch from a cold network disk takes a minute
CLOCK_SECONDS = 30.0  # clocks may differ by this much: times enter the rows, and whether files have settled
_TICK = 0.2  # seconds between two looks who has come
_SHOWN = 12  # workers that an error names
_MOUNT = "mount the same folder under this path on every machine"


@dataclass(frozen=True)
class WorkerReport:
    """What is known of one worker; `environment` is None when it gave no answer.

    `clock_error` is how many seconds its clock is at least ahead of the driver's (behind when negative); 0 when the
    two agree as closely as the time of asking tells. A worker with `problems` must not be used.
    """

    address: str
    environment: WorkerEnvironment | None
    clock_error: float
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ProbeFile:
    """A file that the driver has written into the folder that units write to; answers go beside it."""

    path: str
    text: str

    def answer_of(self, number: int) -> Path:
        return Path(f"{self.path}.{number}")


@dataclass(frozen=True)
class WorkerReply:
    """What a worker gave back; times are of its own clock (s since 1970)."""

    started: float
    ended: float
    environment: WorkerEnvironment
    read: str
    wrote: str


def preflight(
    client: Any,
    requirements: WorkerRequirements,
    *,
    expected: int = 1,
    gpu_only: bool = False,
    seconds: float = ANSWER_SECONDS,
) -> list[WorkerReport]:
    """Ask every worker of a Dask client; warnings go to the log. The parameters are those of `ask_workers`.

    Raises
    ------
    UserError : there is no worker, or some cannot do the run; says which, why, and what to do.
    """
    reports = ask_workers(client, requirements, expected=expected, gpu_only=gpu_only, seconds=seconds)
    for report in reports:
        for warning in report.warnings:
            _log.warning("worker %s: %s", _name(report), warning)
    if any(report.problems for report in reports):
        raise UserError(describe_reports(reports))
    return reports


def ask_workers(
    client: Any,
    requirements: WorkerRequirements,
    *,
    expected: int = 1,
    gpu_only: bool = False,
    seconds: float = ANSWER_SECONDS,
) -> list[WorkerReport]:
    """A report of each worker that is there; meanwhile hidden files lie in the folder that units write to.

    Parameters
    ----------
    requirements : what this process sets; the folder that units write to is made if it does not exist.
    expected : number of workers to wait for; fewer are a line in the log.
    gpu_only : only those that offer the resource GPU are asked.
    seconds : limit for workers to come, and for each to answer.

    Raises
    ------
    UserError : no worker has come.
    ClusterLost : the scheduler went away.
    """
    try:
        addresses = _workers(client, expected, gpu_only, seconds)
        with _probe_file(Path(requirements.writes), len(addresses)) as probe:
            reports = client.sync(_ask_all, client, addresses, requirements, probe, seconds)
    except (CommClosedError, TimeoutError, asyncio.CancelledError) as error:  # the client ends what waits
        raise ClusterLost("the scheduler went away as the workers were asked; run again") from error
    return _with_shared_gpus(reports)


def describe_reports(reports: Sequence[WorkerReport], most: int = _SHOWN) -> str:
    """Worker by worker what keeps it from the run, of so many workers at most."""
    unfit = [report for report in reports if report.problems]
    lines = [f"{len(unfit)} of {len(reports)} workers cannot do this run:"]
    for report in unfit[:most]:
        lines += [_name(report), *(f"  {problem}" for problem in report.problems)]
    if len(unfit) > most:
        lines.append(f"and {len(unfit) - most} more; `morphcat workers check` lists all")
    return "\n".join(lines)


def _name(report: WorkerReport) -> str:
    if report.environment is None:
        return report.address
    return f"{report.address} ({report.environment.host}, process {report.environment.pid})"


def _workers(client: Any, expected: int, gpu_only: bool, seconds: float) -> list[str]:
    """Addresses of the workers; waits until as many are there as expected."""
    end = time.monotonic() + seconds
    while len(there := current_workers(client, gpu_only)) < expected and time.monotonic() < end:
        time.sleep(_TICK)
    if not there:
        raise UserError(f"no worker of the scheduler {client.scheduler.address} is there to do the run: start some")
    if len(there) < expected:
        _log.warning("only %d of %d workers have come within %g s", len(there), expected, seconds)
    return sorted(there)


# --- the question ---------------------------------------------------------------------------------------------------


@contextmanager
def _probe_file(folder: Path, answers: int) -> Iterator[ProbeFile]:
    """A hidden file with random text in a folder; it and the answers are removed afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = ProbeFile(str(folder / f".preflight-{uuid4().hex}"), uuid4().hex)
    files = [Path(probe.path), *map(probe.answer_of, range(answers))]
    try:
        files[0].write_text(probe.text)
        yield probe
    finally:
        for file in files:
            file.unlink(missing_ok=True)


async def _ask_all(
    client: Any, addresses: Sequence[str], requirements: WorkerRequirements, probe: ProbeFile, seconds: float
) -> list[WorkerReport]:
    asked = [_ask(client, address, requirements, probe, number, seconds) for number, address in enumerate(addresses)]
    return list(await asyncio.gather(*asked))


async def _ask(
    client: Any, address: str, requirements: WorkerRequirements, probe: ProbeFile, number: int, seconds: float
) -> WorkerReport:
    """Ask one worker, by Dask's side channel: a task for a worker that cannot import it would make it leave."""
    sent = time.time()
    answer = probe.answer_of(number)
    asked = client.run(_answer, requirements, probe.path, str(answer), workers=[address], on_error="return")
    try:
        said = (await asyncio.wait_for(asked, seconds))[address]
    except TimeoutError:
        return _silent(address, f"no answer within {seconds:g} s: it is busy, or hangs on a disk that does not answer")
    if not isinstance(said, WorkerReply):
        return _silent(address, _why(said))
    clock = clock_error(sent, time.time(), said.started, said.ended)
    found = [*problems(requirements, said.environment), _other_folder(probe, answer, said), _wrong_clock(clock)]
    return WorkerReport(
        address, said.environment, clock, tuple(filter(None, found)), warnings(requirements, said.environment)
    )


async def _answer(requirements: WorkerRequirements, probe: str, answer: str) -> WorkerReply:
    """What a worker does when it is asked; in a thread, so that its signs of life go on meanwhile."""
    started = time.time()
    environment = await asyncio.to_thread(inspect_environment, requirements, at_start=True)
    try:
        read, wrote = Path(probe).read_text(), uuid4().hex
        Path(answer).write_text(wrote)
    except OSError as error:
        trouble = f"{requirements.writes} is not shared with the driver, or cannot be written ({error}): {_MOUNT}"
        return WorkerReply(
            started, time.time(), replace(environment, troubles=(*environment.troubles, trouble)), "", ""
        )
    return WorkerReply(started, time.time(), environment, read, wrote)


# --- the answer -----------------------------------------------------------------------------------------------------


def clock_error(sent: float, received: float, started: float, ended: float) -> float:
    """How many seconds another clock is at least ahead of ours (behind when negative); 0 where they may agree.

    What began at `started` and ended at `ended` by the other clock lies between `sent` and `received` by ours, so the
    other is ahead by between `ended` − `received` and `started` − `sent`.
    """
    return max(ended - received, 0.0) + min(started - sent, 0.0)


def _silent(address: str, problem: str) -> WorkerReport:
    return WorkerReport(address, None, 0.0, (problem,), ())


def _why(error: Exception) -> str:
    """Why a worker could not even be asked: it went away, or this module cannot be imported there."""
    if isinstance(error, OSError):
        return f"it could not be asked, it is gone ({error})"
    return (
        f"pipeline.execution.preflight cannot be imported there ({error}): install morphcat with the same "
        "constraints.txt in the workers' environment"
    )


def _other_folder(probe: ProbeFile, file: Path, reply: WorkerReply) -> str:
    """What is wrong with a folder that the worker could read and write."""
    if not reply.wrote:
        return ""  # it has said why
    try:
        wrote = file.read_text()
    except OSError:
        wrote = ""
    if (reply.read, wrote) == (probe.text, reply.wrote):
        return ""
    return f"what it wrote to {file.parent} did not arrive there for the driver: {_MOUNT}"


def _wrong_clock(error: float) -> str:
    if abs(error) <= CLOCK_SECONDS:
        return ""
    side = "ahead of" if error > 0 else "behind"
    return f"its clock is {abs(error):.0f} s {side} the driver's: set both by the network (chrony, ntpd)"


def _with_shared_gpus(reports: Sequence[WorkerReport]) -> list[WorkerReport]:
    """The reports, with a warning where workers share a GPU."""
    gpus = Counter(report.environment.gpu for report in reports if report.environment and report.environment.gpu)
    return [
        replace(report, warnings=(*report.warnings, f"{gpus[gpu]} workers share {gpu}: one process per GPU is faster"))
        if (gpu := report.environment.gpu if report.environment else "") and gpus[gpu] > 1
        else report
        for report in reports
    ]
