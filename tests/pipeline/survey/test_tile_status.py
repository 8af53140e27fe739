"""What became of sky tiles: their state, and the outcomes of their inputs."""

from __future__ import annotations

import time
from pathlib import Path

from catalogs.tiles import DUPLICATE
from pipeline.survey.plan import tiles_in
from pipeline.survey.tile_status import (
    CLASSIFIED,
    UNCLASSIFIED,
    TileState,
    TileStatuses,
    count_outcomes,
    current_commits,
    last_commit,
)
from pipeline.tiles.file_names import MANIFEST
from tests.catalogs.conftest import make_stamp, quarantine_entry
from tests.conftest import Small
from tests.pipeline.makers import galaxy, write_cutout, write_cutouts
from tests.pipeline.survey_driver import run


def test_a_tile_is_done_to_do_or_arriving(small: Small, tmp_path: Path) -> None:
    workspace, model_id = small.elsewhere(tmp_path), small.card.model_id
    for name in ("done", "changed"):
        write_cutouts(workspace.incoming / name, 2)
    write_cutout(workspace.incoming / "done" / "nowhere.fits", CTYPE1=None)
    run(workspace)
    write_cutout(workspace.incoming / "changed" / "g000.fits", galaxy(9))
    write_cutouts(workspace.incoming / "late", 1)
    (workspace.incoming / "late" / MANIFEST).write_text(f"{'0' * 64}  g000.fits\n{'0' * 64}  g001.fits\n")

    tiles = {Path(tile.path).name: tile for tile in tiles_in(workspace, [])}
    statuses = TileStatuses(workspace, small.card, list(tiles.values()), time.time())
    assert {name: statuses.state(tile) for name, tile in tiles.items()} == {
        "changed": TileState.TO_DO,
        "done": TileState.DONE,
        "late": TileState.ARRIVING,
    }
    assert statuses.waiting_for(tiles["late"]) == "1 of 2 files of manifest.sha256 are not there yet"
    assert statuses.waiting_for(tiles["done"]) == statuses.waiting_for(tiles["changed"]) == ""
    assert statuses.commit(tiles["done"]).classified == 2
    assert statuses.rows(tiles["done"], ["source_name"]).num_rows == 2
    # The rows of a changed tile stand until it is done again, but say nothing of the files as they are now.
    assert last_commit(workspace.catalog, model_id, tiles["changed"]) is not None
    assert [commit.source for commit in current_commits(workspace.catalog, model_id, tiles.values())] == [
        tiles["done"].source
    ]

    again = TileStatuses(workspace, small.card, [tiles["done"]], time.time(), frozenset({"no_wcs"}))
    assert again.state(tiles["done"]) is TileState.TO_DO
    without_model = TileStatuses(workspace, None, list(tiles.values()), time.time())
    assert without_model.plan.done == [] and without_model.state(tiles["late"]) is TileState.ARRIVING


def test_outcomes_are_counted_over_tiles() -> None:
    entries = [quarantine_entry("a", "no_wcs"), quarantine_entry("b", DUPLICATE)]
    commits = [make_stamp("one", 3, 1, quarantine=entries), make_stamp("two", 2, quarantine=entries[:1])]
    outcomes = count_outcomes(commits)
    assert outcomes == {CLASSIFIED: 5, UNCLASSIFIED: 1, "no_wcs": 2, DUPLICATE: 1}
    assert outcomes.total() == sum(commit.inputs for commit in commits)
