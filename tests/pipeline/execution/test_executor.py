"""Where units run: the same outcomes everywhere, and one failure is one failure."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import UserError
from pipeline.execution import dask_executor, task
from pipeline.execution.dask_executor import WINDOW
from pipeline.execution.executor import run_tasks
from pipeline.execution.task import TaskResult
from tests.pipeline.units import Sum, threads, work

LOCAL = WorkerSettings(kind="local", count=2, threads=1, max_worker_deaths=2)
INLINE = WorkerSettings(kind="inline", threads=1)


def outcomes(jobs: Sequence[Sum], settings: WorkerSettings) -> dict[str, TaskResult[int]]:
    done = list(run_tasks(work, jobs, settings))
    assert len({o.name for o in done}) == len(done) == len(jobs)
    return {o.name: o for o in done}


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "_PAUSE", 0.01)


def sums(folder: Path, count: int) -> list[Sum]:
    return [Sum(i, str(folder)) for i in range(count)]


def test_inline_and_a_cluster_give_the_same_outcomes(tmp_path: Path) -> None:
    """More jobs than the window holds, one that has a bug, one that the disk fails for good, one only at first."""
    results = {}
    for settings in (INLINE, LOCAL):
        folder = tmp_path / settings.kind
        folder.mkdir()
        jobs = sums(folder, 5 * WINDOW * LOCAL.count)
        jobs[3] = Sum(3, str(folder), "bug")
        jobs[5] = Sum(5, str(folder), "disk", fails=2)
        jobs[8] = Sum(8, str(folder), "disk", fails=99)
        done = outcomes(jobs, settings)
        assert "ZeroDivisionError: one divided by nothing" in done["job-3"].error
        assert "the disk hiccups" in done["job-8"].error
        assert [jobs[i].tries() for i in (0, 3, 5, 8)] == [1, 1, 3, 3]
        results[settings.kind] = {name: o.receipt for name, o in done.items()}
    assert results["inline"] == results["local"]
    expected = {f"job-{i}": None if i in (3, 8) else 2 * i for i in range(5 * WINDOW * LOCAL.count)}
    assert results["inline"] == expected


def test_only_failures_of_the_system_are_tried_again(tmp_path: Path) -> None:
    jobs = [Sum(0, str(tmp_path), "gone"), Sum(1, str(tmp_path), "disk", fails=1)]
    done = outcomes(jobs, INLINE)
    assert done["job-0"].receipt is None and jobs[0].tries() == 1
    assert done["job-1"].receipt == 2 and jobs[1].tries() == 2
    never = WorkerSettings(retries=0, threads=1)
    assert outcomes([Sum(2, str(tmp_path), "disk", fails=1)], never)["job-2"].receipt is None


@pytest.mark.slow
def test_units_that_kill_their_workers_take_no_other_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that wait on a worker as it dies are innocent; one that is stuck is ended with its worker."""
    monkeypatch.setattr(dask_executor, "_FETCH_SECONDS", 2.0)
    bad = {2: "kill", 5: "kill", 7: "stuck"}
    jobs = [Sum(i, str(tmp_path), bad.get(i, "slow")) for i in range(12)]
    settings = LOCAL.model_copy(update={"max_worker_deaths": 1, "unit_seconds": 4})
    done = outcomes(jobs, settings)
    assert {o.name: o.receipt for o in done.values() if o.receipt is not None} == {
        f"job-{i}": 2 * i for i in range(12) if i not in bad
    }
    for i in bad:
        assert 1 <= jobs[i].tries() <= 1 + settings.max_worker_deaths
    assert "its worker died in each of 1 tries with nothing beside it" in done["job-2"].error
    assert "ended after" in done["job-7"].error and "workers.unit_seconds = 4" in done["job-7"].error


@pytest.mark.slow
def test_a_result_that_dies_with_its_worker_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished unit's result lies on its worker until it is fetched."""
    monkeypatch.setattr(dask_executor, "_FETCH_SECONDS", 4.0)
    dying = {1, 4}
    jobs = [Sum(i, str(tmp_path), "last words" if i in dying else "slow") for i in range(8)]
    done = outcomes(jobs, LOCAL)
    assert set(done) == {job.name for job in jobs}
    assert all(done[f"job-{i}"].receipt == 2 * i for i in range(8) if i not in dying)
    for i in dying:  # fetched in time, or named as lost
        assert done[f"job-{i}"].receipt == 2 * i or done[f"job-{i}"].error


@pytest.mark.slow
def test_workers_share_the_cores(tmp_path: Path) -> None:
    done = list(run_tasks(threads, sums(tmp_path, 4), LOCAL))
    assert {o.receipt[1] for o in done if o.receipt} == {1} and len(done) == 4
    assert os.getpid() not in {o.receipt[0] for o in done if o.receipt}
    assert WorkerSettings(kind="local", count=10**6).torch_threads() == 1
    assert WorkerSettings(kind="inline", count=10**6).torch_threads() == len(os.sched_getaffinity(0))
    assert WorkerSettings(kind="local", count=3, threads=5).torch_threads() == 5


def test_outcomes_come_as_they_end_and_an_early_stop_leaves_nothing_behind(tmp_path: Path) -> None:
    running = run_tasks(work, sums(tmp_path, 200), INLINE)
    assert next(running).receipt == 0
    running.close()
    assert len(list(tmp_path.iterdir())) == 1
    started = time.monotonic()
    cluster = run_tasks(work, [Sum(i, str(tmp_path), "slow") for i in range(1000, 1200)], LOCAL)
    assert next(cluster).receipt is not None
    cluster.close()
    assert time.monotonic() - started < 30  # 200 jobs of 0.3 s would take as long


def test_no_jobs_start_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    assert list(run_tasks(work, [], LOCAL)) == []
    assert time.monotonic() - started < 0.5


def test_a_full_disk_stops_the_run_and_single_failures_do_not(tmp_path: Path) -> None:
    settings = INLINE.model_copy(update={"retries": 0, "max_consecutive_failures": 3})
    jobs = [Sum(i, str(tmp_path), "disk" if i in {0, 1} or i > 3 else "", fails=99) for i in range(10)]
    done = []
    with pytest.raises(UserError, match=r"last 3 units all failed .* job-6: .*the disk hiccups\. 7 of 10 units have"):
        for outcome in run_tasks(work, jobs, settings):
            done.append(outcome)
    assert [o.receipt for o in done] == [None, None, 4, 6, None, None, None]
    assert [o.transient for o in done] == [True, True, False, False, True, True, True]
    never = settings.model_copy(update={"max_consecutive_failures": 0})
    assert len(list(run_tasks(work, jobs, never))) == 10
