"""Every worker is asked before the first unit, and one that is not as the driver is named with what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from threading import Timer
from typing import Any

import pytest

from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import ClusterLost, UserError, WorkerMismatch
from pipeline.execution.clusters import open_cluster
from pipeline.execution.dask_executor import DaskExecutor
from pipeline.execution.environment import (
    WorkerRequirements,
    check_worker,
    inspect_environment,
    problems,
    requirements,
    warnings,
)
from pipeline.execution.executor import run_tasks
from pipeline.execution.preflight import CLOCK_SECONDS, ask_workers, clock_error, describe_reports, preflight
from tests.conftest import Small
from tests.pipeline.makers import write_cutouts
from tests.pipeline.strangers import address_of, keys_of, no_code, other_code, other_numpy, start
from tests.pipeline.survey_driver import run
from tests.pipeline.units import Sum, work

LOCAL = WorkerSettings(kind="local", count=2, threads=1)
AS_THEY_ARE = WorkerSettings(kind="connect")  # leaves the threads of torch alone, and so does not import it
FAKETIME = next(map(str, Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), "")
SEEN_FROM_HERE = Path("/proc/self/cwd")  # a path that is another folder for a process that was started elsewhere


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which driver and cluster work; other workers are started elsewhere."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("driver")
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Any]:
    with open_cluster(LOCAL) as client:
        yield client


@pytest.fixture(scope="module")
def keys(client: Any, folder: Path) -> dict[str, str]:
    return keys_of(client, folder)


@pytest.fixture(scope="module")
def standard(folder: Path) -> WorkerRequirements:
    """Of units that need no torch, which takes seconds to import in each worker."""
    for name in ("models", "catalog"):
        (folder / name).mkdir()
    (folder / "models" / "CHAMPION").write_text("m")
    return requirements(
        device="cpu",
        writes=SEEN_FROM_HERE / "catalog",
        reads=[SEEN_FROM_HERE / "models"],
        inputs=[SEEN_FROM_HERE / "incoming"],
        module="catalogs.tiles",
    )


@pytest.fixture
def strangers(client: Any) -> Iterator[list[Popen[str]]]:
    """Workers that a test starts; ended after it."""
    started: list[Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait(10)
    while len(client.nthreads()) > LOCAL.count:  # as soon as the scheduler sees their connections close
        time.sleep(0.05)


def test_workers_like_the_driver_pass(client: Any, standard: WorkerRequirements, folder: Path) -> None:
    reports = preflight(client, standard, expected=2)
    said = [report.environment for report in reports if report.environment]
    assert len({condition.pid for condition in said} | {os.getpid()}) == 3
    assert all(condition.versions == dict(standard.versions) for condition in said)
    assert [(condition.threads, condition.gpu, condition.troubles) for condition in said] == [(0, "", ())] * 2
    assert all(report.clock_error == 0 and not report.problems for report in reports)
    assert 0 < said[0].free_gb <= shutil.disk_usage(folder).total / 1e9
    assert list((folder / "catalog").iterdir()) == []


def test_workers_that_differ_are_named_and_no_other(
    client: Any, keys: dict[str, str], standard: WorkerRequirements, tmp_path: Path, strangers: list[Popen[str]]
) -> None:
    packages = other_numpy(other_code(tmp_path / "packages"))
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "catalog").mkdir(parents=True)
    (elsewhere / "models").mkdir()
    strangers.append(start(client.scheduler.address, "stranger", elsewhere, packages, **keys))
    strangers.append(start(client.scheduler.address, "bare", tmp_path / "bare", no_code(tmp_path / "nothing"), **keys))
    reports = {report.address: report for report in ask_workers(client, standard, expected=4)}
    assert len(reports) == 4 and sum(not report.problems for report in reports.values()) == 2

    stranger, bare = (reports[address_of(client, name)] for name in ("stranger", "bare"))
    empty, not_shared, version, code = stranger.problems
    assert "models is empty there" in empty
    assert f"numpy 1.0 there, {dict(standard.versions)['numpy']} here" in version and "constraints.txt" in version
    assert "other source code of morphcat there" in code
    assert "catalog is not shared with the driver" in not_shared and "mount" in not_shared
    assert "nothing is installed here" in bare.problems[0] and bare.environment is None

    with pytest.raises(UserError) as raised:
        preflight(client, standard)
    message = str(raised.value)
    assert message.startswith("2 of 4 workers cannot do this run:")
    assert [address in message for address in reports] == [bool(report.problems) for report in reports.values()]
    assert "and 1 more" in describe_reports(list(reports.values()), most=1)

    strangers[1].kill()
    strangers[0].send_signal(signal.SIGSTOP)
    asked = ask_workers(client, standard, seconds=1.5)
    (silent,) = (report for report in asked if report.address == stranger.address)
    assert silent.problems[0].startswith("no answer within 1.5 s") and silent.environment is None
    assert list(Path("catalog").iterdir()) == []


def test_a_worker_that_comes_later_does_no_unit(
    client: Any, keys: dict[str, str], standard: WorkerRequirements, tmp_path: Path, strangers: list[Popen[str]]
) -> None:
    preflight(client, standard)
    strangers.append(
        start(client.scheduler.address, "stranger", tmp_path / "elsewhere", other_numpy(tmp_path / "packages"), **keys)
    )
    client.wait_for_workers(3, timeout=30)
    jobs = [Sum(i, str(tmp_path)) for i in range(60)]
    with pytest.raises(WorkerMismatch, match=r"(?s)numpy 1.0 there.*running again goes on"):
        list(DaskExecutor(client, work, jobs, AS_THEY_ARE, standard).results())
    strangers.pop().kill()
    done = list(DaskExecutor(client, work, jobs[:10], AS_THEY_ARE, standard).results())
    assert sorted(o.receipt for o in done if o.receipt is not None) == [2 * i for i in range(10)]


def test_units_start_on_no_cluster_that_differs(standard: WorkerRequirements, tmp_path: Path) -> None:
    """What runs in this process is not asked: it sets the standard."""
    jobs, other = [Sum(0, str(tmp_path))], replace(standard, code="other", writes=str(tmp_path / "out"))
    with pytest.raises(UserError, match="1 of 1 workers cannot do this run"):
        list(run_tasks(work, jobs, LOCAL, other))
    assert jobs[0].tries() == 0
    assert [o.receipt for o in run_tasks(work, jobs, WorkerSettings(threads=1), other)] == [0]


def test_a_process_is_asked_once(standard: WorkerRequirements, tmp_path: Path) -> None:
    standard = replace(standard, code=inspect_environment(standard, at_start=False).code)
    check_worker(standard)
    other = replace(standard, writes=str(tmp_path / "not there"))
    for _ in range(2):
        with pytest.raises(WorkerMismatch, match="not there cannot be read there"):
            check_worker(other)
    (tmp_path / "not there").mkdir()
    check_worker(other)
    (tmp_path / "not there").rmdir()
    check_worker(other)


def test_what_is_asked_for(tmp_path: Path) -> None:
    """Folders in which something lies, once; of a file its folder. What units read in time may be gone later."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "sky").mkdir()
    for name in ("a.h5", "b.h5"):
        (tmp_path / "sky" / name).touch()
    inputs = [tmp_path / "sky" / "a.h5", tmp_path / "sky" / "b.h5", tmp_path / "empty", tmp_path / "none"]
    standard = requirements(device="cuda", writes=tmp_path, inputs=inputs, module="pipeline.nowhere")
    assert standard.inputs == (str(tmp_path / "sky"),) and standard.reads == ()
    shutil.rmtree(tmp_path / "sky")
    start, later = (inspect_environment(standard, at_start=at_start).troubles for at_start in (True, False))
    assert len(start) == len(later) + 1 and "sky cannot be read" in start[0]
    assert "pipeline.nowhere cannot be imported there (ModuleNotFoundError" in later[0]


@pytest.mark.parametrize(
    ("changes", "versions", "problem", "warning"),
    [
        ({}, {}, "", ""),
        ({"python": "3.99.1"}, {}, "Python 3.99.1 there", ""),
        ({"python": "same.99"}, {}, "", ".99 there"),
        ({}, {"torch": "0.4"}, "torch 0.4 there", ""),
        ({}, {"torch": "same+build"}, "", "+build there"),
        ({}, {"h5py": None}, "h5py missing there", ""),
        ({"free_gb": 0.5}, {}, "", "only 0.5 GB are free"),
        ({"threads": 9, "cores": 2}, {}, "", "9 torch threads on 2 cores"),
        ({"gpus": 4}, {}, "", "4 GPUs there are not used"),
        ({"gpus": 4, "gpu": "H100 x"}, {}, "", ""),
    ],
)
def test_what_differs_and_what_that_means(
    tmp_path: Path, changes: dict[str, Any], versions: dict[str, str | None], problem: str, warning: str
) -> None:
    standard = requirements(device="cuda" if "gpu" in changes else "cpu", writes=tmp_path, module="catalogs.schema")
    here = inspect_environment(replace(standard, device="cpu"), at_start=True)
    here = replace(here, code=standard.code, free_gb=100.0, threads=1, gpus=0)
    minor = standard.python.rpartition(".")[0]
    if "python" in changes:
        changes = {"python": changes["python"].replace("same", minor)}
    merged: dict[str, str] = dict(here.versions)
    for package, there in versions.items():
        installed = merged.pop(package).partition("+")[0]
        merged |= {package: there.replace("same", installed)} if there else {}
    condition = replace(here, versions=merged, **changes)
    for found, expected in ((problems(standard, condition), problem), (warnings(standard, condition), warning)):
        assert (len(found) == 1 and expected in found[0]) if expected else found == ()


def test_a_clock_is_as_wrong_as_the_round_trip_leaves_room_for() -> None:
    sent, received = 1000.0, 1010.0
    assert clock_error(sent, received, 1000.2, 1009.9) == 0
    assert clock_error(sent, received, 1009.0, 1009.5) == 0  # may have taken long to get there
    assert clock_error(sent, received, 1060.2, 1069.9) == pytest.approx(59.9)
    assert clock_error(sent, received, 940.2, 949.9) == pytest.approx(-59.8)


@pytest.mark.slow
@pytest.mark.skipif(not FAKETIME, reason="needs libfaketime")
def test_a_worker_with_a_wrong_clock(
    client: Any, keys: dict[str, str], standard: WorkerRequirements, strangers: list[Popen[str]]
) -> None:
    """Ahead: to one that is behind the keys of the cluster would not be valid yet."""
    wrong = {"LD_PRELOAD": FAKETIME, "FAKETIME": f"+{2 * CLOCK_SECONDS:.0f}s", "DONT_FAKE_MONOTONIC": "1"}
    strangers.append(start(client.scheduler.address, "stranger", Path.cwd(), **wrong, **keys))
    reports = {report.address: report for report in ask_workers(client, standard, expected=3)}
    found = reports.pop(address_of(client, "stranger"))
    assert found.clock_error == pytest.approx(2 * CLOCK_SECONDS, abs=2)
    assert [p for p in found.problems if "s ahead of the driver's: set both by the network" in p]
    assert not any(report.problems for report in reports.values())


@pytest.mark.slow
def test_a_scheduler_that_goes_away_meanwhile(
    standard: WorkerRequirements, tmp_path: Path, strangers: list[Popen[str]]
) -> None:
    file = tmp_path / "scheduler.json"
    module = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    scheduler = Popen([*module, "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)])
    strangers.append(scheduler)
    while not file.exists():
        time.sleep(0.05)
    strangers.append(start(json.loads(file.read_text())["address"], "stranger", tmp_path / "worker"))
    with open_cluster(WorkerSettings(kind="connect", address=str(file))) as client:
        strangers[1].send_signal(signal.SIGSTOP)
        Timer(0.5, scheduler.kill).start()
        with pytest.raises(ClusterLost, match="went away"):
            preflight(client, standard)


@pytest.mark.slow
def test_a_survey_asks_before_its_first_tile(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    workspace = small.elsewhere(tmp_path, "workers.kind=local", "workers.count=1", "workers.device=cuda")
    write_cutouts(workspace.incoming / "C", 3)
    with pytest.raises(UserError, match=r"no usable GPU there .*workers.device=cpu"):
        run(workspace)
    assert not list(workspace.catalog.rglob("*.parquet"))
