"""Clusters of each kind: what they need, what they are told, and that none is waited for without end."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipeline.config.workers import WorkerSettings
from pipeline.config.workspace import open_workspace
from pipeline.core.errors import UserError
from pipeline.execution import cluster_lifecycle, clusters
from pipeline.execution.clusters import open_cluster


def test_settings_say_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"workers\.slurm_walltime = '4 hours'.*expected \[D-\]HH:MM:SS"):
        open_workspace(tmp_path, ["workers.slurm_walltime='4 hours'"])
    slurm = open_workspace(tmp_path, ["workers.kind=slurm", 'workers.slurm_directives=["--qos=high"]']).settings.workers
    assert slurm.slurm_directives == ("--qos=high",) and slurm.longest_absence() == 86400
    assert (
        WorkerSettings(kind="connect").longest_absence() == 120
        and WorkerSettings(patience_seconds=5).longest_absence() == 5
    )


def test_threads_are_shared_among_the_processes_of_a_machine_and_left_alone_elsewhere() -> None:
    cores = len(os.sched_getaffinity(0))
    assert WorkerSettings(kind="local", count=1, adaptive_max=10**6).torch_threads() == 1
    assert WorkerSettings(kind="connect", count=10**6).torch_threads() == cores  # this process is not among them
    assert WorkerSettings(kind="connect").worker_threads() == 0
    assert WorkerSettings(kind="connect", threads=2).worker_threads() == 2
    assert WorkerSettings(kind="slurm", slurm_cpus=6).worker_threads() == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "inline"}, "expected one of local, cuda, slurm, connect"),
        ({"kind": "connect"}, "set workers.address to tcp://HOST:PORT or to a scheduler file"),
        ({"kind": "connect", "address": "nowhere.json"}, "workers.address = nowhere.json: neither an address"),
        ({"kind": "connect", "address": "tcp://127.0.0.1:1"}, "no Dask scheduler answers there within 1 s"),
        ({"kind": "connect", "address": "moon://127.0.0.1:1"}, "no Dask scheduler answers there"),
        ({"kind": "slurm"}, "there is no `sbatch` here"),
    ],
)
def test_a_cluster_that_cannot_be_had_is_an_error_in_words(
    settings: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "_CONNECT_SECONDS", 1.0)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match=message), open_cluster(WorkerSettings.model_validate(settings)):
        pass


@pytest.mark.skipif(torch.cuda.is_available() and find_spec("dask_cuda") is not None, reason="there is a GPU")
def test_gpus_that_are_not_there() -> None:
    message = "torch sees no GPU here" if find_spec("dask_cuda") else r"needs dask-cuda: pip install 'morphcat\[cuda\]'"
    with pytest.raises(UserError, match=message), open_cluster(WorkerSettings(kind="cuda")):
        pass


def worker_folder(dask_worker: Any) -> str:
    """From where a worker imports before all else."""
    assert sys.path[0] == dask_worker.local_directory
    return str(dask_worker.local_directory)


_STRANGER = """
import sys
from distributed import Client
for address in sys.argv[1:]:
    try:
        Client(address, timeout=2)
    except (OSError, TypeError):
        print("refused")
"""


@pytest.mark.slow
def test_a_cluster_of_this_machine_is_for_its_owner_alone() -> None:
    """It listens on the loopback interface, for its own keys, and nobody else can put modules in its way."""
    with open_cluster(WorkerSettings(kind="local", count=1), 1) as client:
        whole = [psutil.Process(), *psutil.Process().children(recursive=True)]
        found = [one for process in whole for one in process.net_connections("inet")]
        listening = {one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN}
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:") and listening == {"127.0.0.1"}
        imported = [*sys.path, *client.run(worker_folder).values()]
        scratch = {path.partition("dask-scratch-space")[0] for path in imported if "dask-scratch-space" in path}
        assert len(scratch) == 1 and Path(scratch.pop()).stat().st_mode & 0o777 == 0o700
        strangers = [address, address.replace("tls", "tcp")]  # without keys; without TLS
        done = subprocess.run([sys.executable, "-c", _STRANGER, *strangers], capture_output=True, text=True)
        assert done.stdout.split() == ["refused", "refused"], done.stderr


def test_processes_that_do_not_start_are_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python itself hangs in them; they are ended."""
    site = tmp_path / "sitecustomize.py"
    site.write_text("import sys, time\nif 'spawn_main' in ' '.join(sys.orig_argv):\n    time.sleep(1000)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(cluster_lifecycle, "_END_SECONDS", 1.0)
    before = set(psutil.Process().children(recursive=True))
    settings = WorkerSettings(kind="local", count=2, patience_seconds=1)
    with pytest.raises(UserError, match=r"no worker of the scheduler .* within 1 s"), open_cluster(settings, 5):
        pass
    left = set(psutil.Process().children(recursive=True)) - before
    zombies = [child for child in left if child.status() == psutil.STATUS_ZOMBIE]
    workers = [child for child in left if child not in zombies and "--multiprocessing-fork" in child.cmdline()]
    _, alive = psutil.wait_procs([*zombies, *workers], timeout=20)  # which also reaps them
    assert not alive
