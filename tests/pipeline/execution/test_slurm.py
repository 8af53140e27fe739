"""Workers as jobs of SLURM: the script of a job, and a queue that runs jobs on this machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import UserError
from pipeline.execution import cluster_lifecycle, slurm
from pipeline.execution.clusters import open_cluster
from pipeline.execution.executor import run_tasks
from pipeline.execution.slurm import slurm_script
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
    monkeypatch.setattr(slurm, "_INTERVAL", "1s")
    monkeypatch.setattr(cluster_lifecycle, "_LOST_WORKER", "1s")
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
