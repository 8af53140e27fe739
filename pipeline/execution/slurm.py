"""Workers that are jobs of SLURM, through dask-jobqueue: the cluster, and the script that each job runs."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import UserError
from pipeline.execution.cluster_lifecycle import (
    ANY_PORT,
    connected_client,
    end_cluster,
    own_cluster,
    require_package,
)

logger = logging.getLogger(__name__)

_DEATH_SECONDS = 300  # after which a job ends by itself when its scheduler is gone, or cannot start from a slow disk
_INTERVAL = "15s"  # between two checks of how many jobs there should be
_SCRATCH = (  # each job has a private scratch folder for Dask, as this process has
    'export DASK_TEMPORARY_DIRECTORY="$(mktemp -d)"',
    "trap 'rm -rf \"$DASK_TEMPORARY_DIRECTORY\"' EXIT",
)


@contextmanager
def slurm_cluster(settings: WorkerSettings, jobs: int) -> Iterator[Any]:
    """A client of workers that are jobs of SLURM, each with a process; the scheduler runs in this process, over TLS.

    A job that ends, at its walltime or with its node, is followed by another.
    """
    require_package("dask_jobqueue", "dask-jobqueue", settings.kind)
    if not shutil.which("sbatch"):
        raise UserError("workers.kind = slurm: there is no `sbatch` here; run this on a machine that submits jobs")
    from dask_jobqueue import SLURMCluster

    with own_cluster(settings.worker_threads()) as stack:
        cluster = SLURMCluster(
            **_job_options(settings),
            security=True,
            shared_temp_directory=settings.slurm_keys,
            scheduler_options={"dashboard_address": ANY_PORT},
            silence_logs=logging.ERROR,
        )
        stack.callback(_remove_keys, cluster)
        stack.callback(end_cluster, cluster)
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
        cluster.adapt(minimum_jobs=least, maximum_jobs=most, interval=_INTERVAL)
        logger.info("%d jobs of SLURM are asked for; waiting for the first", least)
        yield stack.enter_context(connected_client(cluster))


def _remove_keys(cluster: Any) -> None:
    """Remove the files of the TLS keys that dask-jobqueue made for the jobs, which else stay as long as its object."""
    for part in ("ca_file", "cert", "key"):
        getattr(cluster, f"_job_{part}").close()


def slurm_script(settings: WorkerSettings) -> str:
    """The script that each job of SLURM runs, as dask-jobqueue makes it; starts nothing.

    The scheduler's address and the names of the TLS keys are those of a run: placeholders stand for them.
    """
    require_package("dask_jobqueue", "dask-jobqueue", "slurm")
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
