"""A patch: some of many tiles are replaced. The next release rewrites only their pixels and names what changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from catalogs.healpix import healpix_29
from catalogs.paths import Partition, ReleaseLayout
from catalogs.releases.partitioning import pixel_range
from catalogs.releases.registry import layout_of
from catalogs.schema import count_classified
from catalogs.tiles import commit
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.survey.publish import build_release
from tests.catalogs.conftest import MODEL, make_stamp, make_table

TILES, ROWS = 40, 10
REPLACED = (3, 4, 21)
LABELLED_ANEW, OTHER_PIXELS, MASKED, GONE, NEW = 30, 41, 215, 219, 9_000  # object ids


def positions(ids: np.ndarray) -> dict[str, Any]:
    """Ten objects along each of forty small arcs, four degrees from each other; the new one lies in tile 4's."""
    index = np.where(ids == NEW, 45.5, ids)
    ra, dec = index // ROWS * 4.0 + index % ROWS * 0.01, (index // ROWS % 5) * 9.0 - 20 + 0.005 * (index % ROWS)
    return {"ra": ra, "dec": dec, "_healpix_29": healpix_29(ra, dec)}


def commit_tile(workspace: Workspace, number: int, ids: np.ndarray, made_of: str, **values: Any) -> None:
    table = make_table(f"tile-{number:02d}", ids.tolist(), **positions(ids), **values)
    assert count_classified(table) == len(ids)
    commit(workspace.catalog, table, make_stamp(f"tile-{number:02d}", len(ids), fingerprint=made_of))


def patch(workspace: Workspace) -> None:
    """Replace three tiles: each of the objects above changes in its own way, all others stay as they are."""
    ids = np.arange(30, 40)
    usual = make_table("", ids.tolist())
    other = make_table("", np.where(ids == LABELLED_ANEW, LABELLED_ANEW + 1, ids).tolist())
    predicted = [n for n in usual.column_names if n.startswith("p_")]
    predicted += ["label", "label_id", "confidence", "confidence_gap", "entropy", "pred_set", "pred_set_size"]
    assert usual["label_id"][0] != other["label_id"][0]
    digests = np.where(ids == LABELLED_ANEW, 7, ids)
    columns: dict[str, Any] = {n: other[n].to_numpy(zero_copy_only=False) for n in (*predicted, "is_reliable")}
    commit_tile(workspace, 3, ids, "other-3", input_digest=digests, **columns)

    ids = np.append(np.arange(40, 50), NEW)
    commit_tile(workspace, 4, ids, "other-4", input_digest=np.where(ids == OTHER_PIXELS, 7, ids))

    ids = np.arange(210, 219)  # without the last
    commit_tile(workspace, 21, ids, "other-21", maskbits=np.where(ids == MASKED, 2, -1).astype(np.int32))


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReleaseLayout, ReleaseLayout]:
    """The releases before and after the patch."""
    workspace = open_workspace(tmp_path_factory.mktemp("patch"), ["release.max_rows=30", "release.exports=false"])
    for number in range(TILES):
        commit_tile(workspace, number, np.arange(number * ROWS, (number + 1) * ROWS), f"first-{number}")
    first = build_release(workspace, MODEL)
    patch(workspace)
    second = build_release(workspace, MODEL)
    assert first is not None and second is not None and first.objects == second.objects == TILES * ROWS
    return layout_of(workspace.catalog, first.release), layout_of(workspace.catalog, second.release)


def inode(layout: ReleaseLayout, partition: Partition) -> int:
    return layout.partition_file(partition.order, partition.pixel).stat().st_ino


def test_only_pixels_of_replaced_tiles_are_rewritten(releases: tuple[ReleaseLayout, ReleaseLayout]) -> None:
    old, new = releases
    before = {inode(old, partition) for partition in old.partitions()}
    rewritten = {partition for partition in new.partitions() if inode(new, partition) not in before}
    index = np.sort(np.concatenate([positions(np.arange(n * ROWS, (n + 1) * ROWS))["_healpix_29"] for n in REPLACED]))
    within = {p for p in new.partitions() if np.diff(np.searchsorted(index, pixel_range(p)))[0]}
    assert rewritten == within and len(REPLACED) <= len(within) < len(new.partitions()) / 2
    made = pq.read_table(new.provenance / "partitions.parquet").to_pylist()
    assert {(row["order"], row["pixel"]) for row in made if row["made"] == "written"} == {
        (p.order, p.pixel) for p in within
    }
    assert {row["made"] for row in made} == {"written", "carried"}


def test_exactly_the_changed_objects_are_named(releases: tuple[ReleaseLayout, ReleaseLayout]) -> None:
    changes = pq.read_table(releases[1].provenance / "changes.parquet").to_pylist()
    assert {row["object_id"]: (row["kind"], row["reason"]) for row in changes} == {
        LABELLED_ANEW: ("label", "pixels"),
        OTHER_PIXELS: ("input", "pixels"),
        MASKED: ("flags", "mask"),
        GONE: ("gone", "input"),
        NEW: ("new", "input"),
    }
    assert len(changes) == 5
