"""Clusters of Dask workers: processes of this machine, of its GPUs, jobs of SLURM, or what somebody has started.

`open_cluster` gives a client of whichever kind the settings name, so that everything else is the same code. What was
started here ends here; a scheduler and workers that were there before are left as they are. Knows nothing of units.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import ClusterLost, UserError

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_ANY_PORT = f"{_LOOPBACK}:0"
_CONNECT_SECONDS = 20.0  # for a scheduler to answer
_CLOSE_SECONDS = 10.0  # for a client to say goodbye
_ANSWER_SECONDS = 10.0  # for a question to the scheduler
_END_SECONDS = 30.0  # for the workers to end
_TICK = 0.1  # seconds between two looks for workers
_FIRST_REMINDER = 60.0  # seconds; doubled each time
_DEATH_SECONDS = 300  # after which a job ends by itself when its scheduler is gone, or cannot start from a slow disk
_LOST_WORKER = "15s"  # until a worker that is gone counts as lost, and another job is submitted
_SCRATCH = (  # of a job, as `_scratch` here
    'export DASK_TEMPORARY_DIRECTORY="$(mktemp -d)"',
    "trap 'rm -rf \"$DASK_TEMPORARY_DIRECTORY\"' EXIT",
)
_SLURM_INTERVAL = "15s"  # between two looks at how many jobs there should be


@contextmanager
def open_cluster(settings: WorkerSettings, jobs: int = sys.maxsize) -> Iterator[Any]:
    """A Dask client of the workers that the settings ask for, at least one of which is there.

    No more workers are started than there will be `jobs`.

    Raises
    ------
    UserError : a part that is not installed, no GPU, no such scheduler, no worker in time; kind "inline".
    ClusterLost : the scheduler went away before a worker came.
    """
    kinds = {"local": local_cluster, "cuda": _cuda_cluster, "slurm": _slurm_cluster, "connect": _connected}
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
    told = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=_ANSWER_SECONDS)["workers"]
    return {address: worker["nthreads"] for address, worker in told.items() if worker["resources"].get("GPU")}


def _wait_for_workers(client: Any, settings: WorkerSettings, wanted: int) -> None:
    """Return when so many workers are there that units can run on, or fewer at the end of the patience.

    UserError when none came.
    """
    start, patience, reminder = time.monotonic(), settings.longest_absence(), _FIRST_REMINDER
    while (there := _count(client, settings)) < wanted:
        waited = time.monotonic() - start
        if waited > patience:
            break
        if waited > reminder:
            logger.warning("%d of %d workers after %.0f s; waiting up to %.0f s", there, wanted, waited, patience)
            reminder *= 2
        time.sleep(_TICK)
    if not there:
        raise UserError(_nobody_came(client, settings, patience))


def _count(client: Any, settings: WorkerSettings) -> int:
    try:
        return len(current_workers(client, needs_gpu(settings)))
    except OSError as error:
        raise ClusterLost(f"the scheduler of the workers went away ({error})") from error


def _nobody_came(client: Any, settings: WorkerSettings, seconds: float) -> str:
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
    with _ours(settings.torch_threads()) as stack:
        cluster = LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=0,  # it would wait for them without end
            threads_per_worker=1,
            processes=True,
            host=_LOOPBACK,
            dashboard_address=_ANY_PORT,
            security=True,
            memory_limit=MEMORY_LIMIT // most if limit_memory else None,
            silence_logs=silent_below,
        )
        stack.callback(_end, cluster)
        cluster.scale(least)
        if most > least:
            cluster.adapt(minimum=least, maximum=most)
        client = stack.enter_context(_client(cluster))
        _wait_for_workers(client, settings, least)
        yield client


@contextmanager
def _cuda_cluster(settings: WorkerSettings, jobs: int) -> Iterator[Any]:
    """A client of one process for each GPU that this machine shows (CUDA_VISIBLE_DEVICES), as far as there are jobs."""
    _need("dask_cuda", "dask-cuda", settings.kind)
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        raise UserError(
            "workers.kind = cuda: torch sees no GPU here; `nvidia-smi` and CUDA_VISIBLE_DEVICES tell what there is, "
            "a CPU build of torch sees none; workers.kind=local uses the CPU"
        )
    from dask_cuda import LocalCUDACluster

    with _ours(settings.threads or max(1, len(os.sched_getaffinity(0)) // gpus)) as stack:
        cluster = LocalCUDACluster(
            n_workers=min(gpus, jobs),
            threads_per_worker=1,
            host=_LOOPBACK,
            dashboard_address=_ANY_PORT,
            security=True,
            silence_logs=logging.ERROR,
        )
        stack.callback(_end, cluster)
        yield stack.enter_context(_client(cluster))


@contextmanager
def _slurm_cluster(settings: WorkerSettings, jobs: int) -> Iterator[Any]:
    """A client of workers that are jobs of SLURM, each with a process; the scheduler runs in this process, over TLS.

    A job that ends, at its walltime or with its node, is followed by another.
    """
    _need("dask_jobqueue", "dask-jobqueue", settings.kind)
    if not shutil.which("sbatch"):
        raise UserError("workers.kind = slurm: there is no `sbatch` here; run this on a machine that submits jobs")
    from dask_jobqueue import SLURMCluster

    with _ours(settings.worker_threads()) as stack:
        cluster = SLURMCluster(
            **_job_options(settings),
            security=True,
            shared_temp_directory=settings.slurm_keys,
            scheduler_options={"dashboard_address": _ANY_PORT},
            silence_logs=logging.ERROR,
        )
        stack.callback(_remove_keys, cluster)
        stack.callback(_end, cluster)
        least = min(settings.count, jobs)

        async def submit() -> None:
            while len(cluster.worker_spec) < least:
                cluster.worker_spec.update(cluster.new_worker_spec())
            await cluster._correct_state()  # as `cluster.scale`, which only logs what `sbatch` says

        try:
            cluster.sync(submit)
        except RuntimeError as error:
            raise UserError(f"SLURM did not take a job; `morphcat workers script` shows it: {error}") from error
        most = max(least, min(settings.adaptive_max, jobs))
        cluster.adapt(minimum_jobs=least, maximum_jobs=most, interval=_SLURM_INTERVAL)
        logger.info("%d jobs of SLURM are asked for; waiting for the first", least)
        yield stack.enter_context(_client(cluster))


def _remove_keys(cluster: Any) -> None:
    """Remove the files of the TLS keys that dask-jobqueue made for the jobs, which else stay as long as its object."""
    for part in ("ca_file", "cert", "key"):
        getattr(cluster, f"_job_{part}").close()


def slurm_script(settings: WorkerSettings) -> str:
    """The script that each job of SLURM runs, as dask-jobqueue makes it; starts nothing.

    The scheduler's address and the names of the TLS keys are those of a run: placeholders stand for them.
    """
    _need("dask_jobqueue", "dask-jobqueue", "slurm")
    from dask_jobqueue.slurm import SLURMJob
    from distributed.security import Security

    parts = ("ca_file", "worker_key", "worker_cert")
    keys = {f"tls_{part}": f"{settings.slurm_keys}/{part.upper()}" for part in parts}
    job = SLURMJob(
        "tls://SCHEDULER:PORT",
        name="NAME",
        protocol="tls://",
        security=Security(**keys),
        **_job_options(settings),
    )
    return job.job_script()


def _job_options(settings: WorkerSettings) -> dict[str, Any]:
    """What dask-jobqueue is told of a job: one process with one thread for units and all cores for torch.

    A worker leaves some minutes before its walltime, not all at once, so that no unit is cut off.
    """
    walltime = settings.walltime_seconds()
    threads = settings.threads or settings.slurm_cpus
    arguments = ["--no-dashboard", "--lifetime", f"{walltime * 23 // 24}s", "--lifetime-stagger", f"{walltime // 60}s"]
    gres = [f"--gres={settings.slurm_gres}"] if settings.slurm_gres else []
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        "job_name": "morphcat",
        "queue": settings.slurm_queue or None,
        "account": settings.slurm_account or None,
        "walltime": settings.slurm_walltime,
        "cores": 1,
        "processes": 1,
        "job_cpu": settings.slurm_cpus,
        "memory": settings.slurm_memory,
        "death_timeout": _DEATH_SECONDS,
        "interface": settings.slurm_interface or None,
        "python": settings.slurm_python or None,
        "log_directory": settings.slurm_logs or None,
        "worker_extra_args": [*arguments, *(["--resources", "GPU=1"] if gres else [])],
        "job_extra_directives": [*gres, *settings.slurm_directives],
        "job_script_prologue": [*_SCRATCH, *(f"export {name}={threads}" for name in names), *settings.slurm_prologue],
    }


@contextmanager
def _connected(settings: WorkerSettings, jobs: int) -> Iterator[Any]:
    """A client of a scheduler that others started, by its address or its file; ends neither it nor its workers."""
    from distributed import Client

    where = _scheduler_of(settings)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is told in our words
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
        _leave(client)


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


@contextmanager
def _ours(threads: int) -> Iterator[ExitStack]:
    """What holds around a cluster that is started here; on the stack goes what ends it."""
    import dask
    import distributed  # noqa: F401  sets the level of its logs when it is imported

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    configuration = {
        "temporary-directory": _scratch().name,
        "distributed.scheduler.allowed-failures": 0,  # who was there when a worker died is tried again alone
        # Without the nanny's MALLOC_TRIM_THRESHOLD_: with it units take three times as long, and they trim themselves.
        "distributed.nanny.pre-spawn-environ": {name: str(threads) for name in names},
        "distributed.comm.timeouts.connect": "60s",
        "distributed.deploy.lost-worker-timeout": _LOST_WORKER,
    }
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with dask.config.set(configuration), ExitStack() as stack:  # before the start, which reads it once
        yield stack


@cache
def _scratch() -> TemporaryDirectory[str]:
    """Dask's scratch folder, as long as this process: it imports modules from there before all others.

    Its usual one, of a fixed name in /tmp, anybody could have made.
    """
    return TemporaryDirectory(prefix="morphcat-", ignore_cleanup_errors=True)


@contextmanager
def _client(cluster: Any) -> Iterator[Any]:
    from distributed import Client

    # By its address: given the cluster itself, it would wait for the workers without end.
    client = Client(cluster.scheduler_address, security=cluster.security, set_as_default=False)  # type: ignore[no-untyped-call]
    try:
        yield client
    finally:
        _leave(client)


def _leave(client: Any) -> None:
    """Say goodbye to the scheduler, which may be gone."""
    try:
        client.close(timeout=_CLOSE_SECONDS)
    except (OSError, TimeoutError):
        logger.debug("the scheduler did not answer the goodbye")


def _end(cluster: Any) -> None:
    """End the processes of a cluster.

    Dask waits 5 s for each and then kills it; one that is still starting, on a busy machine, takes longer, which must
    not hide how the work ended.
    """
    try:
        cluster.close(timeout=_END_SECONDS)
    except AssertionError:
        logger.debug("a job was never submitted")  # which Dask takes for a bug of its own
    except TimeoutError:
        logger.warning("a worker process was killed, for it took too long to end")
        for nanny in list(cluster._created):
            if pid := getattr(nanny, "pid", None):  # jobs of SLURM have none; they end when their scheduler is gone
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _need(module: str, package: str, kind: str) -> None:
    """UserError where an optional part is not installed."""
    if find_spec(module) is None:
        raise UserError(f"workers.kind = {kind} needs {package}: pip install 'morphcat[{kind}]'")
