"""Clusters of each kind: what they need, what they are told, and that none is waited for without end."""

from __future__ import annotations

import os
import signal
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
from pipeline.execution import clusters
from pipeline.execution.clusters import open_cluster, slurm_script
from pipeline.execution.executor import run_tasks
from tests.paths import ROOT
from tests.pipeline.dask_processes import wait_until
from tests.pipeline.units import Sum, work

GPU_NODE = WorkerSettings(
    kind="slurm",
    slurm_queue="gpu",
    slurm_account="sky",
    slurm_cpus=8,
    slurm_memory="64GB",
    slurm_directives=("--qos=high",),
    slurm_prologue=("module load cuda",),
    slurm_interface="lo",
    slurm_python="/opt/morphcat/bin/python",
)


def test_the_script_of_a_slurm_job() -> None:
    """One process, one thread for units, the GPU as resource, and an end some minutes before the walltime."""
    children = len(psutil.Process().children(recursive=True))
    lines = slurm_script(GPU_NODE).splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    directives = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    asked = {"-p gpu", "-A sky", "-n 1", "--cpus-per-task=8", "--mem=60G", "-t 04:00:00", "--gres=gpu:1", "--qos=high"}
    assert asked <= directives
    assert "mktemp -d" in lines[-7] and lines[-6].startswith("trap 'rm -rf")  # nobody else can write where it imports
    prologue = lines[-5:-1]
    assert prologue[0] == "export OMP_NUM_THREADS=8" and prologue[-1] == "module load cuda"
    command = lines[-1].split()
    assert command[:4] == ["/opt/morphcat/bin/python", "-m", "distributed.cli.dask_worker", "tls://SCHEDULER:PORT"]
    options = {"--nthreads": "1", "--resources": "GPU=1", "--lifetime": "13800s", "--lifetime-stagger": "240s"}
    options |= {"--interface": "lo", "--tls-key": "~/WORKER_KEY"}
    for option, value in options.items():
        assert command[command.index(option) + 1] == value
    assert "--nanny" in command and "--no-dashboard" in command
    assert len(psutil.Process().children(recursive=True)) == children  # nothing was started


def test_the_script_without_a_gpu_and_for_a_day() -> None:
    settings = WorkerSettings(kind="slurm", slurm_gres="", slurm_walltime="1-00:00:00", threads=3)
    script = slurm_script(settings)
    assert "GPU" not in script and "--gres" not in script and " -p " not in script and " -A " not in script
    assert "--lifetime 82800s" in script and "export OMP_NUM_THREADS=3" in script
    assert settings.walltime_seconds() == 86400


def test_settings_say_what_can_not_be(tmp_path: Path) -> None:
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
def test_a_cluster_that_can_not_be_had_is_an_error_in_words(
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
    monkeypatch.setattr(clusters, "_END_SECONDS", 1.0)
    before = set(psutil.Process().children(recursive=True))
    settings = WorkerSettings(kind="local", count=2, patience_seconds=1)
    with pytest.raises(UserError, match=r"no worker of the scheduler .* within 1 s"), open_cluster(settings, 5):
        pass
    left = set(psutil.Process().children(recursive=True)) - before
    zombies = [child for child in left if child.status() == psutil.STATUS_ZOMBIE]
    workers = [child for child in left if child not in zombies and "--multiprocessing-fork" in child.cmdline()]
    _, alive = psutil.wait_procs([*zombies, *workers], timeout=20)  # which also reaps them
    assert not alive


# A queue without a queue: jobs start at once, on this machine; the script is run as SLURM would.
_SBATCH = """#!/bin/sh
case "$1" in --*) exit 1;; esac
grep -q -- '-p closed' "$1" && { echo "sbatch: error: partition is closed" >&2; exit 1; }
cp "$1" "$QUEUE/$$.sh"
setsid sh "$QUEUE/$$.sh" > "$QUEUE/$$.log" 2>&1 &
echo "Submitted batch job $!"
"""
_SCANCEL = """#!/bin/sh
kill -TERM -- "-$1"
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the scripts of submitted jobs lie."""
    for name, text in (("sbatch", _SBATCH), ("scancel", _SCANCEL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    queue = tmp_path / "queue"
    queue.mkdir()
    monkeypatch.setenv("QUEUE", str(queue))
    return queue


@pytest.mark.slow
def test_units_run_in_jobs_of_slurm_over_tls_and_a_job_that_dies_is_followed_by_another(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "_SLURM_INTERVAL", "1s")
    monkeypatch.setattr(clusters, "_LOST_WORKER", "1s")
    small = {"slurm_interface": "lo", "slurm_memory": "1GB", "slurm_gres": "", "slurm_keys": str(tmp_path)}
    settings = WorkerSettings(kind="slurm", count=2, patience_seconds=60, max_worker_deaths=1, **small)
    jobs = [Sum(i, str(tmp_path), "slow") for i in range(60)]
    receipts = []
    for outcome in run_tasks(work, jobs, settings):
        receipts.append(outcome.receipt)
        if len(receipts) == 3:
            (one, *_) = (each for each in psutil.process_iter(["cmdline"]) if _is_job(each, queue))
            os.killpg(one.pid, signal.SIGKILL)
    assert sorted(receipts) == [2 * i for i in range(60)]
    scripts = [path.read_text() for path in queue.glob("*.sh")]
    assert len(scripts) == 3 and all(" tls://127.0.0.1:" in script for script in scripts)
    wait_until(lambda: not any(_is_job(each, queue) for each in psutil.process_iter(["cmdline"])), 30)
    assert not list(tmp_path.glob(".dask-jobqueue*"))  # no key is left
    closed = settings.model_copy(update={"slurm_queue": "closed"})
    with pytest.raises(UserError, match=r"SLURM did not take a job[\s\S]*partition is closed"), open_cluster(closed):
        pass


def _is_job(process: psutil.Process, queue: Path) -> bool:
    """Whether a process is the shell of a job."""
    command = process.info["cmdline"] or []
    return len(command) == 2 and command[0] == "sh" and command[1].startswith(str(queue))
