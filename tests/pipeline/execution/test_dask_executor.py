"""Units on workers that others have started: losses are made good, and whatever goes away ends the stage clearly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import ClusterLost, UserError, is_transient
from pipeline.execution import clusters
from pipeline.execution.clusters import current_workers, open_cluster
from pipeline.execution.executor import run_tasks
from tests.pipeline.dask_processes import Started, started
from tests.pipeline.units import Sum, work

COUNT = 24


def jobs_in(folder: Path, what: str = "slow") -> list[Sum]:
    folder.mkdir(exist_ok=True)
    return [Sum(i, str(folder), what) for i in range(COUNT)]


def on(cluster: Started, **more: Any) -> WorkerSettings:
    return WorkerSettings(kind="connect", address=str(cluster.file), **more)


def receipts(jobs: Sequence[Sum], settings: WorkerSettings, third: Callable[[], None]) -> dict[str, int | None]:
    """What the units gave; `third` is called after the third has ended."""
    done: dict[str, int | None] = {}
    for number, outcome in enumerate(run_tasks(work, jobs, settings), 1):
        assert outcome.name not in done and not outcome.error
        done[outcome.name] = outcome.receipt
        if number == 3:
            third()
    return done


def test_a_cluster_started_by_hand_loses_a_worker_and_then_its_scheduler(tmp_path: Path) -> None:
    expected = {f"job-{i}": 2 * i for i in range(COUNT)}
    with started(tmp_path) as cluster:
        jobs = jobs_in(tmp_path / "worker")
        assert receipts(jobs, on(cluster), lambda: os.kill(cluster.workers()[0].pid, signal.SIGKILL)) == expected
        assert cluster.scheduler.poll() is None  # it is not ours to end
        jobs, start = jobs_in(tmp_path / "scheduler"), time.monotonic()
        with pytest.raises(
            ClusterLost, match=r"scheduler went away: \d+ of 24 units are done and stay; run again"
        ) as lost:
            receipts(jobs, on(cluster, patience_seconds=1000), cluster.scheduler.kill)
        assert is_transient(lost.value)
        assert time.monotonic() - start < 60  # and not after the patience


@pytest.mark.slow
def test_workers_that_are_all_gone_end_the_stage_and_poison_takes_no_other_along(tmp_path: Path) -> None:
    """Also where the scheduler, which is not ours, tries a unit again by itself before it calls the worker killed."""
    with started(tmp_path) as cluster:
        jobs = jobs_in(tmp_path / "poison")
        jobs[4] = Sum(4, jobs[4].folder, "kill")
        outcomes = {o.name: o for o in run_tasks(work, jobs, on(cluster))}
        assert {n: o.receipt for n, o in outcomes.items()} == {
            f"job-{i}": 2 * i if i != 4 else None for i in range(COUNT)
        }
        assert "its worker died in each of 2 tries" in outcomes["job-4"].error

        def stop() -> None:
            workers = cluster.workers()
            for nanny in cluster.nannies:
                nanny.send_signal(signal.SIGSTOP)  # it starts no other
            for worker in workers:
                worker.kill()

        with pytest.raises(
            ClusterLost, match=r"no worker for \d+ s \(workers\.patience_seconds\): \d+ of 24 units are done"
        ):
            receipts(jobs_in(tmp_path / "gone"), on(cluster, patience_seconds=3), stop)
        with pytest.raises(UserError, match=r"no worker of the scheduler .* within 1 s .*start some with `dask worker"):
            receipts(jobs_in(tmp_path / "gone"), on(cluster, patience_seconds=1), lambda: None)


@pytest.mark.slow
def test_workers_that_retire_are_no_loss_and_a_silent_scheduler_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "_ANSWER_SECONDS", 3.0)
    with started(tmp_path, 3) as cluster:

        def retire() -> None:
            with open_cluster(on(cluster)) as client:
                client.retire_workers(workers=list(current_workers(client))[:2])

        jobs = jobs_in(tmp_path / "retired")
        assert receipts(jobs, on(cluster, max_worker_deaths=0), retire) == {f"job-{i}": 2 * i for i in range(COUNT)}
        with pytest.raises(ClusterLost, match="no answer of its scheduler for"):
            receipts(
                jobs_in(tmp_path / "silent"),
                on(cluster, patience_seconds=2),
                lambda: cluster.scheduler.send_signal(signal.SIGSTOP),
            )


@pytest.mark.slow
def test_only_workers_with_a_gpu_are_used_where_one_is_asked_for(tmp_path: Path) -> None:
    """The resource is what counts: it is promised by who starts the worker."""
    refusal = pytest.raises(UserError, match=r"none of the 1 workers of the scheduler .* offers the resource GPU")
    with started(tmp_path, 1) as cluster, refusal:
        list(run_tasks(work, jobs_in(tmp_path / "none"), on(cluster, device="cuda", patience_seconds=8)))
    other = tmp_path / "other"
    other.mkdir()
    with started(other, 2, "--resources", "GPU=1") as cluster:
        assert len(receipts(jobs_in(tmp_path / "some"), on(cluster, device="cuda"), lambda: None)) == COUNT


@pytest.mark.slow
def test_workers_that_die_with_every_unit_stop_the_run(tmp_path: Path) -> None:
    settings = WorkerSettings(kind="local", count=2, threads=1, max_consecutive_failures=2)
    with pytest.raises(UserError, match=r"units in a row lost their worker.* 0 of 24 are done and stay"):
        list(run_tasks(work, jobs_in(tmp_path, "kill"), settings))


@pytest.mark.slow
def test_a_cluster_grows_with_the_work(tmp_path: Path) -> None:
    settings = WorkerSettings(kind="local", count=1, adaptive_max=3, threads=1)
    jobs = [Sum(i, str(tmp_path), "long") for i in range(16)]
    outcomes = list(run_tasks(work, jobs, settings))
    assert sorted(o.receipt for o in outcomes if o.receipt is not None) == [2 * i for i in range(16)]
    assert 2 <= len({o.worker for o in outcomes}) <= 3
