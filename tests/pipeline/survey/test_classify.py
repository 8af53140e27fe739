"""The unit of work: every input of a tile becomes a row or a quarantine entry, and the file says so."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from catalogs.schema import HIGH_OOD, UNRELIABLE, QualityFlag, arrow_schema
from catalogs.tiles import TileMetadata, read_tile_metadata, tile_path
from pipeline.config.inputs import InputSettings, ReadingSettings
from pipeline.core.errors import InputChanged, Reason
from pipeline.ingest.discovery import discover
from pipeline.survey.classify import ClassifyJob, classify
from tests.conftest import Small
from tests.pipeline.makers import (
    galaxy,
    hdf5_columns,
    picture,
    write_cutout,
    write_cutouts,
    write_hdf5,
    write_pictures,
    write_table,
)


def jobs_for(small: Small, root: Path, *, rows: int = 1000, batch: int = 8, **settings: object) -> list[ClassifyJob]:
    reading = ReadingSettings(input=InputSettings(**settings))
    return [
        ClassifyJob(
            tile=tile,
            models=str(small.workspace.models),
            model_id=small.card.model_id,
            catalog=str(root / "catalog"),
            run_id="run",
            mjd=60000.0,
            device="cpu",
            batch=batch,
            reading=reading,
        )
        for tile in discover([root / "in"], rows, reading).tiles
    ]


def run(job: ClassifyJob) -> tuple[pd.DataFrame, TileMetadata]:
    """Classify and read back; what the receipt, the stamp and the rows say must agree."""
    receipt = classify(job)
    path = tile_path(Path(job.catalog), job.model_id, job.tile.tile_id)
    stamp, rows = read_tile_metadata(path), pq.read_table(path).to_pandas()
    assert stamp is not None and stamp.fingerprint == job.tile.fingerprint
    assert (receipt.classified, receipt.unclassified) == (stamp.classified, stamp.unclassified)
    assert receipt.quarantined == len(stamp.quarantine)
    assert len(rows) == stamp.classified + stamp.unclassified and (rows["label_id"] >= 0).sum() == stamp.classified
    return rows, stamp


def only(small: Small, root: Path, **more: object) -> tuple[pd.DataFrame, TileMetadata]:
    (job,) = jobs_for(small, root, **more)
    return run(job)


def flags(rows: pd.DataFrame) -> dict[str, QualityFlag]:
    """Flags by file name, without those that follow from what the network says of these crude galaxies."""
    said = QualityFlag.VIEWS_DISAGREE | QualityFlag.HIGH_OOD | QualityFlag.PRED_SET_EMPTY_OR_FULL
    return {row.source_name.rpartition("/")[2]: QualityFlag(row.quality_flags) & ~said for row in rows.itertuples()}


def test_a_row_for_every_object(small: Small, tmp_path: Path) -> None:
    write_cutouts(tmp_path / "in" / "C", 7)
    rows, stamp = only(small, tmp_path, batch=3)
    assert stamp.classified == 7 and not stamp.quarantine and stamp.rejected == ""
    assert sorted(rows["source_name"]) == [f"in/C/g{i:03d}.fits" for i in range(7)]
    path = tile_path(tmp_path / "catalog", small.card.model_id, stamp.tile_id)
    assert pq.read_schema(path).remove_metadata() == arrow_schema(small.card.class_slugs)
    assert rows["_healpix_29"].is_monotonic_increasing
    p = rows[[f"p_{slug}" for slug in small.card.class_slugs]].to_numpy()
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-3)
    np.testing.assert_array_equal(p.argmax(axis=1), rows["label_id"])
    assert [small.card.class_slugs[i] for i in rows["label_id"]] == rows["label"].tolist()
    by_name = rows.set_index("source_name")
    assert by_name.loc["in/C/g003.fits", "ra"] == pytest.approx(150.03)


def test_a_corrupt_file_among_good_ones_costs_only_itself(small: Small, tmp_path: Path) -> None:
    folder = write_cutouts(tmp_path / "in" / "C", 5)
    undamaged, _ = only(small, tmp_path)
    (folder / "g002.fits").write_bytes(b"<html>")
    rows, stamp = only(small, tmp_path)
    (entry,) = stamp.quarantine
    assert (entry.source_name, entry.reason) == ("in/C/g002.fits", Reason.UNREADABLE_FILE)
    assert entry.file == str(folder / "g002.fits")
    left = undamaged[undamaged["source_name"] != "in/C/g002.fits"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, left, atol=1e-4)


def test_all_bands_blank_is_a_row_without_a_label(small: Small, tmp_path: Path) -> None:
    write_cutouts(tmp_path / "in" / "C", 2)
    write_cutout(tmp_path / "in" / "C" / "blank.fits", galaxy() * 0, ra=10, dec=10)
    rows, stamp = only(small, tmp_path)
    assert (stamp.classified, stamp.unclassified) == (2, 1)
    row = rows.set_index("source_name").loc["in/C/blank.fits"]
    assert (row["label"], row["label_id"], row["confidence"], row["is_reliable"]) == ("", -1, 0, False)
    assert row["quality_flags"] & QualityFlag.UNCLASSIFIED and row["bad_pixel_fraction"] == 1
    assert row[[f"p_{slug}" for slug in small.card.class_slugs]].sum() == 0
    assert [row[name] for name in ("pred_set", "pred_set_size", "n_views", "ood_score")] == [0, 0, 0, -1]


def test_certainty_follows_from_the_model(small: Small, tmp_path: Path) -> None:
    """Every column and flag can be checked against the card and the others."""
    write_cutouts(tmp_path / "in" / "C", 12)
    rows, _ = only(small, tmp_path)
    p = rows[[f"p_{slug}" for slug in small.card.class_slugs]].to_numpy()
    held = rows["pred_set"].to_numpy()[:, None] >> np.arange(10) & 1 == 1
    thresholds = np.array(small.card.conformal.thresholds)
    assert held[p > thresholds + 1e-4].all() and not held[p < thresholds - 1e-4].any()
    np.testing.assert_array_equal(rows["pred_set_size"], held.sum(1))
    assert set(rows["n_views"]) == {1} and not rows["confidence_std"].any()

    def flagged(flag: QualityFlag) -> np.ndarray:
        return (rows["quality_flags"] & int(flag) != 0).to_numpy()

    np.testing.assert_array_equal(flagged(QualityFlag.PRED_SET_EMPTY_OR_FULL), np.isin(held.sum(1), (0, 10)))
    np.testing.assert_array_equal(flagged(QualityFlag.HIGH_OOD), rows["ood_score"] > HIGH_OOD)
    assert rows["ood_score"].between(0, 1).all() and not flagged(QualityFlag.VIEWS_DISAGREE).any()


def test_two_objects_of_one_id_are_reported(small: Small, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in" / "P", 4)
    key = {"release": 9010, "brickid": 1, "dec": 2}
    numbers = [(0, 5), (1, 6), (2, 5), (3, 5)]
    write_table(folder / "positions.csv", [{"file": f"p00{i}.jpg", "ra": i, "objid": n, **key} for i, n in numbers])
    rows, stamp = only(small, tmp_path, batch=2)
    assert sorted(rows["source_name"]) == ["in/P/p000.jpg", "in/P/p001.jpg"]
    assert [q.source_name for q in stamp.quarantine] == ["in/P/p002.jpg", "in/P/p003.jpg"]
    assert {q.reason for q in stamp.quarantine} == {Reason.DUPLICATE_OBJECT_ID}
    assert sorted(rows["objid"]) == [5, 6] and set(rows["release"]) == {9010}
    assert sorted(rows["object_id"]) == [9010 << 42 | 1 << 22 | n for n in (5, 6)]


def test_a_damaged_hdf5_tile_commits_no_rows_and_the_reason(small: Small, tmp_path: Path) -> None:
    columns = hdf5_columns(5)
    columns["dec"] = columns["dec"][:3]
    write_hdf5(tmp_path / "in" / "a.h5", columns)
    for job, count in zip(jobs_for(small, tmp_path, rows=3), (3, 2), strict=True):
        rows, stamp = run(job)
        assert rows.empty and stamp.rejected == Reason.ARRAYS_DIFFER and len(stamp.quarantine) == count
    assert [q.source_name for q in stamp.quarantine] == ["in/a.h5#3", "in/a.h5#4"]
    (tmp_path / "in" / "a.h5").write_bytes(b"no HDF5")
    rows, stamp = only(small, tmp_path)
    assert rows.empty and stamp.rejected == Reason.UNREADABLE_FILE
    assert [q.source_name for q in stamp.quarantine] == ["in/a.h5"]


def test_a_folder_whose_table_cannot_be_used_names_every_picture(small: Small, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in" / "P", 3)
    (folder / "positions.csv").write_text("a,b\n1,2\n")
    rows, stamp = only(small, tmp_path)
    assert rows.empty and stamp.rejected == Reason.NO_POSITION
    assert [q.source_name for q in stamp.quarantine] == [f"in/P/p00{i}.jpg" for i in range(3)]
    assert [q.file for q in stamp.quarantine] == [str(folder / f"p00{i}.jpg") for i in range(3)]


def test_flags_say_how_a_stamp_differs_from_the_training(small: Small, tmp_path: Path) -> None:
    lowest, highest = small.card.envelope["pixscale"]
    assert lowest == 0.262
    folder = tmp_path / "in" / "C"
    for name, side, scale in (
        ("right", 256, 0.262),
        ("large", 300, 0.262),
        ("short", 250, 0.262),
        ("finer", 420, 0.2),
        ("small", 200, 0.2),
        ("coarse", int(256 * 0.262 / highest) + 4, highest * 1.02),
        ("coarser", 180, highest * 1.5),
    ):
        write_cutout(folder / name, galaxy(1, side), ra=len(name), dec=side / 10, pixscale=scale)
        (folder / name).rename(folder / f"{name}.fits")
    rows, _ = only(small, tmp_path)
    found = flags(rows)
    fov, resampled, outside = QualityFlag.FOV_MISMATCH, QualityFlag.RESAMPLED, QualityFlag.PIXSCALE_OUTSIDE_TRAINING
    assert found == {
        "right.fits": QualityFlag(0),
        "large.fits": QualityFlag(0),
        "short.fits": fov,
        "finer.fits": resampled | outside,
        "small.fits": fov | resampled | outside,
        "coarse.fits": resampled,
        "coarser.fits": resampled | outside,
    }
    unflagged = rows["quality_flags"] & int(UNRELIABLE) == 0
    assert (rows["is_reliable"] == (unflagged & (rows["confidence"] >= 0.6))).all()


def test_renderings_that_may_differ_are_flagged(small: Small, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in" / "P", 2, side=256)
    differs = QualityFlag.COLOUR_RULE_DIFFERS
    assert set(flags(only(small, tmp_path)[0]).values()) == {differs}
    assert set(flags(only(small, tmp_path, picture_rendering="ls-dr8-grz")[0]).values()) == {QualityFlag(0)}
    refused, stamp = only(small, tmp_path, picture_rendering="galaxy-zoo")
    assert refused.empty and [q.reason for q in stamp.quarantine] == [Reason.WRONG_COLOUR_RULE] * 2
    rows = [{"file": f"p00{i}.jpg", "ra": i, "dec": 0} for i in range(2)]
    write_table(folder / "positions.csv", rows)
    Image.fromarray(picture(1, 100)).save(folder / "p001.jpg")
    found = flags(only(small, tmp_path, picture_rendering="ls-dr8-grz")[0])
    assert found == {
        "p000.jpg": QualityFlag.FOV_MISMATCH,
        "p001.jpg": QualityFlag.FOV_MISMATCH | QualityFlag.RESAMPLED,
    }


def test_the_same_input_gives_the_same_file(small: Small, tmp_path: Path) -> None:
    write_hdf5(tmp_path / "in" / "a.h5", hdf5_columns(9, flux=True), bands="grz")
    (job,) = jobs_for(small, tmp_path)
    first, _ = run(job)
    again, _ = run(replace(job, run_id="later", mjd=60001.0))
    pd.testing.assert_frame_equal(first, again)  # the same pixels: the prediction, and when it was made, stay
    fresh, _ = run(replace(job, run_id="later", mjd=60001.0, catalog=str(tmp_path / "other")))
    pd.testing.assert_frame_equal(
        first.drop(columns=["run_id", "mjd_predicted"]), fresh.drop(columns=["run_id", "mjd_predicted"])
    )
    assert set(fresh["run_id"]) == {"later"} and set(fresh["mjd_predicted"]) == {60001.0}


def test_the_batch_size_does_not_change_rows(small: Small, tmp_path: Path) -> None:
    folder = write_cutouts(tmp_path / "in" / "C", 5)
    write_cutouts(folder, 4, first=5, side=40)
    write_cutout(folder / "other.fits", galaxy(2, 33), ra=2, dec=3, pixscale=0.5)
    first, _ = only(small, tmp_path, batch=1)
    for batch in (3, 64):
        rows, _ = only(small, tmp_path, batch=batch)
        pd.testing.assert_frame_equal(rows, first, rtol=0, atol=2e-4)


def test_flux_and_its_rendering_give_the_same_label(small: Small, tmp_path: Path) -> None:
    """The path of FITS pixels and the path of RGB pixels must meet: else training and serving differ."""
    from models.preprocessing import colour_rule

    flux = np.stack([galaxy(i, 256) for i in range(4)])
    where = {"ra": np.arange(4.0), "dec": np.arange(4.0), "pxscale": np.full(4, 0.262)}
    write_hdf5(tmp_path / "in" / "flux.h5", {"images": flux, **where}, bands="grz")
    write_hdf5(tmp_path / "in" / "rgb.h5", {"images": colour_rule(flux), **where})
    one, other = (run(job)[0].sort_values("ra").reset_index() for job in jobs_for(small, tmp_path))
    assert set(one["survey_layer"]) == {"hdf5-grz"} and set(other["survey_layer"]) == {"hdf5-rgb"}
    np.testing.assert_array_equal(one["input_digest"], other["input_digest"])
    np.testing.assert_allclose(one["confidence"], other["confidence"], atol=2e-4)


def test_a_file_that_changes_meanwhile_commits_nothing(small: Small, tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "in" / "a.h5", hdf5_columns(2))
    (job,) = jobs_for(small, tmp_path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputChanged):
        classify(job)
    assert not (tmp_path / "catalog").exists()


def test_names_that_are_no_text_are_committed_legibly(small: Small, tmp_path: Path) -> None:
    folder = tmp_path / "in" / os.fsdecode(b"C\xff")
    write_cutout(folder / os.fsdecode(b"a\xfe.fits"))
    (folder / os.fsdecode(b"b\xfe.fits")).write_bytes(b"")
    rows, stamp = only(small, tmp_path)
    assert rows["source_name"].tolist() == ["in/C\\udcff/a\\udcfe.fits"]
    assert [q.source_name for q in stamp.quarantine] == ["in/C\\udcff/b\\udcfe.fits"]


def test_a_job_is_small_enough_to_travel(small: Small, tmp_path: Path) -> None:
    write_cutouts(tmp_path / "in" / "C", 1)
    (job,) = jobs_for(small, tmp_path)
    assert len(pickle.dumps(job)) < 2048


_PEAK = """
import pickle, resource, sys
import torch
torch.set_num_threads(1)
from pipeline.survey.classify import classify
for path in sys.argv[1:]:
    receipt = classify(pickle.loads(open(path, "rb").read()))
    print(receipt.classified + receipt.unclassified, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.timeout(240)
def test_memory_does_not_grow_with_the_tile(small: Small, tmp_path: Path) -> None:
    """Peak memory for 100, then 101, then 1000 stamps of 480 KB: 430 MB of pixels more, but in bounded chunks."""
    for rows in (100, 101, 1000):
        path = tmp_path / "in" / f"n{rows}.h5"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            image = np.stack([galaxy(i, 200) for i in range(3)])
            images = file.create_dataset("images", (rows, 3, 200, 200), "f4", chunks=(1, 3, 200, 200), fillvalue=0.01)
            images[:3] = image  # the rest is never written: the file stays small
            file["ra"], file["dec"] = np.arange(rows) / 10, np.arange(rows) / 20
            file["pxscale"] = np.full(rows, 0.262)
            file.attrs["bands"] = "grz"
    jobs = sorted(jobs_for(small, tmp_path, batch=16), key=lambda job: job.tile.stop)
    for number, job in enumerate(jobs):
        (tmp_path / f"{number}.job").write_bytes(pickle.dumps(job))
    command = [sys.executable, "-c", _PEAK, *(str(tmp_path / f"{n}.job") for n in range(3))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout.split()
    assert printed[::2] == ["100", "101", "1000"]
    growth = (int(printed[5]) - int(printed[3])) / 1024
    assert growth < 200, f"{growth:.0f} MiB more for 900 more stamps"
