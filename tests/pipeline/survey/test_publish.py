"""Releases of a workspace: the same wherever their units run, and failures with a message."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from catalogs.errors import CatalogError
from catalogs.releases.build import publish
from catalogs.releases.partition_writer import PartitionJob
from catalogs.releases.registry import current_release, layout_of
from catalogs.tiles import tile_path
from pipeline.config.workers import WorkerSettings
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.core.errors import is_transient
from pipeline.survey.publish import build_release, on_workers
from tests.catalogs.conftest import MODEL, commit_tile


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = open_workspace(tmp_path, ["release.max_rows=4", "release.exports=false"])
    commit_tile(workspace.catalog, "a-tile", list(range(10, 19)))
    commit_tile(workspace.catalog, "b-tile", list(range(20, 24)), quarantined=1)
    return workspace


def test_settings_reach_the_release(workspace: Workspace) -> None:
    info = build_release(workspace, MODEL)
    assert info is not None and info.max_rows == 4 and info.partitions > 3
    assert not layout_of(workspace.catalog, info.release).export.exists()


def test_a_damaged_tile_is_named_and_nothing_is_published(workspace: Workspace) -> None:
    path = tile_path(workspace.catalog, MODEL, "b-tile")
    content = bytearray(path.read_bytes())
    footer = pq.read_metadata(path)
    last = footer.row_group(0).column(footer.num_columns - 1).data_page_offset
    content[last : last + 40] = bytes(40)  # a column that the plan does not read
    path.write_bytes(content)
    with pytest.raises(CatalogError, match=r"^/.*b-tile\.parquet: damaged"):
        build_release(workspace, MODEL)
    assert current_release(workspace.catalog) is None


def test_a_bug_in_a_unit_keeps_its_traceback() -> None:
    units = on_workers(WorkerSettings())
    with pytest.raises(RuntimeError, match="Traceback"):
        list(units("failing", _fail, [PartitionJob("", 0, 0, 1)]))


def _fail(job: PartitionJob) -> None:
    raise ZeroDivisionError


def test_a_full_disk_is_no_bug_and_worth_another_try() -> None:
    units = on_workers(WorkerSettings(retries=0))
    with pytest.raises(OSError, match="pixel 0 of order 0: No space left") as raised:
        list(units("failing", _fill, [PartitionJob("", 0, 0, 1)]))
    assert is_transient(raised.value)


def _fill(job: PartitionJob) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
def test_workers_make_the_same_release(workspace: Workspace) -> None:
    first = build_release(workspace, MODEL)
    assert first is not None
    (workspace.catalog / "CURRENT").unlink()
    (workspace.catalog / "releases").rename(workspace.catalog / "others")
    workers = on_workers(WorkerSettings(kind="local", count=2), few_rows=0)
    second = publish(workspace.catalog, MODEL, max_rows=4, exports=False, run_units=workers)
    assert second is not None
    one = pq.read_table(workspace.catalog / "others" / first.release / "sidecar" / "partitions.parquet")
    other = pq.read_table(layout_of(workspace.catalog, second.release).provenance / "partitions.parquet")
    assert one.equals(other)  # checksums of the partition files among them
