"""The plan of a survey run: the model, the sky tiles, and which of them need work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from models.errors import ModelError
from pipeline.config.workspace import open_workspace
from pipeline.core.errors import UserError
from pipeline.survey.plan import find_inputs, make_plan, start_run
from pipeline.survey.run import classify_tiles
from pipeline.survey.summary import make_summary
from tests.conftest import Small
from tests.pipeline.makers import write_cutouts
from tests.pipeline.survey_driver import run


def test_nothing_to_survey_and_nothing_to_survey_with(small: Small, tmp_path: Path) -> None:
    empty = small.elsewhere(tmp_path)
    with pytest.raises(UserError, match=r"incoming: no such folder"):
        run(empty)
    empty.incoming.mkdir()
    (empty.incoming / "readme.txt").write_text("nothing here")
    with pytest.raises(UserError, match=r"no sky tiles in .*incoming"):
        run(empty)
    with pytest.raises(UserError, match=r"no model in .*train"):
        start_run(open_workspace(tmp_path), None)
    with pytest.raises(ModelError, match=f"no model 'cpu_tiny-0'.*{small.card.model_id[:6]}"):
        start_run(empty, "cpu_tiny-0")


def test_a_source_never_overwrites_another_of_its_name(small: Small, tmp_path: Path) -> None:
    """Another folder of the same last two names, in a later run, is refused as long as the first is there."""
    workspace = small.elsewhere(tmp_path / "W")
    first, second = tmp_path / "one" / "night" / "C", tmp_path / "two" / "night" / "C"
    write_cutouts(first, 3)
    write_cutouts(second, 2)
    current = start_run(workspace, None)

    def classified(place: Path) -> int:
        tiles = find_inputs(workspace, [place]).tiles
        classify_tiles(workspace, current, make_plan(workspace, current, tiles))
        return make_summary(workspace, current, tiles, 0, {}, None, None).classified

    assert classified(first) == 3
    with pytest.raises(UserError, match=r"has the same name as .*one/night/C"):
        classified(second)
    assert len(list((workspace.catalog / "tiles").rglob("*.parquet"))) == 1
    first.rename(tmp_path / "moved")
    assert classified(second) == 2


def test_a_moved_workspace_has_nothing_to_do(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path / "W")
    write_cutouts(workspace.incoming / "C", 3)
    run(workspace)
    shutil.copytree(tmp_path / "W", tmp_path / "copy" / "W", symlinks=True)  # both are there: no conflict
    again = run(small.elsewhere(tmp_path / "copy" / "W"))
    assert (again.tiles, again.skipped_tiles) == (1, 1)
