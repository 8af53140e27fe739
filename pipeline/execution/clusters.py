"""Clusters of Dask workers: processes of this machine, of its GPUs, jobs of SLURM, or what somebody has started.

`open_cluster` gives a client of the kind that the settings name, so that everything else is the same code. A cluster
that was started here ends here; a scheduler and workers that existed before are left as they are. Knows nothing of
units.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import ClusterLost, UserError
from pipeline.execution.cluster_lifecycle import (
    ANY_PORT,
    LOOPBACK,
    connected_client,
    disconnect,
    end_cluster,
    own_cluster,
    require_package,
)
from pipeline.execution.slurm import slurm_cluster

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 20.0  # for a scheduler to answer
_ANSWER_SECONDS = 10.0  # for a question to the scheduler
_TICK = 0.1  # seconds between two looks for workers
_FIRST_REMINDER = 60.0  # seconds; doubled each time


@contextmanager
def open_cluster(settings: WorkerSettings, jobs: int = sys.maxsize) -> Iterator[Any]:
    """A Dask client of the workers that the settings ask for, at least one of which is there.

    No more workers are started than there will be `jobs`.

    Raises
    ------
    UserError : a part that is not installed, no GPU, no such scheduler, no worker in time; kind "inline".
    ClusterLost : the scheduler went away before a worker came.
    """
    kinds = {"local": local_cluster, "cuda": _cuda_cluster, "slurm": slurm_cluster, "connect": _connected}
    if settings.kind not in kinds:
        raise UserError(f"workers.kind = {settings.kind}: expected one of {', '.join(kinds)}, which start a cluster")
    with kinds[settings.kind](settings, jobs) as client:
        _wait_for_workers(client, settings, 1)
        yield client


def needs_gpu(settings: WorkerSettings) -> bool:
    """Whether units go only to workers that offer the resource GPU: where others may be among them."""
    return settings.kind == "connect" and settings.device == "cuda"


def current_workers(client: Any, gpu: bool = False) -> dict[str, int]:
    """Threads of each worker that is there now, by its address; with `gpu` only of those that offer the resource GPU.

    Raises OSError (also as TimeoutError) when the scheduler does not answer.
    """
    if not gpu:
        return client.nthreads(callback_timeout=_ANSWER_SECONDS)
    described = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=_ANSWER_SECONDS)["workers"]
    return {address: worker["nthreads"] for address, worker in described.items() if worker["resources"].get("GPU")}


def _wait_for_workers(client: Any, settings: WorkerSettings, wanted: int) -> None:
    """Return when so many workers are there that units can run on, or fewer at the end of the patience.

    UserError when none came.
    """
    start, patience, reminder = time.monotonic(), settings.longest_absence(), _FIRST_REMINDER
    while (present := _count(client, settings)) < wanted:
        waited = time.monotonic() - start
        if waited > patience:
            break
        if waited > reminder:
            logger.warning("%d of %d workers after %.0f s; waiting up to %.0f s", present, wanted, waited, patience)
            reminder *= 2
        time.sleep(_TICK)
    if not present:
        raise UserError(_no_workers_error(client, settings, patience))


def _count(client: Any, settings: WorkerSettings) -> int:
    try:
        return len(current_workers(client, needs_gpu(settings)))
    except OSError as error:
        raise ClusterLost(f"the scheduler of the workers went away ({error})") from error


def _no_workers_error(client: Any, settings: WorkerSettings, seconds: float) -> str:
    address, others = client.scheduler.address, len(current_workers(client))
    if others:
        return (
            f"workers.device = cuda, and none of the {others} workers of the scheduler {address} offers the resource "
            f"GPU: start them with `dask worker {address} --nthreads 1 --resources GPU=1`, or set workers.device"
        )
    advice = {
        "connect": f"start some with `dask worker {address} --nthreads 1`",
        "slurm": "`squeue --me` and the logs of the jobs tell why; `morphcat workers script` shows what they run",
    }
    return f"no worker of the scheduler {address} within {seconds:.0f} s (workers.patience_seconds): " + advice.get(
        settings.kind, "look for what keeps processes from starting"
    )


@contextmanager
def local_cluster(
    settings: WorkerSettings, jobs: int, *, limit_memory: bool = True, silent_below: int = logging.ERROR
) -> Iterator[Any]:
    """A Dask client of a cluster of processes on this machine, on the loopback interface, with the cores shared out.

    They speak TLS with keys that no file keeps: whoever reaches a Dask scheduler can have code run, and every user of a
    machine reaches its loopback interface. There are no more processes than jobs. With `limit_memory` Dask ends a
    process that takes over 95 % of its share. Log lines of Dask below the level `silent_below` are not shown.
    """
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT  # of the machine, or of the container

    least, most = min(settings.count, jobs), min(max(settings.count, settings.adaptive_max), jobs)
    with own_cluster(settings.torch_threads()) as stack:
        cluster = LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=0,  # it would wait for them without end
            threads_per_worker=1,
            processes=True,
            host=LOOPBACK,
            dashboard_address=ANY_PORT,
            security=True,
            memory_limit=MEMORY_LIMIT // most if limit_memory else None,
            silence_logs=silent_below,
        )
        stack.callback(end_cluster, cluster)
        cluster.scale(least)
        if most > least:
            cluster.adapt(minimum=least, maximum=most)
        client = stack.enter_context(connected_client(cluster))
        _wait_for_workers(client, settings, least)
        yield client


@contextmanager
def _cuda_cluster(settings: WorkerSettings, jobs: int) -> Iterator[Any]:
    """A client of one process for each GPU that this machine shows (CUDA_VISIBLE_DEVICES), as far as there are jobs."""
    require_package("dask_cuda", "dask-cuda", settings.kind)
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        raise UserError(
            "workers.kind = cuda: torch sees no GPU here; `nvidia-smi` and CUDA_VISIBLE_DEVICES tell what there is, "
            "a CPU build of torch sees none; workers.kind=local uses the CPU"
        )
    from dask_cuda import LocalCUDACluster

    with own_cluster(settings.threads or max(1, len(os.sched_getaffinity(0)) // gpus)) as stack:
        cluster = LocalCUDACluster(
            n_workers=min(gpus, jobs),
            threads_per_worker=1,
            host=LOOPBACK,
            dashboard_address=ANY_PORT,
            security=True,
            silence_logs=logging.ERROR,
        )
        stack.callback(end_cluster, cluster)
        yield stack.enter_context(connected_client(cluster))


@contextmanager
def _connected(settings: WorkerSettings, jobs: int) -> Iterator[Any]:
    """A client of a scheduler that others started, by its address or its file; ends neither it nor its workers."""
    from distributed import Client

    where = _scheduler_of(settings)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # errors are raised as UserError instead
    try:
        client = Client(**where, timeout=_CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise UserError(
            f"workers.address = {settings.address}: no Dask scheduler answers there within {_CONNECT_SECONDS:.0f} s "
            f"({error}); start one with `dask scheduler`, which prints its address"
        ) from error
    try:
        yield client
    finally:
        disconnect(client)


def _scheduler_of(settings: WorkerSettings) -> dict[str, str]:
    """How the client is told where the scheduler is."""
    if not settings.address:
        raise UserError("workers.kind = connect: set workers.address to tcp://HOST:PORT or to a scheduler file")
    if "://" in settings.address:
        if "@" in settings.address:
            raise UserError(
                "workers.address names a user or a password, which Dask does not know: keys for TLS stand in Dask's "
                "own configuration (distributed.comm.tls)"
            )
        return {"address": settings.address}
    path = Path(settings.address).expanduser()
    if not path.is_file():
        raise UserError(
            f"workers.address = {settings.address}: neither an address, such as tcp://10.0.0.5:8786, nor a file that "
            "`dask scheduler --scheduler-file FILE` has written"
        )
    return {"scheduler_file": str(path)}
