"""What is kept of a run: with what it was made before it starts, how it went at its end, also of one that was lost."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from catalogs.releases.registry import layout_of
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.runs.records import record_run, run_records
from pipeline.survey.plan import start_run
from pipeline.survey.publish import build_release
from pipeline.survey.run import already_done
from pipeline.tiles.file_names import TileKind
from pipeline.tiles.sky_tile import SkyTile
from tests.catalogs.conftest import MODEL, commit_tile
from tests.conftest import Small
from tests.pipeline.makers import write_cutouts
from tests.pipeline.survey_driver import run

STARTED = datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)
MADE: dict[str, Any] = {"started": STARTED, "model_id": MODEL, "device": "cpu"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(tmp_path, ["release.exports=false"])


A, B, C = (SkyTile(TileKind.CUTOUTS, f"/sky/{name}", f"sky/{name}", 0, 0, 4, "f" * 16) for name in "abc")


def kept(workspace: Workspace, run_id: str = "run-1") -> dict[str, Any]:
    return json.loads((workspace.reports / "runs" / f"{run_id}.json").read_text())


def test_a_run_is_recorded_before_its_first_commit_and_completed_after_its_last(workspace: Workspace) -> None:
    failed: dict[str, str] = {}
    with record_run(workspace, "run-1", [A, B, C], failed, **MADE):
        before = kept(workspace)
        commit_tile(workspace.catalog, A.tile_id, [1, 2, 3], unclassified=[2], reused=1)
        commit_tile(workspace.catalog, B.tile_id, [4], quarantined=2)
        commit_tile(workspace.catalog, C.tile_id, [5, 6], run_id="run-0")  # as it was before: this run could not do it
        failed[C.tile_id] = "no disk"
    assert before["settings"]["release"]["exports"] is False and before["versions"]["pyarrow"]
    assert before["settings_digest"] == workspace.settings.digest() and "seconds" not in before
    assert (before["kind"], before["workers"], before["device"]) == ("inline", 1, "cpu")
    record = run_records(workspace)["run-1"]
    assert (record.tiles_done, record.tiles_failed) == (2, 1)
    assert (record.classified, record.unclassified, record.quarantined, record.reused) == (3, 1, 2, 1)
    assert record.started == "2026-11-24T01:02:03+00:00" and record.seconds is not None and record.seconds > 0
    assert record.objects_per_second == 4 / record.seconds


def test_a_run_that_lost_its_cluster_adds_up_both_times(workspace: Workspace) -> None:
    with (
        pytest.raises(ConnectionError),
        record_run(workspace, "run-1", [A, B], [B.tile_id], **MADE),
    ):
        commit_tile(workspace.catalog, A.tile_id, [1, 2])
        raise ConnectionError("the scheduler is gone")
    first = run_records(workspace)["run-1"]
    with record_run(workspace, "run-1", [B], [], **MADE):
        commit_tile(workspace.catalog, B.tile_id, [3])
    both = run_records(workspace)["run-1"]
    assert (first.tiles_done, first.tiles_failed, first.classified) == (1, 1, 2)
    assert (both.tiles_done, both.tiles_failed, both.classified) == (2, 0, 3)
    assert first.seconds is not None and both.seconds is not None and both.seconds > first.seconds


def test_what_cannot_be_read_or_written_costs_its_record_alone(workspace: Workspace) -> None:
    commit_tile(workspace.catalog, A.tile_id, [1])
    with record_run(workspace, "run-1", [], [], **MADE):
        assert not workspace.reports.exists()  # nothing to do, nothing to keep
    folder = workspace.reports / "runs"
    with record_run(workspace, "run-1", [A], [], **MADE):
        (folder / "run-1.json").unlink()
        (folder / "run-1.json").mkdir()
    for name, text in (("run-2", "{"), ("run-3", '{"seconds": "long"}'), ("run-4", '{"git_revision": "abc"}')):
        (folder / f"{name}.json").write_text(text)
    assert set(run_records(workspace)) == {"run-4"}  # as an older version wrote it


def test_a_survey_tells_its_release_how_it_went(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path, "release.exports=false")
    write_cutouts(workspace.incoming / "C", 3)
    total = run(workspace)
    assert total.release is not None
    runs = layout_of(workspace.catalog, total.release).provenance / "runs.parquet"
    (row,) = pq.read_table(runs).to_pylist()
    assert (row["run_id"], row["model_id"], row["kind"]) == (total.run_id, small.card.model_id, "inline")
    assert (row["tiles"], row["tiles_done"], row["tiles_failed"], row["classified"]) == (1, 1, 0, 3)
    assert row["objects_per_second"] == 3 / row["seconds"] and row["started"].startswith("20")
    (workspace.reports / "runs" / f"{total.run_id}.json").unlink()
    again = start_run(workspace, None)
    assert already_done(workspace, again, []) is not None  # what is kept of runs is no reason for a release
    release = build_release(workspace, small.card.model_id)
    assert release is not None and release.release == total.release
