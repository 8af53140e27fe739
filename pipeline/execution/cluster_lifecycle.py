"""What holds for every Dask cluster that is started here: its configuration, its client, its end."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.core.errors import UserError

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
ANY_PORT = f"{LOOPBACK}:0"
_CLOSE_SECONDS = 10.0  # for a client to disconnect
_END_SECONDS = 30.0  # for the workers to end
_LOST_WORKER = "15s"  # until a worker that is gone counts as lost, and another job is submitted


@contextmanager
def own_cluster(threads: int) -> Iterator[ExitStack]:
    """Configure Dask for a cluster that is started here; what ends the cluster goes on the stack."""
    import dask
    import distributed  # noqa: F401  sets the level of its logs when it is imported

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    configuration = {
        "temporary-directory": _scratch_folder().name,
        "distributed.scheduler.allowed-failures": 0,  # units of a worker that died are tried again alone
        # Without the nanny's MALLOC_TRIM_THRESHOLD_: with it units take three times as long, and they trim themselves.
        "distributed.nanny.pre-spawn-environ": {name: str(threads) for name in names},
        "distributed.comm.timeouts.connect": "60s",
        "distributed.deploy.lost-worker-timeout": _LOST_WORKER,
    }
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with dask.config.set(configuration), ExitStack() as stack:  # before the start, which reads it once
        yield stack


@cache
def _scratch_folder() -> TemporaryDirectory[str]:
    """Dask's scratch folder for the life of this process.

    Dask imports modules from it before all others, and its usual one has a fixed name in /tmp, so that anybody could
    have made it.
    """
    return TemporaryDirectory(prefix="morphcat-", ignore_cleanup_errors=True)


@contextmanager
def connected_client(cluster: Any) -> Iterator[Any]:
    from distributed import Client

    # By its address: given the cluster itself, it would wait for the workers without end.
    client = Client(cluster.scheduler_address, security=cluster.security, set_as_default=False)  # type: ignore[no-untyped-call]
    try:
        yield client
    finally:
        disconnect(client)


def disconnect(client: Any) -> None:
    """Close a client; its scheduler may be gone."""
    try:
        client.close(timeout=_CLOSE_SECONDS)
    except (OSError, TimeoutError):
        logger.debug("the scheduler did not answer when the client left")


def end_cluster(cluster: Any) -> None:
    """End the processes of a cluster.

    Dask waits 5 s for each and then kills it; one that is still starting, on a busy machine, takes longer, which must
    not hide how the work ended.
    """
    try:
        cluster.close(timeout=_END_SECONDS)
    except AssertionError:
        logger.debug("a job was never submitted")  # which Dask takes for a bug of its own
    except TimeoutError:
        logger.warning("a worker process was killed because it took too long to end")
        for nanny in list(cluster._created):
            if pid := getattr(nanny, "pid", None):  # jobs of SLURM have none; they end when their scheduler is gone
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def require_package(module: str, package: str, kind: str) -> None:
    """UserError if an optional part is not installed."""
    if find_spec(module) is None:
        raise UserError(f"workers.kind = {kind} needs {package}: pip install 'morphcat[{kind}]'")
