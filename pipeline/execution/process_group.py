"""A process group: processes of this machine that do one job together, such as the ranks of a training.

Each rank is a Dask task on a worker of its own. Ranks wait for each other, so the group starts, fails and ends as one:
when a worker dies, all processes are ended and the group starts again (the function continues from what it saved); when
the function fails, the others are ended and its error is raised here. Processes that torchrun started find their rank
in the environment.

Why not torch's own elastic launch (`torch.distributed.launcher`, tried with torch 2.13 on 2026-12-01): it starts the
group again after errors that the user must put right, raises them as text without their type, and listens on every
network interface although its endpoint is 127.0.0.1.

Knows nothing of training, nor of torch beyond the number of its threads and the names of its connection errors.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from urllib.parse import urlsplit

from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import UserError
from pipeline.execution.clusters import local_cluster
from pipeline.execution.task import Job, Receipt, set_torch_threads

logger = logging.getLogger(__name__)

_TICK = 1.0  # seconds between two checks of the group
_GRACE = 5.0  # seconds in which the cause behind a broken connection shows up
_START_SECONDS = 120.0  # for all workers to be there
_FETCH_SECONDS = 60.0  # for a small receipt
_LOOPBACK = "127.0.0.1"
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # as torchrun sets them
# What gloo says in a plain RuntimeError when the other side is gone.
_BROKEN = re.compile(r"gloo|closed by peer|reset by peer|connection (?:refused|closed)|broken pipe", re.IGNORECASE)


@dataclass(frozen=True)
class Rank:
    """The place of one process: `rank` of `world`, `local_rank` among those on its machine, and where rank 0 listens.

    A world of one needs no group: its port is 0 where the job runs in the calling process.
    """

    rank: int
    world: int
    address: str
    port: int
    local_rank: int = 0


class _Lost(Exception):
    """A rank or its connection was lost; another attempt may end well."""


class _FailureKind(IntEnum):
    """What kind of error a rank ended with; of several errors the lowest counts."""

    OWN = 0  # the function's own error
    DEATH = 1  # its worker died
    UNCLEAR = 2  # a plain RuntimeError, as libraries raise for broken connections and for bugs alike
    CONNECTION = 3  # another rank is gone, or rank 0's port was taken meanwhile


def run_process_group(
    function: Callable[[Job, Rank], Receipt],
    job: Job,
    settings: WorkerSettings,
    *,
    world: int,
    while_waiting: Callable[[], None] | None = None,
) -> Receipt:
    """Run `function(job, rank)` in `world` processes at the same time; returns the receipt of rank 0.

    A world of one with kind "inline" is this very process; anything else is a cluster of `world` processes on this
    machine that share its cores, whatever `settings.count` says; `function` is in an importable module. After a death
    the group starts again, up to `settings.max_worker_deaths` times.

    `while_waiting` is called in this thread about once a second and once more when all have ended; in a world of one
    in this process, once at the end.

    Raises
    ------
    UserError : too few workers came up, or processes died in every attempt.
    Whatever `function` raised : the first rank's own error, never the broken connection of another.
    """
    if world < 1:
        raise UserError(f"{job.name}: {world} processes are asked for; expected 1 or more")
    if world == 1 and settings.kind == "inline":
        set_torch_threads(settings.torch_threads())
        receipt = function(job, Rank(rank=0, world=1, address=_LOOPBACK, port=0))
        if while_waiting:
            while_waiting()
        return receipt
    attempts = settings.max_worker_deaths + 1
    losses: list[str] = []
    while len(losses) < attempts:
        try:
            return _attempt(function, job, settings, world, while_waiting)
        except _Lost as loss:
            losses.append(str(loss))
            logger.warning("%s: attempt %d of %d ended early: %s", job.name, len(losses), attempts, loss)
    raise UserError(
        f"{job.name}: its {world} processes lost one in each of {attempts} attempts, at last: {losses[-1]}. "
        "A process that takes more memory than there is, is killed so: use fewer processes or smaller batches. "
        "workers.max_worker_deaths sets how often it is tried again"
    )


def rank_from_environment(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """The rank that torchrun gave to this process, by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    None when none of them is set. Raises UserError when some are missing or cannot be.
    """
    found = {name: environment[name] for name in _VARIABLES if environment.get(name)}
    if not found:
        return None
    missing = [name for name in _VARIABLES if name not in found]
    if missing:
        raise UserError(
            f"{', '.join(found)} set in the environment without {', '.join(missing)}: start with torchrun, which sets "
            f"them all, or unset {', '.join(found)} to train without it"
        )
    world = _whole_number(found, "WORLD_SIZE", 1, 2**31)
    return Rank(
        rank=_whole_number(found, "RANK", 0, world),
        world=world,
        address=found["MASTER_ADDR"],
        port=_whole_number(found, "MASTER_PORT", 1, 2**16),
        local_rank=_whole_number(found, "LOCAL_RANK", 0, world),
    )


def _whole_number(variables: Mapping[str, str], name: str, low: int, end: int) -> int:
    """The number that a variable holds, from `low` up to but not including `end`."""
    text = variables[name]
    if not re.fullmatch(r"[0-9]+", text) or not low <= int(text) < end:
        raise UserError(
            f"{name} = {text!r} in the environment: expected a whole number from {low} to {end - 1}; start with "
            "torchrun, which sets it, or unset it together with " + ", ".join(v for v in _VARIABLES if v != name)
        )
    return int(text)


def _attempt(
    function: Callable[[Job, Rank], Receipt],
    job: Job,
    settings: WorkerSettings,
    world: int,
    while_waiting: Callable[[], None] | None,
) -> Receipt:
    """Run the group once, on a fresh cluster, whose end also ends ranks that wait for one that is gone.

    Without Dask's memory limit: it counts pages of mapped files, which the system takes back when it needs them.
    """
    share = settings.model_copy(update={"kind": "local", "count": world, "adaptive_max": 0})
    with local_cluster(share, world, limit_memory=False, silent_below=logging.CRITICAL) as client:
        client.run(set_torch_threads, share.torch_threads())
        ranks = _ranks(client, job, world)
        futures = [
            client.submit(function, job, rank, workers=[worker], allow_other_workers=False, pure=False, retries=0)
            for worker, rank in ranks.items()
        ]
        return _receipt(client, futures, set(ranks), while_waiting)


def _ranks(client: Any, job: Job, world: int) -> dict[str, Rank]:
    """A rank for each of `world` workers, by the worker's address; neighbours on a machine have neighbouring ranks."""
    try:
        client.wait_for_workers(world, timeout=_START_SECONDS)
    except TimeoutError as error:
        raise UserError(
            f"{job.name}: {world} workers are needed at the same time, {len(client.nthreads())} came up within "
            f"{_START_SECONDS:.0f} s; ask for fewer processes, or look for what keeps workers from starting"
        ) from error
    workers = sorted(client.nthreads())[:world]
    hosts = [str(urlsplit(worker).hostname) for worker in workers]
    port = client.run(_free_port, hosts[0], workers=workers[:1])[workers[0]]
    return {
        worker: Rank(rank, world, hosts[0], port, local_rank=hosts[:rank].count(hosts[rank]))
        for rank, worker in enumerate(workers)
    }


def _free_port(host: str) -> int:
    """A port that nobody listens on now; if it is taken before rank 0 does, the group starts again with another."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _receipt(client: Any, futures: Sequence[Any], workers: set[str], while_waiting: Callable[[], None] | None) -> Any:
    """Wait until all ranks have finished; returns the receipt of rank 0.

    A worker's death shows in its future if its rank was running or had finished. One that dies before its rank
    starts leaves it pending for ever; hence the comparison with the workers that exist.
    """
    ended = threading.Event()
    for future in futures:
        future.add_done_callback(lambda _: ended.set())
    while True:
        ended.wait(_TICK)
        ended.clear()
        gone = workers.difference(client.nthreads())
        states = {future.status for future in futures}
        if while_waiting:
            while_waiting()
        if states - {"pending", "finished"}:
            raise _failure(futures)
        if gone:
            raise _Lost("a process died before it began")
        if states == {"finished"}:
            return _fetch(futures[0])


def _fetch(future: Any) -> Any:
    """The result of a finished future, which lies on its worker until it is fetched."""
    from distributed import KilledWorker

    try:
        return future.result(timeout=_FETCH_SECONDS)
    except (KilledWorker, TimeoutError) as error:
        raise _Lost("the process of rank 0 died with its receipt") from error


def _failure(futures: Sequence[Any]) -> BaseException:
    """The error that a failed group ends with: that of the rank which failed first, or `_Lost`.

    A broken connection is often known before its cause, so the others are given a moment to end as well.
    """
    deadline = time.monotonic() + _GRACE
    while True:
        failed = {rank: future for rank, future in enumerate(futures) if future.status == "error"}
        if not failed:  # Dask calls it lost: a result lies on its worker until it is fetched
            return _Lost("a process died after it had finished, before the others had")
        causes = {rank: _cause(future.exception()) for rank, future in failed.items()}
        root = min(causes, key=lambda rank: causes[rank])  # of like ones the lowest rank
        if causes[root] <= _FailureKind.DEATH or len(failed) == len(futures) or time.monotonic() > deadline:
            break
        time.sleep(_TICK / 10)
    error: BaseException = failed[root].exception()
    if causes[root] is _FailureKind.DEATH:
        return _Lost(f"the process of rank {root} died")
    if causes[root] is _FailureKind.CONNECTION:
        return _Lost(f"rank {root} lost its connection: {error}")
    return error.with_traceback(failed[root].traceback())


def _cause(error: BaseException) -> _FailureKind:
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return _FailureKind.DEATH
    if isinstance(error, ConnectionError) or type(error).__module__.startswith("torch.distributed"):
        return _FailureKind.CONNECTION
    if type(error) is not RuntimeError:
        return _FailureKind.OWN
    return _FailureKind.CONNECTION if _BROKEN.search(str(error)) else _FailureKind.UNCLEAR
