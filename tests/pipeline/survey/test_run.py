"""Runs of a survey: totals that add up, runs that can be killed, catalogues that change only with cause."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from catalogs.releases.registry import current_release, layout_of
from pipeline.config.workspace import Workspace
from pipeline.survey.plan import find_inputs, make_plan, start_run
from pipeline.survey.run import already_done, classify_tiles
from tests.conftest import SMALL_TRAINING, Small
from tests.paths import ROOT
from tests.pipeline.makers import galaxy, hdf5_columns, write_cutout, write_cutouts, write_hdf5, write_pictures
from tests.pipeline.survey_driver import run

OF_THE_RUN = ["run_id", "mjd_predicted"]


def sky(root: Path, *, large: int = 0) -> None:
    """Five kinds of sky tile; with `large` there are so many rows that a run takes a while."""
    incoming = root / "incoming"
    write_cutouts(incoming / "C", 9)
    write_cutout(incoming / "C" / "blank.fits", galaxy() * 0, ra=1, dec=1)
    (incoming / "C" / "broken.fits").write_bytes(b"<html>")
    write_pictures(incoming / "P", 4)
    (incoming / "P" / "p003.jpg").write_bytes(b"")
    write_hdf5(incoming / "rgb.h5", hdf5_columns(10 + large))
    columns = hdf5_columns(7, flux=True)
    columns["ra"] += 40
    write_hdf5(incoming / "flux.h5", columns, bands="grz")
    (incoming / "bad.h5").write_bytes(b"no HDF5")


def rows_of(workspace: Workspace) -> pd.DataFrame:
    release = current_release(workspace.catalog)
    assert release is not None
    layout = layout_of(workspace.catalog, release.release)
    return pd.concat(
        pq.ParquetFile(layout.partition_file(p.order, p.pixel)).read().to_pandas() for p in layout.partitions()
    )


def same_rows(one: pd.DataFrame, other: pd.DataFrame, atol: float = 0.0) -> None:
    pd.testing.assert_frame_equal(one.drop(columns=OF_THE_RUN), other.drop(columns=OF_THE_RUN), rtol=0, atol=atol)


def test_totals_add_up_and_a_second_run_changes_not_a_byte(small: Small, tmp_path: Path, as_was: Callable) -> None:
    workspace = small.elsewhere(tmp_path, "survey.rows=4")
    sky(tmp_path)
    total = run(workspace)
    assert (total.classified, total.unclassified, total.quarantined) == (9 + 3 + 10 + 7, 1, 3)
    assert total.objects == 33 and not total.failed and total.skipped_tiles == 0
    assert total.tiles == 3 + 1 + 3 + 2 + 1
    assert total.reasons == {"unreadable_file": 2, "empty_file": 1}
    assert total.release is not None and total.duplicates == 0 and total.model_id == small.card.model_id
    rows = rows_of(workspace)
    assert len(rows) == 30 and rows["object_id"].is_unique
    release = current_release(workspace.catalog)
    assert release is not None and (release.objects, release.quarantined) == (30, 3)
    report = json.loads((workspace.reports / f"survey-{total.run_id}.json").read_text())
    assert report["objects"] == 33 and report["settings"]["survey"]["rows"] == 4
    assert "| quarantined: empty_file | 1 |" in total.to_markdown()

    with as_was(workspace.catalog):
        again = run(workspace)
        current = start_run(workspace, None)
        done = already_done(workspace, current, [])
    assert again.nothing_to_do and again.skipped_tiles == again.tiles and again.objects == total.objects
    assert done is not None and done.nothing_to_do and done.release == total.release


def test_only_what_changed_is_done_again(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path, "survey.rows=4")
    sky(tmp_path)
    first = run(workspace)
    before = rows_of(workspace)
    write_cutout(tmp_path / "incoming" / "C" / "broken.fits", galaxy(77), ra=7, dec=7)  # downloaded again
    write_hdf5(tmp_path / "incoming" / "rgb.h5", hdf5_columns(5))  # a shorter one: 3 tiles become 2
    current = start_run(workspace, None)
    assert already_done(workspace, current, []) is None
    todo = make_plan(workspace, current, find_inputs(workspace, []).tiles)
    assert sorted({t.source for t in todo.todo}) == ["incoming/C", "incoming/rgb.h5"]
    assert len(todo.todo) == 3 and len(todo.retired) == 1
    total = run(workspace)
    assert (total.classified, total.quarantined) == (first.classified - 5 + 1, first.quarantined - 1)
    assert total.release != first.release
    rows = rows_of(workspace)
    assert set(rows["source_name"]) - set(before["source_name"]) == {"incoming/C/broken.fits"}
    assert set(before["source_name"]) - set(rows["source_name"]) == {f"incoming/rgb.h5#{i}" for i in range(5, 10)}
    untouched = ~rows["tile_id"].isin({t.tile_id for t in todo.todo})
    assert set(rows.loc[untouched, "run_id"]) == {first.run_id}
    redone = rows[~untouched]
    anew = redone["run_id"] == total.run_id  # other pixels, or no label: the rest keeps its prediction
    assert set(redone.loc[anew, "source_name"]) == {"incoming/C/broken.fits", "incoming/C/blank.fits"}
    assert set(redone.loc[~anew, "run_id"]) == {first.run_id} and total.reused == (~anew).sum() > 0


def test_a_tile_that_fails_is_counted_and_the_rest_is_released(small: Small, tmp_path: Path) -> None:
    """A folder stands where the tile's file should be written: the commit fails, again and again."""
    workspace = small.elsewhere(tmp_path, "survey.rows=4", "workers.retries=0")
    sky(tmp_path)
    whole = run(workspace)
    tiles = sorted((workspace.catalog / "tiles").rglob("*C-*00001.parquet"))
    tiles[0].unlink()
    (tiles[0] / "in the way").mkdir(parents=True)
    total = run(workspace)
    (name,) = total.failed
    assert name == tiles[0].stem and "Error" in total.failed[name]
    assert total.objects == whole.objects - 4 and not total.nothing_to_do
    assert f"* `{name}`" in total.to_markdown()
    (tiles[0] / "in the way").rmdir()
    tiles[0].rmdir()
    assert run(workspace).objects == whole.objects


def test_inline_and_a_cluster_make_the_same_catalogue(small: Small, tmp_path: Path) -> None:
    catalogues = []
    for kind in ("inline", "local"):
        root = tmp_path / kind
        sky(root)
        workspace = small.elsewhere(root, "survey.rows=4", f"workers.kind={kind}", "workers.count=2")
        total = run(workspace)
        assert not total.failed and total.objects == 33
        catalogues.append(rows_of(workspace))
    same_rows(*catalogues, atol=2e-4)
    for column in ("object_id", "label", "quality_flags", "input_digest"):
        assert (catalogues[0][column] == catalogues[1][column]).all()


def committed_tiles(workspace: Workspace) -> list[Path]:
    return [p for p in (workspace.catalog / "tiles").rglob("*.parquet") if not p.name.startswith(".")]


@pytest.mark.slow  # the quick kills are in tests/chaos
@pytest.mark.parametrize("kind", ["inline", "local"])
def test_a_run_killed_midway_is_finished_by_the_next(small: Small, tmp_path: Path, kind: str) -> None:
    """kill -9 of the process (and its workers) after the first committed tiles; the rest is done by the next run."""
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    overrides = ["survey.rows=5", "survey.batch=4"]
    for root in (undisturbed, killed):
        sky(root, large=300)
    expected = run(small.elsewhere(undisturbed, *overrides))
    workspace = small.elsewhere(killed, *overrides)
    settings = [*SMALL_TRAINING, f'folders.models="{workspace.models}"', *overrides, f"workers.kind={kind}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.survey_driver", str(killed), *settings],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(committed_tiles(workspace)) < 2:
        assert process.poll() is None, "the run was over before it could be killed"
        assert time.monotonic() < deadline, "no tile was committed within a minute"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    half_way = len(committed_tiles(workspace))
    assert 2 <= half_way < expected.tiles
    assert current_release(workspace.catalog) is None
    for path in committed_tiles(workspace)[:1]:  # what a kill in the middle of a write partition files behind
        path.with_name(f".{path.name}.12345").write_bytes(path.read_bytes()[:100])
    total = run(workspace)
    assert total.skipped_tiles == half_way and not total.failed
    assert (total.objects, total.classified, total.reasons) == (expected.objects, expected.classified, expected.reasons)
    same_rows(rows_of(workspace), rows_of(small.elsewhere(undisturbed)), atol=2e-4 if kind == "local" else 0)


def test_looking_whether_there_is_work_changes_nothing(small: Small, tmp_path: Path) -> None:
    """After a run that was killed between its commits and its release there is work; the look does none of it."""
    workspace = small.elsewhere(tmp_path)
    write_cutouts(tmp_path / "incoming" / "C", 2)
    run(workspace)
    write_cutouts(tmp_path / "incoming" / "D", 2)
    current = start_run(workspace, None)
    tiles = find_inputs(workspace, []).tiles
    classify_tiles(workspace, current, make_plan(workspace, current, tiles))
    released = (workspace.catalog / "CURRENT").read_text()
    assert already_done(workspace, current, []) is None
    assert (workspace.catalog / "CURRENT").read_text() == released
    run(workspace)
    assert already_done(workspace, current, []) is not None
