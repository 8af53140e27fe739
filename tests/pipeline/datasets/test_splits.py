"""Splits: complete, disjoint, by sky position, in proportion, and the same whoever asks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.inputs import InputSettings
from pipeline.core.errors import UserError
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.datasets.label_table import LabelTable, read_label_table
from pipeline.datasets.splits import Split, crossing_groups, position_groups, read_split, split, write_split
from tests.pipeline.makers import hdf5_columns, write_hdf5, write_table

ARCSEC = 1 / 3600
TABLE = "data/galaxy10_decals/catalog/galaxy10_decals_radec_label.csv"


def rows_of(labels: np.ndarray, ra: np.ndarray | None = None, dec: np.ndarray | None = None) -> LabelTable:
    """A table with as many classes as there are labels; positions are unknown where not given."""
    unknown = np.full(len(labels), np.nan)
    slugs = tuple(f"class_{i}" for i in range(int(labels.max()) + 1))
    return LabelTable("rows.csv", labels, unknown if ra is None else ra, unknown if dec is None else dec, slugs)


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


@settings(max_examples=60, deadline=None)
@given(st.integers(64, 300), st.integers(0, 10**6), st.floats(0.05, 0.3), st.floats(0, 0.3))
def test_a_split_is_complete_disjoint_grouped_and_seeded(count: int, seed: int, validation: float, test: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(32) % 4, rng.integers(0, 4, count - 32)])
    place = np.concatenate([-1 - np.arange(32), rng.integers(0, count, count - 32)])  # many come more than once
    images = rows_of(labels, place * 0.01, np.zeros(count))
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
    images = rows_of(labels, np.arange(1240) * 0.01, np.zeros(1240))
    parts = split(images, validation=0.1, test=0.2, seed=1)
    assert np.bincount(labels[parts.test]).tolist() == [200, 40, 8]
    assert np.bincount(labels[parts.validation]).tolist() == [100, 20, 4]
    other = split(images, validation=0.1, test=0.2, seed=2)
    assert other.digest != parts.digest and len(set(other.test) & set(parts.test)) < 100


def test_shared_positions_do_not_unbalance_a_class() -> None:
    """A hundred positions of two rows with two labels: each class still has its share to the row."""
    labels = np.concatenate([np.repeat([0, 1], 100), np.repeat([0, 1], [500, 300])])
    ra = np.concatenate([np.tile(np.arange(100), 2) * 0.01, 10 + np.arange(800) * 0.01])
    for seed in range(5):
        parts = split(rows_of(labels, ra, np.zeros(1000)), validation=0.1, test=0.2, seed=seed)
        assert np.bincount(labels[parts.test]).tolist() == [120, 80]
        assert np.bincount(labels[parts.validation]).tolist() == [60, 40]


def test_an_official_test_split_is_the_test_split() -> None:
    rows = replace(rows_of(np.arange(100) % 4), official_test=np.arange(80, 100))
    parts = split(rows, validation=0.1, test=0.3, seed=0)
    assert parts.test.tolist() == list(range(80, 100)) and len(parts.train) + len(parts.validation) == 80
    assert np.bincount(rows.labels[parts.validation]).tolist() == [2, 2, 2, 2]
    leaking = replace(rows, ra=np.repeat([1.0, 2.0, 3.0], [79, 2, 19]), dec=np.zeros(100))
    with pytest.raises(UserError, match="1 sky positions of its official test split are also outside"):
        split(leaking, validation=0.1, test=0, seed=0)


def test_a_class_without_rows_is_named() -> None:
    with pytest.raises(UserError, match=r"rows\.csv: no example of class_1, class_3; .* each of the 5 classes"):
        split(rows_of(np.array([0, 2, 4] * 10)), validation=0.1, test=0.1, seed=0)


def test_a_class_that_nothing_is_left_of_for_training_is_named() -> None:
    rows = rows_of(np.repeat([0, 1], [50, 4]))
    with pytest.raises(UserError, match=r"no training image left of class_1 .*validation_fraction = 0\.45"):
        split(rows, validation=0.45, test=0.45, seed=0)
    for validation, test in ((0.5, 0.5), (-0.1, 0.1), (0.1, -0.1), (0.1, float("nan"))):
        with pytest.raises(UserError, match=r"training\.test_fraction"):
            split(rows, validation=validation, test=test, seed=0)


def test_two_rows_of_a_class_stay_in_training_and_three_give_one_to_validation() -> None:
    labels = np.repeat([0, 1, 2], [30, 2, 3])
    parts = split(rows_of(labels), validation=0.05, test=0.1, seed=0)
    assert np.bincount(labels[parts.train], minlength=3)[1:].tolist() == [2, 2]
    assert (labels[parts.validation] == 2).sum() == 1


# --- the true positions and labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_doubles_of_the_real_galaxy10_stay_together(shared: Path, seed: int) -> None:
    rows = read_label_table(shared / TABLE)
    groups = position_groups(rows.ra, rows.dec)
    _, first, counts = np.unique(groups, return_index=True, return_counts=True)
    assert len(groups) == 17736 and (counts == 2).sum() == 59 and counts.max() == 2
    twice = [np.flatnonzero(groups == groups[row]) for row in first[counts == 2]]
    assert all(rows.labels[one] != rows.labels[other] for one, other in twice)
    with (shared / TABLE).open() as handle:
        known = np.array([int(row["dup_group"]) for row in csv.DictReader(handle)])
    assert all(known[one] == known[other] >= 0 for one, other in twice) and (known >= 0).sum() == 118
    parts = split(rows, validation=0.1, test=0.15, seed=seed)
    assert crossing_groups(groups, parts) == 0
    assert len(parts.train) + len(parts.validation) + len(parts.test) == 17736
    total = np.bincount(rows.labels)
    for members, share in ((parts.train, 0.75), (parts.validation, 0.1), (parts.test, 0.15)):
        assert np.abs(np.bincount(rows.labels[members]) - total * share).max() <= 1


def test_a_table_and_a_file_of_the_same_rows_have_the_same_split(tmp_path: Path) -> None:
    columns = {**hdf5_columns(60), "ans": np.arange(60) % 10}
    images = open_galaxy10(write_hdf5(tmp_path / "g.h5", columns), InputSettings())
    cells = zip(columns["ra"], columns["dec"], columns["ans"], strict=True)
    table = write_table(tmp_path / "t.csv", [{"RA": repr(float(a)), "Dec": float(b), "label": c} for a, b, c in cells])
    rows = read_label_table(table)
    parts = [split(either, validation=0.2, test=0.2, seed=4) for either in (images, rows)]
    assert parts[0].digest == parts[1].digest
    write_split(tmp_path / "split.json", rows, parts[1], validation=0.2, test=0.2, seed=4)
    assert read_split(tmp_path / "split.json", images).digest == parts[0].digest


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"ra": 1, "label": 2}], "no column dec"),
        ([{"ra": 1, "dec": 2}], "which column holds the labels"),
        ([{"ra": 1, "dec": 2, "label": 10}], "labels from 10 to 10"),
        ([{"ra": 1, "dec": 2, "label": ""}], "labels from -1 to -1"),
        ([{"ra": 1, "dec": "north", "label": 1}], "`dec` of 1 rows"),
        ([{"ra": 1, "dec": 2, "label": "round"}], "no class number"),
    ],
)
def test_tables_that_cannot_be_split(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_label_table(write_table(tmp_path / "t.csv", rows))
    with pytest.raises(UserError, match=r"gone\.csv cannot be read"):
        read_label_table(tmp_path / "gone.csv")


# --- kept splits ----------------------------------------------------------------------------------------------------


def kept(path: Path) -> tuple[LabelTable, Split]:
    rows = rows_of(np.arange(40) % 4, np.arange(40) // 2 * 0.01, np.zeros(40))
    parts = split(rows, validation=0.2, test=0.2, seed=0)
    write_split(path, rows, parts, validation=0.2, test=0.2, seed=0)
    return rows, parts


def test_a_split_comes_back_as_it_was(tmp_path: Path) -> None:
    rows, parts = kept(tmp_path / "split.json")
    again = read_split(tmp_path / "split.json", rows)
    assert again.digest == parts.digest and again.train.tolist() == parts.train.tolist()
    values = json.loads((tmp_path / "split.json").read_text())
    assert values["seed"] == 0 and values["fractions"] == {"validation": 0.2, "test": 0.2}
    assert values["source"] == "rows.csv" and values["source_digest"] == rows.digest


def redone(values: dict[str, Any]) -> dict[str, Any]:
    """With the digest that belongs to its lists."""
    parts = Split(*(np.array(values[name]) for name in ("train", "validation", "test")))
    return {**values, "digest": parts.digest}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {**v, "train": v["train"][1:]}, "its digest is"),
        (lambda v: {k: v[k] for k in v if k != "test"}, "it has no list 'test'"),
        (lambda v: {**v, "test": [1.5]}, "something else than row numbers"),
        (lambda v: redone({**v, "test": v["test"][::-1]}), "not in ascending order"),
        (lambda v: redone({**v, "test": [*v["test"], 40]}), "rows from 0 to 40, rows.csv has 0 to 39"),
        (lambda v: redone({**v, "test": sorted({*v["test"], v["train"][0]})}), "1 rows are in more than one"),
        (lambda v: redone({**v, "train": v["train"][1:], "validation": v["train"][:1]}), "1 sky positions are in more"),
        (lambda v: redone({**v, "train": [], "validation": []}), "no training row of class_0"),
        (lambda v: {**v, "labels_digest": "0" * 16}, "whose labels are not those of rows.csv"),
        (lambda v: [v], "cannot be used as a split"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    path = tmp_path / "split.json"
    rows, _ = kept(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message) as error:
        read_split(path, rows)
    assert str(path) in str(error.value)


def test_a_split_that_is_no_file(tmp_path: Path) -> None:
    rows, _ = kept(tmp_path / "split.json")
    with pytest.raises(UserError, match="cannot be used as a split"):
        read_split(tmp_path / "gone.json", rows)
    (tmp_path / "split.json").write_text('{"train": [')
    with pytest.raises(UserError, match="cannot be used as a split"):
        read_split(tmp_path / "split.json", rows)
