"""A survey on workers that others have started: what dies meanwhile changes no row."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from catalogs.releases.registry import current_release
from pipeline.config.workspace import Workspace
from pipeline.core.errors import ClusterLost
from tests.conftest import Small
from tests.pipeline.dask_processes import Started, started, wait_until
from tests.pipeline.survey.test_run import committed_tiles, rows_of, same_rows, sky
from tests.pipeline.survey_driver import run

pytestmark = pytest.mark.slow
OVERRIDES = ("survey.rows=5", "survey.batch=4")


def workspace_on(cluster: Started, small: Small, root: Path) -> Workspace:
    sky(root, large=300)
    return small.elsewhere(root, *OVERRIDES, "workers.kind=connect", f'workers.address="{cluster.file}"')


@contextmanager
def when_some_are_committed(workspace: Workspace, act: Callable[[], None]) -> Iterator[None]:
    """Do something after the first tiles, while the block runs."""

    def watch() -> None:
        wait_until(lambda: len(committed_tiles(workspace)) >= 3)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


@pytest.fixture(scope="module")
def undisturbed(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("undisturbed")
    sky(root, large=300)
    workspace = small.elsewhere(root, *OVERRIDES)
    run(workspace)
    return workspace


def test_a_worker_killed_within_a_tile_changes_no_row(small: Small, undisturbed: Workspace, tmp_path: Path) -> None:
    with started(tmp_path) as cluster:
        workspace, killed = workspace_on(cluster, small, tmp_path), []

        def kill() -> None:
            killed.append(cluster.workers()[0])  # each has tiles waiting, so that it is within one
            killed[0].kill()

        with when_some_are_committed(workspace, kill):
            total = run(workspace)
        assert killed and not psutil.pid_exists(killed[0].pid)
        assert not total.failed and cluster.scheduler.poll() is None
    same_rows(rows_of(workspace), rows_of(undisturbed), atol=2e-4)


def test_a_scheduler_that_dies_ends_the_run_and_the_next_completes_it(
    small: Small, undisturbed: Workspace, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with started(first) as cluster:
        workspace = workspace_on(cluster, small, tmp_path)
        lost = pytest.raises(ClusterLost, match=r"scheduler went away: \d+ of \d+ units are done and stay")
        with when_some_are_committed(workspace, cluster.scheduler.kill), lost:
            run(workspace)
    half_way = len(committed_tiles(workspace))
    assert half_way >= 3 and current_release(workspace.catalog) is None
    with started(second) as cluster:
        again = small.elsewhere(tmp_path, *OVERRIDES, "workers.kind=connect", f'workers.address="{cluster.file}"')
        total = run(again)
    assert not total.failed and half_way <= total.skipped_tiles < total.tiles
    same_rows(rows_of(workspace), rows_of(undisturbed), atol=2e-4)
