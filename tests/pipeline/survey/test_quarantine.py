"""Quarantine over several commits: how often, since when; and the table of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from catalogs.tiles import QuarantineEntry, TileMetadata, commit
from pipeline.config.workspace import open_workspace
from pipeline.core.errors import UserError
from pipeline.survey.plan import find_inputs, make_plan, remaining_plan, start_run, tiles_to_retry
from pipeline.survey.quarantine import RetryResult, plan_retry, position_list_of, quarantine_entries, retry_result
from pipeline.survey.run import already_done, classify_tiles
from tests.catalogs.conftest import MODEL, commit_tile, make_stamp, make_table, quarantine_entry
from tests.conftest import Small
from tests.pipeline.makers import galaxy, write_cutout, write_cutouts
from tests.pipeline.survey_driver import run


def test_entries_are_listed_by_reason_and_tile(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)
    assert quarantine_entries(workspace, MODEL) == []
    commit_tile(workspace.catalog, "a", [1], quarantined=2)
    mixed = [quarantine_entry("x", "empty_file"), quarantine_entry("y")]
    commit(workspace.catalog, make_table("b", []), make_stamp("b", 0, quarantine=mixed))
    assert [(s.tile_id, e.reason) for s, e in quarantine_entries(workspace, MODEL)] == [
        *[("a", "no_wcs")] * 2,
        ("b", "empty_file"),
        ("b", "no_wcs"),
    ]
    assert [e.source_name for _, e in quarantine_entries(workspace, MODEL, ["no_wcs"], "b")] == ["sky/y"]
    assert len(quarantine_entries(workspace, MODEL, tile="sky/a")) == 2
    assert quarantine_entries(workspace, "other") == []
    with pytest.raises(UserError, match=r"unknown reason no_wsc; the reasons are .*no_wcs.*unreadable_file"):
        quarantine_entries(workspace, MODEL, ["no_wsc"])


def test_a_tile_of_a_list_of_positions_is_tried_with_that_list_alone(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)
    bricks = tmp_path / "incoming" / "dr9" / "coadd" / "149"
    for brick in ("1498p020", "1498p022"):
        (bricks / brick).mkdir(parents=True)
    (tmp_path / "list.csv").write_text("ra,dec\n")
    (tmp_path / "night@2").mkdir()

    def held(tile: str, source: str, origin: str, count: int = 1) -> tuple[TileMetadata, list[QuarantineEntry]]:
        entries = [quarantine_entry(f"{tile}{i}") for i in range(count)]
        stamp = make_stamp(tile, 0, source=source, origin=origin, quarantine=entries)
        commit(workspace.catalog, make_table(tile, []), stamp)
        return stamp, entries

    folder = "incoming/dr9/coadd/149"
    held("plain", "dr9/1498p020", f"{folder}/1498p020")
    held("cut", "dr9/1498p020@list.csv", f"{folder}/1498p020")
    held("neighbour", "dr9/1498p022@list.csv", f"{folder}/1498p022", 0)
    held("outside", "positions@list.csv", "list.csv")
    held("folder", "sky/night@2", "night@2")
    held("gone", "sky/gone", "gone")
    entries = quarantine_entries(workspace, MODEL)
    without = plan_retry(workspace, MODEL, entries)
    assert sorted(without.tiles) == ["folder", "plain"] and sorted(without.skipped) == ["cut", "gone", "outside"]
    assert "bricks.catalogue" in without.skipped["cut"] and "no longer there" in without.skipped["gone"]
    assert without.roots == [bricks / "1498p020", tmp_path / "night@2"]
    with_list = open_workspace(tmp_path, ["bricks.catalogue=list.csv"])
    given = plan_retry(with_list, MODEL, entries)
    assert sorted(given.tiles) == ["cut", "folder", "outside"] and sorted(given.skipped) == ["gone", "plain"]
    assert given.roots == [bricks / "1498p020", bricks / "1498p022", tmp_path / "night@2"]
    assert [position_list_of(s) for s in ("a/1498p020@b@c.csv", "night@2/C", "x@y")] == ["b@c.csv", "", ""]


def test_only_tiles_with_such_entries_are_tried_again_and_what_came_good_is_counted(
    small: Small, tmp_path: Path
) -> None:
    """Three folders: two with a damaged file, one of which is put right with the times it had before."""
    workspace = small.elsewhere(tmp_path, "survey.rows=2")
    for name in ("A", "B", "C"):
        write_cutouts(tmp_path / "incoming" / name, 3)
    broken, empty = tmp_path / "incoming" / "A" / "g000.fits", tmp_path / "incoming" / "B" / "g001.fits"
    whole = broken.read_bytes()
    broken.write_bytes(b"\0" * len(whole))
    empty.write_bytes(b"")
    first = run(workspace)
    assert (first.objects, first.classified, first.quarantined) == (9, 7, 2)
    model = small.card.model_id
    before = quarantine_entries(workspace, model)
    assert {(e.attempts, e.first_seen == e.last_seen) for _, e in before} == {(1, True)}
    times = broken.stat()
    broken.write_bytes(whole)
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))  # so that the plan sees no difference
    write_cutouts(tmp_path / "incoming" / "D", 1)
    again = frozenset({before[0][1].reason, "empty_file"})
    current = start_run(workspace, None)
    found = tiles_to_retry(workspace, current, find_inputs(workspace, []).tiles, again)
    todo = make_plan(workspace, current, found, again)
    assert [tile.path[-1] for tile in todo.todo] == ["A", "B"] and todo.done == todo.retired == []
    assert classify_tiles(workspace, current, todo) == {}
    assert remaining_plan(workspace, current, todo).todo == []
    assert retry_result(workspace, model, before, current.run_id) == RetryResult(tried=2, good=1, still=1, gone=0)
    assert retry_result(workspace, model, before, "another run") == RetryResult()
    ((stamp, left),) = quarantine_entries(workspace, model)
    assert (left.reason, left.attempts, left.first_seen) == ("empty_file", 2, before[1][1].first_seen)
    assert left.last_seen >= left.first_seen and stamp.reused == 1
    with pytest.raises(UserError, match="none of these sky tiles"):
        tiles_to_retry(workspace, current, found, frozenset({"no_wcs"}))


def test_an_alarm_is_raised_by_what_a_run_has_read(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path, "survey.alarm=0.4")
    write_cutouts(tmp_path / "incoming" / "A", 3)
    write_cutout(tmp_path / "incoming" / "A" / "bad.fits", galaxy(), CTYPE1=None)
    assert run(workspace).alarm == ""  # 1 of 4
    (tmp_path / "incoming" / "B").mkdir()
    (tmp_path / "incoming" / "B" / "empty.fits").write_bytes(b"")
    bad_night = run(workspace)  # 2 of 5 in all
    assert bad_night.alarm.startswith("1 of 1 inputs (100%) are in quarantine")
    assert "survey.alarm = 0.4" in bad_night.alarm and bad_night.alarm.endswith("1 empty_file")
    assert bad_night.alarm in bad_night.to_markdown()
    assert run(workspace).alarm == "" and run(workspace.changed(survey={"alarm": 0.3})).alarm.startswith("2 of 5")


def test_what_is_still_arriving_is_named_and_its_old_rows_stay(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path, "survey.rows=2")
    write_cutouts(tmp_path / "incoming" / "A", 4)
    assert run(workspace).objects == 4
    (tmp_path / "incoming" / "A" / "g003.fits").unlink()  # a re-issue: the folder is shorter, one file is young
    (tmp_path / "incoming" / "A" / "g002.fits").unlink()
    write_cutout(tmp_path / "incoming" / "A" / "g001.fits", galaxy(9))
    patient = workspace.changed(survey={"settle": 3600.0})
    current = start_run(patient, None)
    done = already_done(patient, current, [])
    assert done is not None and done.nothing_to_do and done.objects == 0
    ((tile, why),) = done.waiting.items()
    assert "taken when unchanged for 3600 s" in why and f"* `{tile}`: {why}" in done.to_markdown()
    settled = run(workspace)
    assert (settled.objects, settled.waiting, settled.reused) == (2, {}, 1)
