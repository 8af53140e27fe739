"""Folders of pictures with a table of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.preprocessing import Preprocessing
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import UserError
from pipeline.datasets.image_folder import open_pictures
from pipeline.datasets.image_set import ImageSet
from tests.pipeline.makers import write_pictures, write_table


def labelled(folder: Path, labels: list[object], column: str = "label", **more: object) -> Path:
    write_pictures(folder / "images", len(labels))
    rows = [{"file": f"p{i:03d}.jpg", column: label, "ra": 1 + i, "dec": 2, **more} for i, label in enumerate(labels)]
    return write_table(folder / "labels.csv", rows)


def open_table(table: Path, label_column: str = "") -> ImageSet:
    return open_pictures(table.parent, table, InputSettings(), label_column)


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
    with pytest.raises(UserError, match=r"no column 'morph' \(--label-column\)"):
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
    with pytest.raises(UserError, match=r"p001\.jpg.*take it out of the table"):
        list(open_table(table).raw())
    (tmp_path / "images" / "p001.jpg").unlink()
    with pytest.raises(UserError, match=r"p001\.jpg, which is neither in"):
        open_table(table)


def test_labels_beyond_the_ten_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="labels from 3 to 10, expected 0 to 9"):
        open_table(labelled(tmp_path, [3, 10]))


def test_the_real_images(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/galaxy10_decals"
    images = open_pictures(folder, folder / "labels.csv", InputSettings())
    assert np.bincount(images.labels).tolist() == [6] * 10
    assert images.pixels(Preprocessing(image_size=64), tmp_path).shape == (60, 3, 64, 64)
