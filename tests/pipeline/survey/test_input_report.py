"""Every file under the roots is in the table, with what became of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.config.workspace import Workspace
from pipeline.core.errors import Reason
from pipeline.survey.input_report import input_statuses
from pipeline.survey.quarantine import quarantine_entries
from pipeline.tiles.file_names import MANIFEST
from tests.conftest import Small
from tests.pipeline.makers import galaxy, hdf5_columns, write_cutout, write_cutouts, write_hdf5, write_pictures
from tests.pipeline.survey_driver import run


def outcomes(workspace: Workspace, small: Small | None) -> dict[str, str]:
    rows = list(input_statuses(workspace, [], small.card if small else None, time.time()))
    assert len({row.file for row in rows}) == len(rows)
    assert {row.file for row in rows} == {
        str(path.relative_to(workspace.incoming))
        for path in workspace.incoming.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(workspace.incoming).parts)
    }
    return {row.file: row.outcome for row in rows}


@pytest.fixture(scope="module")
def surveyed(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A sky of all kinds of files, surveyed; then one more folder arrives."""
    root = tmp_path_factory.mktemp("table")
    workspace = small.elsewhere(root, "survey.rows=4")
    incoming = root / "incoming"
    write_cutouts(incoming / "C", 5)
    write_cutout(incoming / "C" / "blank.fits", galaxy() * 0, ra=1, dec=1)
    write_cutout(incoming / "C" / "nowhere.fits", CTYPE1=None)
    write_pictures(incoming / "P", 2)
    write_hdf5(incoming / "rgb.h5", hdf5_columns(6))
    (incoming / "bad.h5").write_bytes(b"no HDF5")
    for name in ("readme.txt", ".hidden", "C/tractor-1498p020.fits", "C/sweep-140p000-150p005.fits", "C/notes.csv"):
        (incoming / name).write_bytes(b"x")
    (incoming / ".part").mkdir()
    (incoming / ".part" / "x.fits").write_bytes(b"x")
    assert not run(workspace).failed
    write_cutouts(incoming / "late", 1)
    (incoming / "late" / MANIFEST).write_text(f"{'0' * 64}  g000.fits\n{'0' * 64}  g001.fits\n")
    return workspace


def test_every_file_has_its_outcome(surveyed: Workspace, small: Small) -> None:
    lines = outcomes(surveyed, small)
    assert lines["C/g000.fits"].startswith("classified: ") and lines["P/p001.jpg"].startswith("classified: ")
    assert lines["C/blank.fits"].startswith("unclassified (missing_band")
    assert lines["C/nowhere.fits"] == "quarantined: no_wcs"
    assert lines["C/tractor-1498p020.fits"] == "catalogue of brick 1498p020"
    assert lines["C/sweep-140p000-150p005.fits"] == "catalogue of bricks"
    assert lines["P/positions.csv"] == "table of positions"
    assert lines["rgb.h5"] == "6 classified" and lines["bad.h5"] == "1 quarantined: unreadable_file"
    assert lines["readme.txt"] == "passed over: no input by its name"
    assert lines["late/g000.fits"] == "waiting: 1 of 2 files of manifest.sha256 are not there yet"
    assert lines[f"late/{MANIFEST}"] == "list of checksums"


def test_without_a_model_nothing_is_surveyed(surveyed: Workspace) -> None:
    lines = outcomes(surveyed, None)
    assert lines["C/g000.fits"] == lines["rgb.h5"] == "not surveyed yet" and lines["late/g000.fits"].startswith("wait")


def test_the_files_of_a_brick_share_its_outcome(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path)
    folder = tmp_path / "incoming" / "coadd" / "149" / "1498p020"
    folder.mkdir(parents=True)
    for name in ("image-g.fits.fz", "image-r.fits.fz", "maskbits.fits.fz"):
        (folder / f"legacysurvey-1498p020-{name}").write_bytes(b"x")
    assert set(outcomes(workspace, small).values()) == {"brick 1498p020: not surveyed yet"}
    assert not run(workspace).failed
    assert set(outcomes(workspace, small).values()) == {"brick 1498p020: 1 quarantined: missing_catalogue"}


def test_real_files_through_the_front_door(small: Small, shared: Path, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path, f'folders.incoming="{shared / "data" / "fits"}"')
    summary = run(workspace)
    assert not summary.failed and summary.objects == summary.classified + summary.quarantined == 27
    lines = outcomes(workspace, small)
    assert lines["decals_dr9_subimage/cutout_59.1067_-30.4848.fits"].startswith("classified: ")
    assert lines["decals_dr9_subimage/copsf_59.1067_-30.4848.fits"] == "quarantined: no_wcs"
    assert "missing_band" in lines["decals_grz_cutouts/example_bad_pix.fits"]
    assert {lines[f"decam_mosaic_cuts/{n}_rband.fits"] for n in (132, 150, 190, 360)} == {"quarantined: wrong_bands"}
    brick = {line for file, line in lines.items() if "legacysurvey-0959p805" in file}
    assert brick == {"brick 0959p805: 1 quarantined: missing_catalogue"}
    ((_, entry),) = quarantine_entries(workspace, small.card.model_id, [Reason.MISSING_CATALOGUE])
    assert "no tractor-0959p805.fits" in entry.detail and entry.detail.endswith("; no image of band r")
