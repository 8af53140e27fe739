"""Deployments of a workspace, against a real server: schedules, the event of labels, what a killed service leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from flows.cli.main import main
from pipeline.config.workspace import Workspace, open_workspace
from tests.paths import ROOT

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(
        tmp_path / "W", ["serve.survey=30 3 * * *", "serve.benchmark=", "serve.timezone=Europe/Berlin"]
    )


@pytest.fixture
def api(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of the server, in the environment as people set it."""
    from prefect.settings import PREFECT_API_URL

    url = str(PREFECT_API_URL.value())
    monkeypatch.setenv("PREFECT_API_URL", url)
    yield url


def registered(workspace: Workspace) -> dict[str, UUID]:
    """The ids of the workspace's deployments by flow, registered as the service does it."""
    from flows.service.deployments import deployments

    return {one.flow_name: one.apply() for one in deployments(workspace, ["workers.count=1"])}


def test_schedules_and_parameters_are_those_of_the_settings(workspace: Workspace, api: str) -> None:
    from prefect.client.orchestration import get_client

    ids = registered(workspace)
    with get_client(sync_client=True) as client:
        found = {name: client.read_deployment(one) for name, one in ids.items()}
    assert set(found) == {"survey", "retrain", "benchmark", "release"}
    assert len({one.name for one in found.values()}) == 1 and next(iter(found.values())).name.startswith("W-")
    schedule = found["survey"].schedules[0].schedule
    assert (schedule.cron, schedule.timezone) == ("30 3 * * *", "Europe/Berlin")
    assert not found["benchmark"].schedules and not found["release"].schedules
    given = {"workspace": str(workspace.root), "overrides": ["workers.count=1"]}
    assert found["survey"].parameters == {**given, "scheduled": True}
    assert found["release"].parameters == given
    assert registered(workspace) == ids  # again: the same deployments, none twice


def test_labels_start_a_retraining_by_their_event(workspace: Workspace, api: str, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    from flows.runtime.events import emit_labels_changed

    retrain = registered(workspace)["retrain"]
    assert emit_labels_changed(tmp_path / "another", "0001-other", 1)
    assert emit_labels_changed(workspace.root, "0007-abc", 3)
    end = time.monotonic() + 90
    runs: list = []
    with get_client(sync_client=True) as client:
        while not runs and time.monotonic() < end:
            time.sleep(0.3)
            runs = [
                run
                for run in client.read_flow_runs(
                    deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[retrain]))
                )
                if not run.auto_scheduled
            ]
    assert len(runs) == 1  # the other workspace's labels start nothing here
    assert runs[0].parameters["scheduled"] and runs[0].parameters["workspace"] == str(workspace.root)
    assert runs[0].parameters["event"].startswith("event ") and "labels 0007-abc" in runs[0].parameters["event"]


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/api"])  # none, and one where nobody listens
def test_without_a_server_no_event_is_said_to_be_taken(tmp_path: Path, url: str) -> None:
    """In a process of its own: here the server of the tests is known."""
    code = f"""
from pathlib import Path
from flows.runtime.events import emit_labels_changed
print(emit_labels_changed(Path({str(tmp_path)!r}), "0001-abc", 1))
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**plain, "HOME": str(tmp_path), **({"PREFECT_API_URL": url} if url else {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
    assert ("did not take the event" in done.stderr) == bool(url)


def test_what_a_killed_service_left_behind_is_put_right(workspace: Workspace, api: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Running, Scheduled

    from flows.service.crashed_runs import check_now, mark_crashed_runs

    ids = registered(workspace)
    both = [ids["survey"], ids["retrain"]]
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        running = client.create_flow_run_from_deployment(ids["survey"])
        client.set_flow_run_state(running.id, Running(), force=True)
        late = client.create_flow_run_from_deployment(
            ids["survey"], state=Scheduled(scheduled_time=now - timedelta(hours=5))
        )
        coming = client.create_flow_run_from_deployment(
            ids["survey"], state=Scheduled(scheduled_time=now + timedelta(hours=5))
        )
        foreign = client.create_flow_run_from_deployment(ids["release"])
        client.set_flow_run_state(foreign.id, Running(), force=True)
        assert mark_crashed_runs(both) == [
            "1 runs of a service that was killed, marked as crashed",
            "1 missed runs, cancelled",
        ]
        states = [client.read_flow_run(one.id).state_name for one in (running, late, coming, foreign)]
        assert states == ["Crashed", "Cancelled", "Scheduled", "Running"]
        assert mark_crashed_runs(both) == []
        check_now(both)
        assert mark_crashed_runs(both) == ["2 missed runs, cancelled"]


def test_a_work_pool_gets_the_same_deployments(
    workspace: Workspace, api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.client.orchestration import get_client

    assert main(["--workspace", str(workspace.root), "--set", "serve.survey=0 4 * * *", "deploy", "night-workers"]) == 0
    names = capsys.readouterr().out.split()
    assert [name.partition("/")[0] for name in names] == ["survey", "retrain", "benchmark", "release"]
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name(names[0])
        assert client.read_work_pool("night-workers").type == "process"
    assert found.work_pool_name == "night-workers" and found.entrypoint == "flows.survey.survey"
    assert found.parameters["overrides"] == ["serve.survey=0 4 * * *"]


def test_deployments_for_workers_need_a_server_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert main(["--workspace", str(tmp_path / "W"), "deploy", "pool"]) == 1
    assert "PREFECT_API_URL" in capsys.readouterr().err
