"""The survey flow on a real Prefect server: what it records, and how it ends when tiles fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from flows.survey import TilesFailed, survey
from models.artifacts.registry import champion
from tests.flows.conftest import make_workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Path:
    return make_workspace(tmp_path_factory.mktemp("flow") / "W", tiles=2, galaxies=4, epochs=1)


def test_the_run_and_its_totals_are_recorded(workspace: Path) -> None:
    totals = survey(str(workspace))
    assert totals["classified"] == 8
    with get_client(sync_client=True) as client:
        run = max(
            (
                r
                for r in client.read_flow_runs()
                if r.parameters.get("workspace") == str(workspace) and "model" in r.parameters
            ),
            key=lambda r: r.created,
        )
        assert run.state_type == "COMPLETED"
        names = {t.name.rsplit("-", 1)[0] for t in client.read_task_runs() if t.flow_run_id == run.id}
        assert names == {"discover", "plan", "classify", "release", "drift", "summarise"}
        artifacts = [a for a in client.read_artifacts() if a.flow_run_id == run.id]
    (kept,) = [a for a in artifacts if a.key == "survey-totals"]
    assert "| classified | 8 |" in str(kept.data)
    (progress,) = [a for a in artifacts if a.type == "progress"]
    assert (progress.description, progress.data) == ("classifying sky tiles", 100.0)
    report = workspace / "reports" / f"survey-{totals['run_id']}.json"
    log = workspace / "reports" / "logs" / f"survey-{totals['run_id']}.jsonl"
    release = workspace / "catalog" / "releases" / totals["release"]
    (files,) = [a for a in artifacts if a.key == "survey-files"]
    assert all(path.exists() and f"[{path}]({path.as_uri()})" in str(files.data) for path in (report, log, release))
    assert log.read_text().count('"outcome": "done"') >= 2
    assert [json.loads(str(a.data)) for a in artifacts if a.key == "failed-tiles"] == [[]]
    (drift,) = [a for a in artifacts if a.key == "drift"]
    assert "The first release" in str(drift.data) and totals["drift"] == []
    assert (workspace / "reports" / f"drift-{totals['release']}.md").read_text() == drift.data


def test_a_failed_tile_fails_the_flow_and_keeps_the_rest(workspace: Path) -> None:
    """The place of one tile's file is taken by a folder, so that its commit cannot succeed."""
    survey(str(workspace))
    tiles = sorted((workspace / "catalog" / "tiles").rglob("*.parquet"))
    tiles[0].unlink()
    tiles[0].mkdir()
    try:
        with pytest.raises(TilesFailed) as failure:
            survey(str(workspace))
    finally:
        tiles[0].rmdir()
    assert "1 of 2 sky tiles failed" in str(failure.value)
    (error,) = failure.value.summary.failed.values()
    assert "IsADirectoryError" in error
    assert failure.value.summary.classified == 4
    with get_client(sync_client=True) as client:
        tables = [a for a in client.read_artifacts() if a.key == "failed-tiles"]
    (row,) = json.loads(str(max(tables, key=lambda table: table.created).data))
    assert row["tile"] == tiles[0].stem and row["error"] == error.strip().splitlines()[-1]
    assert survey(str(workspace))["classified"] == 8


def test_the_champion_classifies_unless_a_model_is_named(workspace: Path) -> None:
    assert survey(str(workspace))["model_id"] == champion(workspace / "models")
