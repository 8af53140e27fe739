"""A group works, fails and ends as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import UserError
from pipeline.execution import process_group
from pipeline.execution.clusters import local_cluster
from pipeline.execution.process_group import Rank, rank_from_environment, run_process_group
from tests.pipeline.units import Meeting, meet

INLINE = WorkerSettings(kind="inline", max_worker_deaths=0)
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}


def ended(job: Meeting) -> bool:
    """Whether no process of any attempt is left, nor any other worker."""
    alive = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    children = [" ".join(child.cmdline()) for child in alive]
    pids = [pid for attempt in job.pids() for pid in attempt]
    return not any("spawn_main" in child for child in children) and not any(map(psutil.pid_exists, pids))


def test_members_meet_in_processes_of_their_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job, looks = Meeting(str(tmp_path)), []
    receipt = run_process_group(meet, job, INLINE, world=2, while_waiting=lambda: looks.append(len(job.pids()[0])))
    (pids,) = job.pids()
    assert receipt["total"] == 3
    assert receipt["pid"] == pids[0] and len({*pids, os.getpid()}) == 3
    assert receipt["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
    seat = receipt["seat"]
    assert isinstance(seat, Rank) and (seat.rank, seat.world, seat.address) == (0, 2, "127.0.0.1") and seat.port > 0
    assert looks[-1] == 2  # it looked once more when all had ended
    assert ended(job)
    assert capfd.readouterr() == ("", "")


def test_a_world_of_one_is_this_process(tmp_path: Path) -> None:
    job, looks = Meeting(str(tmp_path)), []
    threads = torch.get_num_threads()
    receipt = run_process_group(
        meet, job, INLINE.model_copy(update={"threads": 1}), world=1, while_waiting=lambda: looks.append(1)
    )
    torch.set_num_threads(threads)
    assert receipt["pid"] == os.getpid() and receipt["total"] == 1 and looks == [1]
    with pytest.raises(UserError, match="0 processes are asked for"):
        run_process_group(meet, job, INLINE, world=0)


@pytest.mark.slow
def test_the_group_starts_again_when_a_member_dies_or_the_port_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_group, "_GRACE", 0.5)
    job = Meeting(str(tmp_path), ("port taken", "kill", ""))
    receipt = run_process_group(meet, job, INLINE.model_copy(update={"max_worker_deaths": 2}), world=2)
    assert receipt["total"] == 3
    assert [len(set(pids)) for pids in job.pids()] == [2, 2, 2]
    assert ended(job)


@pytest.mark.slow
def test_a_group_that_always_loses_a_member_ends_with_one_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a member's worker dies after it has finished, while the others still wait for it."""
    job = Meeting(str(tmp_path), ("kill", "done early", ""))
    with pytest.raises(UserError, match="lost one in each of 2 attempts, at last: a process died after it had"):
        run_process_group(meet, job, INLINE.model_copy(update={"max_worker_deaths": 1}), world=2)
    assert "attempt 1 of 2 ended early: the process of rank 1 died" in caplog.text
    assert [len(pids) for pids in job.pids()] == [2, 2, 0]
    assert ended(job)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("how", ["refuse", pytest.param("refuse and leave", marks=pytest.mark.slow)])
def test_a_members_own_error_is_raised_and_not_the_broken_connection_of_another(how: str, tmp_path: Path) -> None:
    job = Meeting(str(tmp_path), (how, ""))
    with pytest.raises(UserError, match=r"^the second member refuses$"):
        run_process_group(meet, job, INLINE.model_copy(update={"max_worker_deaths": 1}), world=2)
    assert len(job.pids()[1]) == 0  # no second attempt
    assert ended(job)


def test_an_interrupt_ends_all_processes(tmp_path: Path) -> None:
    job = Meeting(str(tmp_path), ("stay",))

    def interrupt() -> None:
        if len(job.pids()[0]) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_process_group(meet, job, INLINE, world=2, while_waiting=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended(job)


def test_missing_workers_are_an_error_and_no_endless_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "_START_SECONDS", 0.2)
    with local_cluster(WorkerSettings(kind="local", count=1), 1, limit_memory=False) as client:
        limits = client.run(lambda dask_worker: dask_worker.memory_manager.memory_limit)
        assert list(limits.values()) == [None]
        with pytest.raises(UserError, match="2 workers are needed at the same time, 1 came up"):
            process_group._ranks(client, Meeting(""), 2)
        nobody = "tcp://127.0.0.1:1"
        never = client.submit(max, 1, 2, workers=[nobody], allow_other_workers=False)
        with pytest.raises(process_group._Lost, match="died before it began"):
            process_group._receipt(client, [never], {nobody}, None)


def test_of_several_errors_the_one_at_the_root_tells() -> None:
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:23961")
    assert (
        process_group._cause(broken)
        == process_group._cause(ConnectionResetError())
        == process_group._FailureKind.CONNECTION
    )
    assert process_group._cause(torch.distributed.DistStoreError("timeout")) == process_group._FailureKind.CONNECTION
    assert process_group._cause(torch.OutOfMemoryError("no memory")) == process_group._FailureKind.OWN
    assert process_group._cause(RuntimeError("shapes cannot be multiplied")) == process_group._FailureKind.UNCLEAR
    assert (
        process_group._FailureKind.OWN
        < process_group._FailureKind.DEATH
        < process_group._FailureKind.UNCLEAR
        < process_group._FailureKind.CONNECTION
    )


def test_the_seat_that_torchrun_gives() -> None:
    assert rank_from_environment({}) is None
    assert rank_from_environment(TORCHRUN) == Rank(rank=3, world=4, address="node7", port=29500, local_rank=1)
    assert rank_from_environment({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) is not None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"MASTER_PORT": ""}, "without MASTER_PORT"),
        ({"RANK": "", "LOCAL_RANK": ""}, "without RANK, LOCAL_RANK"),
        ({"RANK": "first"}, "RANK = 'first' in the environment: expected a whole number from 0 to 3"),
        ({"RANK": "4"}, "RANK = '4'"),
        ({"RANK": "-1"}, "RANK = '-1'"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK = '4'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = '0'"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE = '²'"),
        ({"MASTER_PORT": "65536"}, "from 1 to 65535"),
    ],
)
def test_a_seat_that_cannot_be_is_an_error(changed: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rank_from_environment({**TORCHRUN, **changed})


@pytest.mark.slow
def test_processes_of_torchrun_meet(tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "tests.pipeline.units"]
    environment = {**os.environ, "FOLDER": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    (pids,) = Meeting(str(tmp_path)).pids()
    assert len(set(pids)) == 2
