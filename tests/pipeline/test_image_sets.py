"""Labelled images: opening them, groups of one sky position, splits."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.recipe import Recipe
from pipeline.errors import UserError
from pipeline.image_sets import ImageSet, open_galaxy10, open_images, open_pictures, position_groups, split
from pipeline.readers.settings import InputSettings
from tests.pipeline.makers import hdf5_columns, picture, write_hdf5, write_pictures, write_table

ARCSEC = 1 / 3600


def galaxy10(path: Path, labels: list[int] | None = None, **columns: np.ndarray) -> Path:
    labels = [0, 1, 2, 9] if labels is None else labels
    return write_hdf5(path, {**hdf5_columns(len(labels)), "ans": np.array(labels), **columns})


def opened(path: Path) -> ImageSet:
    return open_galaxy10(path, InputSettings(), 10)


def test_a_galaxy10_file(tmp_path: Path) -> None:
    images = opened(galaxy10(tmp_path / "g.h5"))
    assert len(images) == 4 and images.labels.tolist() == [0, 1, 2, 9]
    assert images.labels.dtype == np.int64 and not images.simulated
    assert images.ra[1] == 10.02 and images.pixscale[0] == 0.262
    (chunk,) = images.raw()
    np.testing.assert_array_equal(chunk[2], picture(2))
    pixels = images.pixels(Recipe(image_size=24, field_pixels=24))
    assert pixels.dtype == torch.uint8 and pixels.shape == (4, 3, 24, 24)
    np.testing.assert_array_equal(pixels[3].permute(1, 2, 0).numpy(), picture(3))


def test_positions_and_scales_may_be_missing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file["images"], file["ans"] = hdf5_columns(3)["images"], [1, 2, 3]
    images = opened(tmp_path / "g.h5")
    assert np.isnan(images.ra).all() and np.isnan(images.pixscale).all()


def test_the_digest_follows_labels_positions_and_pixels(tmp_path: Path) -> None:
    """Other pixels must give another model: training again what exists is a no-op."""
    path = tmp_path / "g.h5"
    columns = hdf5_columns(4)
    first = opened(galaxy10(path)).digest
    assert opened(galaxy10(tmp_path / "other.h5")).digest == first
    assert opened(galaxy10(path, [0, 1, 2, 8])).digest != first
    assert opened(galaxy10(path, ra=columns["ra"] + 1)).digest != first
    assert opened(galaxy10(path, images=255 - columns["images"])).digest != first


@pytest.mark.parametrize(
    ("labels", "columns", "message"),
    [
        ([0, 10], {}, "labels from 0 to 10, expected 0 to 9"),
        ([-1, 3], {}, "labels from -1 to 3"),
        ([], {}, "no labelled images"),
        ([1, 2], {"ans": np.array([1, 2, 3])}, "`ans` has shape"),
        ([1, 2], {"ra": np.array([1.0])}, "`ra` has shape"),
        ([1, 2], {"images": np.zeros((2, 8, 8, 4), "u1")}, "expected uint8"),
        ([1, 2], {"images": np.zeros((2, 3, 8, 8), "f4")}, "expected uint8"),
    ],
)
def test_files_that_are_no_galaxy10(tmp_path: Path, labels: list[int], columns: dict, message: str) -> None:
    path = galaxy10(tmp_path / "g.h5", labels, **columns)
    with pytest.raises(UserError) as error:
        opened(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_unreadable_files_are_errors_for_a_person(tmp_path: Path) -> None:
    path = galaxy10(tmp_path / "g.h5", list(range(10)))
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info_by_coord((5, 0, 0, 0))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="can not be read as a Galaxy10 file"):
        opened(path)
    path.write_bytes(whole[: chunk.byte_offset + 20] + b"\0" * 50 + whole[chunk.byte_offset + 70 :])
    with pytest.raises(UserError, match="can not be read"):
        opened(path).pixels(Recipe(image_size=24, field_pixels=24))


# --- pictures with a table ------------------------------------------------------------------------------------------


def labelled(folder: Path, labels: list[object], column: str = "label", **more: object) -> Path:
    write_pictures(folder / "images", len(labels))
    rows = [{"file": f"p{i:03d}.jpg", column: label, "ra": 1 + i, "dec": 2, **more} for i, label in enumerate(labels)]
    return write_table(folder / "labels.csv", rows)


def open_table(table: Path, label_column: str = "") -> ImageSet:
    return open_pictures(table.parent, table, InputSettings(), 10, label_column)


@pytest.mark.parametrize("column", ["label", "galaxy10_label", "Label_ID", "ans"])
def test_the_label_column_is_found_by_its_name(tmp_path: Path, column: str) -> None:
    images = open_table(labelled(tmp_path, [3, 4, 5], column))
    assert images.labels.tolist() == [3, 4, 5] and images.ra.tolist() == [1, 2, 3]
    assert sum(len(chunk) for chunk in images.raw()) == 3


def test_negative_and_empty_labels_are_left_out(tmp_path: Path) -> None:
    images = open_table(labelled(tmp_path, [3, -1, "", "7.0"]))
    assert images.labels.tolist() == [3, 7] and images.ra.tolist() == [1, 4]
    with pytest.raises(UserError, match="no row with a label"):
        open_table(labelled(tmp_path / "none", [-1, -1]))


def test_two_label_columns_need_a_choice(tmp_path: Path) -> None:
    table = labelled(tmp_path, [3, 4], galaxy10_label=5)
    with pytest.raises(UserError, match="--label-column"):
        open_table(table)
    assert open_table(table, "Galaxy10_Label").labels.tolist() == [5, 5]
    with pytest.raises(UserError, match=r"no column 'morph'.*label_column"):
        open_table(table, "morph")
    with pytest.raises(UserError, match="Found none"):
        open_table(labelled(tmp_path / "x", [3], "morph"))


@pytest.mark.parametrize("label", ["spiral", "1.5", "inf", "nan"])
def test_a_label_that_is_no_number(tmp_path: Path, label: str) -> None:
    with pytest.raises(UserError, match="no class number"):
        open_table(labelled(tmp_path, [3, label]))


def test_a_picture_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    table = labelled(tmp_path, [3, 4])
    (tmp_path / "images" / "p001.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"p001\.jpg.*negative label"):
        list(open_table(table).raw())
    (tmp_path / "images" / "p001.jpg").unlink()
    with pytest.raises(UserError, match=r"p001\.jpg, which is neither in"):
        open_table(table)


def test_what_the_user_named_is_opened(tmp_path: Path) -> None:
    table = labelled(tmp_path / "set", [3, 4])
    path = galaxy10(tmp_path / "g.h5")

    def open_named(**named: Path | None) -> ImageSet:
        given = {"galaxy10": None, "pictures": None, "table": None, **named}
        return open_images(**given, default=path, settings=InputSettings(), label_column="", num_classes=10)

    assert open_named().kind == "galaxy10" == open_named(galaxy10=path).kind
    assert open_named(pictures=table.parent, table=table).kind.startswith("pictures")
    for wrong in (
        {"pictures": table.parent},
        {"table": table},
        {"galaxy10": path, "table": table},
        {"galaxy10": tmp_path / "gone.h5"},
        {"pictures": tmp_path / "gone", "table": table},
    ):
        with pytest.raises(UserError):
            open_named(**wrong)


# --- groups and splits ----------------------------------------------------------------------------------------------


def groups(*positions: tuple[float, float]) -> list[int]:
    """Groups as small numbers in the order of their first member."""
    found = position_groups(*(np.array(axis, dtype=float) for axis in zip(*positions, strict=True)))
    return [list(dict.fromkeys(found.tolist())).index(g) for g in found]


@pytest.mark.parametrize("dec", [0.0, 60.0, 89.9])
def test_positions_within_an_arcsec_are_one(dec: float) -> None:
    stretch = 1 / np.cos(np.radians(dec))
    at = 100.0
    assert groups((at, dec), (at + 0.9 * ARCSEC * stretch, dec), (at + 2.5 * ARCSEC * stretch, dec)) == [0, 0, 1]
    assert groups((at, dec), (at + 1.1 * ARCSEC * stretch, dec)) == [0, 1]
    assert groups((at, dec), (at, dec + 0.9 * ARCSEC), (at, dec + 2.5 * ARCSEC)) == [0, 0, 1]


def test_positions_on_both_sides_of_zero_and_around_the_poles() -> None:
    assert groups((0.0001, 10), (359.99995, 10), (359.9995, 10)) == [0, 0, 1]
    assert groups((0, 90 - 0.3 * ARCSEC), (180, 90 - 0.3 * ARCSEC), (90, 90 - 3 * ARCSEC)) == [0, 0, 1]
    assert groups((0, -90), (123, -90)) == [0, 0]


def test_chains_hang_together_and_unknown_positions_stay_alone() -> None:
    assert groups((5, 0), (5 + 0.8 * ARCSEC, 0), (5 + 1.6 * ARCSEC, 0)) == [0, 0, 0]
    nan = float("nan")
    assert groups((nan, nan), (nan, nan), (5, 0), (5, nan)) == [0, 1, 2, 3]
    assert position_groups(np.array([]), np.array([])).shape == (0,)


def image_set(labels: np.ndarray, ra: np.ndarray, dec: np.ndarray) -> ImageSet:
    scale = np.full(len(labels), 0.262)
    return ImageSet("memory", "test", labels, ra, dec, scale, "rule", False, lambda: iter(()))


@settings(max_examples=60, deadline=None)
@given(st.integers(30, 300), st.integers(0, 10**6), st.floats(0.05, 0.3), st.floats(0, 0.3))
def test_a_split_is_complete_disjoint_grouped_and_seeded(count: int, seed: int, validation: float, test: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    place = rng.integers(0, count, count)  # about a third of the positions come more than once
    images = image_set(labels, place * 0.01, np.zeros(count))
    parts = split(images, validation=validation, test=test, seed=seed)
    together = np.concatenate([parts.train, parts.validation, parts.test])
    assert np.sort(together).tolist() == list(range(count))
    for one, other in ((parts.train, parts.validation), (parts.train, parts.test), (parts.validation, parts.test)):
        assert not set(place[one]) & set(place[other])
    again = split(images, validation=validation, test=test, seed=seed)
    assert again.digest == parts.digest
    assert all((np.diff(rows) > 0).all() for rows in (parts.train, parts.validation, parts.test))


def test_a_split_has_every_class_in_proportion_and_another_seed_is_another() -> None:
    labels = np.repeat([0, 1, 2], [1000, 200, 40])
    images = image_set(labels, np.arange(1240) * 0.01, np.zeros(1240))
    parts = split(images, validation=0.1, test=0.2, seed=1)
    assert np.bincount(labels[parts.test]).tolist() == [200, 40, 8]
    assert np.bincount(labels[parts.validation]).tolist() == [100, 20, 4]
    other = split(images, validation=0.1, test=0.2, seed=2)
    assert other.digest != parts.digest and len(set(other.test) & set(parts.test)) < 100


def test_the_doubles_of_the_real_galaxy10_stay_together(shared: Path) -> None:
    path = shared / "data/galaxy10_decals/catalog/galaxy10_decals_radec_label.csv"
    with path.open() as handle:
        rows = list(csv.DictReader(handle))
    ra, dec = (np.array([float(row[name]) for row in rows]) for name in ("ra", "dec"))
    labels = np.array([int(row["label"]) for row in rows])
    known = np.array([int(row["dup_group"]) for row in rows])
    found = position_groups(ra, dec)
    _, counts = np.unique(found, return_counts=True)
    assert len(rows) == 17736 and (counts == 2).sum() == 59 and counts.max() == 2
    parts = split(image_set(labels, ra, dec), validation=0.1, test=0.15, seed=0)
    where = np.zeros(len(rows), int)
    where[parts.validation], where[parts.test] = 1, 2
    for group in np.unique(known[known >= 0]):
        members = np.flatnonzero(known == group)
        assert len(set(found[members])) == 1 and len(set(where[members])) == 1


def test_the_real_images(shared: Path) -> None:
    folder = shared / "data/galaxy10_decals"
    images = open_pictures(folder, folder / "labels.csv", InputSettings(), 10)
    assert np.bincount(images.labels).tolist() == [6] * 10
    assert images.pixels(Recipe(image_size=64)).shape == (60, 3, 64, 64)
