"""How a workspace stands, by its files alone."""

from __future__ import annotations

from pathlib import Path

from catalogs.labels.checks import ResolvedLabel
from catalogs.labels.store import add
from catalogs.tiles import tile_path
from pipeline.config.workspace import open_workspace
from pipeline.inspection.status import status
from pipeline.runs.locks import exclusive, survey_lock
from pipeline.survey.plan import find_inputs
from tests.conftest import Small
from tests.pipeline import survey_driver
from tests.pipeline.makers import galaxy, write_cutout


def test_an_empty_folder_has_nothing_and_no_alarm(tmp_path: Path) -> None:
    now = status(open_workspace(tmp_path / "W"))
    assert (now.champion, now.release, now.tiles, now.runs) == (None, None, None, [])
    assert now.labels == {"version": "", "labels": 0, "not_learned": 0} and not now.alarms
    assert not (tmp_path / "W").exists()  # looking creates nothing


def test_what_waits_what_runs_and_what_is_there(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path)
    for i in range(3):
        write_cutout(workspace.incoming / "night" / f"g{i}.fits", galaxy(i), ra=150.0 + i, dec=2.0)
    before = status(workspace)
    assert before.tiles == {"found": 1, "done": 0, "to_do": 1, "arriving": 0} and before.release is None
    with exclusive(survey_lock(workspace.catalog), "a-run", "survey"):
        now = status(workspace).survey
        assert now is not None and now.run_id == "a-run"
    summary = survey_driver.run(workspace)
    add(workspace.labels, [ResolvedLabel(7, "merging", 1, 0.0, 0.0)], author="A")
    now = status(workspace)
    assert now.tiles == {"found": 1, "done": 1, "to_do": 0, "arriving": 0}
    assert now.release is not None and (now.release["release"], now.release["objects"]) == (summary.release, 3)
    assert [run["run_id"] for run in now.runs] == [summary.run_id] and now.labels["not_learned"] == 1
    assert now.champion is not None and now.champion["model_id"] == small.card.model_id
    assert (now.alarms, now.survey) == ([], None)


def test_failed_tiles_and_quarantine_are_alarms(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path)
    write_cutout(workspace.incoming / "bad" / "g.fits", galaxy(0))
    (workspace.incoming / "bad" / "broken.fits").write_bytes(b"no FITS at all")
    for i in range(2):
        write_cutout(workspace.incoming / "good" / f"g{i}.fits", galaxy(i + 1), ra=10.0 + i, dec=2.0)
    good = next(tile for tile in find_inputs(workspace, []).tiles if "good" in tile.path)
    shard = tile_path(workspace.catalog, small.card.model_id, good.tile_id).parent
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"")  # a file where the folder of the committed tile should be: its commit fails
    survey_driver.run(workspace)
    now = status(workspace)
    assert now.tiles is not None and now.tiles["to_do"] == 1
    assert now.alarms[0].startswith("1 sky tiles failed in survey ")
    assert any("are in quarantine" in alarm for alarm in now.alarms[1:])
