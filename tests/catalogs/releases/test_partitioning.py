"""Which pixels a release has, and which rows go where: checked against slow, plain ways to say the same."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs.releases.partitioning import (
    DEEPEST_ORDER,
    ReleasePlan,
    adaptive_partitions,
    pixel_range,
    plan_release,
    second_rows,
)
from catalogs.tiles import committed
from tests.catalogs.conftest import MODEL, commit_tile

ids = st.lists(st.integers(0, 6), max_size=12)


@given(ids, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_of_each_object_the_first_row_by_position_and_number_stays(numbers: list[int], random: object) -> None:
    positions = np.array([random.randint(0, 3) for _ in numbers], dtype=np.int64)  # type: ignore[attr-defined]
    dropped = second_rows(np.array(numbers, dtype=np.int64), positions)
    first: dict[int, int] = {}
    for row in sorted(range(len(numbers)), key=lambda row: (positions[row], row)):
        first.setdefault(numbers[row], row)
    assert dropped.tolist() == sorted(set(range(len(numbers))) - set(first.values()))


def test_partitions_are_the_largest_pixels_that_are_not_too_full() -> None:
    rng = np.random.default_rng(2)
    spread = rng.integers(0, 12 << 58, 400)
    crowded = (7 << 58) + rng.integers(0, 1 << 40, 300)
    positions = np.concatenate([spread, crowded]).astype(np.int64)
    partitions = adaptive_partitions(positions, 50)
    covered = [pixel_range(p) for p in partitions]
    assert all(end <= begin for (_, end), (begin, _) in pairwise(covered))  # apart, in order
    for partition, (begin, end) in zip(partitions, covered, strict=True):
        assert partition.rows == ((positions >= begin) & (positions < end)).sum() <= 50
        shift = 2 * (29 - partition.order + 1)
        above = ((positions >> shift) == partition.pixel >> 2).sum()
        assert partition.order == 0 or above > 50  # the next larger pixel would be too full
    assert sum(p.rows for p in partitions) == 700 and max(p.order for p in partitions) > 3


def test_partitions_are_those_of_hats_where_it_can_say() -> None:
    from hats.pixel_math import generate_alignment

    positions = np.random.default_rng(3).integers(0, 12 << 58, 500).astype(np.int64)
    histogram = np.bincount(positions >> 2 * (29 - 4), minlength=12 * 4**4)
    theirs = {entry for entry in generate_alignment(histogram, highest_order=4, threshold=20) if entry is not None}
    ours = {(p.order, p.pixel, p.rows) for p in adaptive_partitions(positions, 20)}
    assert ours == {(int(order), int(pixel), int(rows)) for order, pixel, rows in theirs if rows}


def test_many_objects_at_one_place_do_not_go_deeper_than_the_deepest_order() -> None:
    partitions = adaptive_partitions(np.full(9, 5 << 40, dtype=np.int64), 2)
    assert [(p.order, p.rows) for p in partitions] == [(DEEPEST_ORDER, 9)]
    assert adaptive_partitions(np.empty(0, np.int64), 2) == []


def planned(catalog: Path, made_by: str = "test") -> ReleasePlan:
    return plan_release(list(committed(catalog, MODEL)), 3, made_by)


def test_each_row_is_planned_once_and_cells_are_counted(catalog: Path) -> None:
    commit_tile(catalog, "c-tile", [13, 25, 31])
    found = planned(catalog)
    assert found.rows == 10 == found.counts.sum() and len(found.pixels) > 3
    assert {(d.tile_id, d.row) for d in found.duplicates} == {("c-tile", 0), ("c-tile", 1)}
    shares = [share for pixel in found.pixels for share in pixel.tiles]
    assert {(Path(share.path).stem, row) for share in shares for row in share.left_out} <= {
        ("c-tile", 0),
        ("c-tile", 1),
    }


@pytest.mark.parametrize("change", [{"fingerprint": "new"}, {"recipe_digest": "new"}, {"run_id": "new"}])
def test_a_digest_changes_with_what_a_leaf_is_made_from_and_with_nothing_else(
    catalog: Path, change: dict[str, str]
) -> None:
    before = {p.partition: p.digest for p in planned(catalog).pixels}
    assert {p.partition: p.digest for p in planned(catalog).pixels} == before
    commit_tile(catalog, "b-tile", [11, 12, 13, 14], unclassified=[12], **change)
    after = {p.partition: p.digest for p in planned(catalog).pixels}
    touched = {p.partition for p in planned(catalog).pixels if any("b-tile" in share.path for share in p.tiles)}
    assert {p for p in before if before[p] != after[p]} == touched != set(before)
    assert not set(before.values()) & {p.digest for p in planned(catalog, "another format").pixels}
