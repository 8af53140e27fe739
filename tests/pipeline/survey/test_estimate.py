"""What a survey would do: counted, extrapolated from a pilot run, and compared with what it then does."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from catalogs.releases.registry import folder_size, layout_of
from pipeline.config.workspace import Workspace
from pipeline.survey.estimate import estimate, expected_stamps, ratio_estimate
from pipeline.survey.pilot import PilotJob, PilotTile, measure, run_pilot, spread
from pipeline.survey.plan import find_inputs, start_run
from pipeline.survey.run import classify_jobs
from pipeline.tiles.file_names import TileKind
from tests.conftest import Small
from tests.pipeline.brick_makers import coadd, reading, rows, tractor_path, write_brick, write_rows
from tests.pipeline.makers import hdf5_columns, write_cutouts, write_hdf5, write_pictures
from tests.pipeline.survey_driver import run

BRICKS = ("1501p000", "1498p000")


def sky(workspace: Workspace) -> None:
    """Six kinds of input; the third file of ten rows is cut into tiles of four."""
    incoming = workspace.incoming
    write_cutouts(incoming / "C", 9)
    write_pictures(incoming / "P", 4)
    write_hdf5(incoming / "ten.h5", hdf5_columns(10))
    (incoming / "bad.h5").write_bytes(b"no HDF5")


def with_bricks(workspace: Workspace) -> Workspace:
    for number, brick in enumerate(BRICKS):
        folder = write_brick(coadd(workspace.incoming / "south", brick), brick)
        columns = rows(np.arange(40, 40 + 30 * (number + 3), 30), np.full(number + 3, 100), brickid=None)
        write_rows(tractor_path(folder, brick), columns)
    return workspace


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return scratch


def test_tiles_stamps_and_bytes_are_counted_without_a_pilot_run(small: Small, tmp_path: Path, as_was: Callable) -> None:
    workspace = with_bricks(small.elsewhere(tmp_path / "W", "survey.rows=4", "bricks.stamp_pixels=64"))
    sky(workspace)
    with as_was(workspace.root):
        found = estimate(workspace, None, [], 0)
    assert found.kinds == {"cutouts": 3, "pictures": 1, "hdf5": 3 + 1, "brick": 2}
    assert (found.tiles, found.to_do, found.done, found.waiting) == (10, 10, 0, 0)
    assert found.stamps == 9 + 4 + 10 + 3 + 4 and (found.bricks, found.catalogues_read) == (2, 2)
    assert found.read_bytes == folder_size(workspace.incoming)
    assert found.pilot is None and found.seconds is None and found.model_id == small.card.model_id
    (workspace.incoming / "C" / "g003.fits").touch()
    waiting = workspace.changed(survey={"settle": 3600.0})
    assert estimate(waiting, None, [], 0).waiting == 10
    part = estimate(workspace, None, [workspace.incoming / "P"], 0)
    assert (part.to_do, part.stamps, part.bricks) == (1, 4, 0)


@pytest.mark.slow
def test_a_pilot_run_predicts_what_the_survey_then_does(
    small: Small, tmp_path: Path, own_temporary_folder: Path, as_was: Callable
) -> None:
    workspace = small.elsewhere(tmp_path / "W", "survey.rows=40")
    write_hdf5(workspace.incoming / "many.h5", hdf5_columns(240))
    write_cutouts(workspace.incoming / "C", 12)
    with as_was(workspace.root):
        one, all_of_them = estimate(workspace, None, [], 1e-3), estimate(workspace, None, [], 1000.0)
    assert not list(own_temporary_folder.iterdir())
    assert one.pilot and all_of_them.pilot and not one.pilot.failed and not all_of_them.pilot.failed
    assert (one.pilot.stamps, len(one.pilot.tiles)) == (40, 1)
    assert (all_of_them.pilot.stamps, len(all_of_them.pilot.tiles)) == (252, 7)
    for found in (one, all_of_them):
        assert found.seconds is not None and 0 < found.seconds.low < found.seconds.value < found.seconds.high
        assert found.to_dict()["trial"]["stamps_per_second"] > 0 and json.dumps(found.to_dict())

    total = run(workspace)
    assert total.release is not None and total.classified == one.stamps == all_of_them.stamps == 252
    tiles = sum(path.stat().st_size for path in (workspace.catalog / "tiles").rglob("*.parquet"))
    assert one.tile_bytes == pytest.approx(tiles, rel=0.15) and all_of_them.tile_bytes == pytest.approx(tiles, rel=0.02)
    released = folder_size(layout_of(workspace.catalog, total.release).root)
    assert one.release_bytes == pytest.approx(released, rel=0.2)
    assert all_of_them.release_bytes == pytest.approx(released, rel=0.05)

    write_cutouts(workspace.incoming / "D", 30)
    after = estimate(workspace, None, [], 1000.0)
    assert (after.to_do, after.done, after.stamps) == (1, 7, 30)
    assert after.release_bytes == pytest.approx(released, rel=0.2)
    nothing = estimate(workspace, None, [workspace.incoming / "C"], 60)
    assert (nothing.to_do, nothing.stamps, nothing.pilot) == (0, 0, None)


def test_only_as_much_of_a_tile_is_tried_as_there_is_time_for(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path, "survey.batch=4", f'folders.catalog="{tmp_path}/try/catalog"')
    write_hdf5(workspace.incoming / "many.h5", hdf5_columns(60))
    current = start_run(workspace, None)
    (job,) = classify_jobs(workspace, current, find_inputs(workspace, []).tiles)
    part, whole = measure(PilotJob(job, 0.0)), measure(PilotJob(job, 1000.0))
    assert (part.stamps, part.share) == (4, 4 / 60) and (whole.stamps, whole.rows, whole.share) == (60, 60, 1.0)
    gone = replace(job, tile=replace(job.tile, fingerprint="another", stop=3))
    result = run_pilot([gone], 5.0, workspace.settings.workers, exports=False, votable=False)
    assert list(result.failed) == [job.name] and "changed after it was found" in result.failed[job.name]
    assert not result.tiles and result.tile_size is None and result.stamps_per_second == 0


def test_the_first_few_tiles_tried_are_of_all_kinds_and_from_everywhere(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path, "survey.rows=1")
    write_hdf5(workspace.incoming / "a.h5", hdf5_columns(100))
    write_cutouts(workspace.incoming / "C", 3)
    jobs = classify_jobs(workspace, start_run(workspace, None), find_inputs(workspace, []).tiles)
    order = spread(jobs)
    assert {job.name for job in order} == {job.name for job in jobs} and len(order) == len(jobs) == 103
    assert [job.tile.kind for job in order[:6]].count(TileKind.CUTOUTS) == 3
    starts = [job.tile.start for job in order if job.tile.kind is TileKind.HDF5]
    for few in (7, 15, 31):
        assert np.diff([0, *sorted(starts[:few]), 100]).max() <= 2 * 100 / few


@pytest.mark.parametrize("stamps", [0, 50])
def test_the_error_of_a_ratio_estimate_is_the_true_one(stamps: int) -> None:
    """Many skies, each estimated from ten of its hundred tiles: the standard error says how far off it is."""
    off = []
    for seed in range(400):
        draw = np.random.default_rng(seed)
        sizes = draw.integers(stamps // 2, 2 * stamps + 1, 1000)
        seconds = (1.0 + 0.2 * sizes) * draw.uniform(0.7, 1.3, 1000)
        tried = [PilotTile("t", TileKind.HDF5, int(sizes[i]), 0, 1.0, float(seconds[i]), 0.0) for i in range(10)]
        value, error = ratio_estimate(tried, float(sizes.sum()), 1000)
        off.append((value - seconds.sum()) / error)
    assert abs(np.mean(off)) < 0.3 and 0.8 < np.std(off) < 1.35
    alone, error = ratio_estimate(tried[:1], float(sizes.sum()), 1000)
    assert alone > 0 and error == 0.5 * alone


def test_bricks_that_are_many_are_counted_from_the_catalogues_of_some(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.survey.estimate._MAX_CATALOGUES", 1)
    workspace = with_bricks(small.elsewhere(tmp_path, "bricks.stamp_pixels=64"))
    expected = expected_stamps(find_inputs(workspace, []).tiles, reading())
    assert (expected.bricks, expected.read) == (2, 1) and expected.total in (2 * 3, 2 * 4)
