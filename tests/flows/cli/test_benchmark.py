"""`morphcat benchmark` as a user types it, with Prefect's real server."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from flows.cli.benchmark import EXIT_EXPERIMENTS_FAILED
from flows.cli.main import main
from models.artifacts.registry import champion, list_models
from models.preprocessing import colour_rule
from pipeline.simulation import write_galaxy10
from tests.conftest import SMALL_TRAINING

SETTINGS = [word for setting in (*SMALL_TRAINING, "training.epochs=1") for word in ("--set", setting)]
GRID = ["benchmark", "--layouts", "CCCT,CCCC", "--seeds", "0"]


class Typed:
    """Types commands into one workspace; keeps what came out."""

    def __init__(self, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.workspace, self.capsys = workspace, capsys

    def __call__(self, *words: object, status: int = 0) -> tuple[str, str]:
        got = main(["--workspace", str(self.workspace), *SETTINGS, *map(str, words)])
        out, err = self.capsys.readouterr()
        assert got == status, err
        return out, err


@pytest.fixture
def typed(
    tmp_path: Path, prefect_server: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Typed:
    monkeypatch.setenv("PREFECT_HOME", os.environ.get("PREFECT_HOME", str(tmp_path / ".prefect")))
    write_galaxy10(tmp_path / "benchmark" / "galaxy10.h5", seed=3, images=60, render=colour_rule)
    return Typed(tmp_path, capsys)


def test_recipes_is_the_old_name_of_presets(typed: Typed) -> None:
    asked = ["benchmark", "--seeds", "0", "--dry-run", "--json"]
    by_new, _ = typed(*asked, "--presets", "galaxy,plain")
    by_old, told = typed(*asked, "--recipes", "galaxy,plain")
    assert by_old == by_new and len(json.loads(by_new)["cells"]) == 2
    assert "--recipes is now called --presets" in told
    with pytest.raises(SystemExit):
        typed(*asked, "--presets", "galaxy", "--recipes", "plain")


def test_a_grid_from_plan_to_board(typed: Typed) -> None:
    plan = json.loads(typed(*GRID, "--dry-run", "--json")[0])
    assert [cell["state"] for cell in plan["cells"]] == ["to do", "to do"]
    assert list_models(typed.workspace / "models") == []

    shown, told = typed(*GRID)
    assert "SIMULATED images" in shown and "cpu_tiny CCCC galaxy" in shown and "board.md" in shown
    assert "2 of 2" in told and champion(typed.workspace / "models") is None
    assert sorted(list_models(typed.workspace / "models")) == sorted(cell["model"] for cell in plan["cells"])

    board = json.loads(typed(*GRID, "--json")[0])  # by now everything is done
    assert board["simulated"] is True and board["failed"] == [] and len(board["rows"]) == 2
    cells = pd.read_parquet(Path(board["folder"]) / "cells.parquet")
    assert [row["accuracy"]["mean"] for row in board["rows"]] == cells.accuracy.tolist()
    assert "0 of 2 to do" in typed(*GRID, "--dry-run")[0]


def test_failed_trainings_are_told_and_counted(typed: Typed) -> None:
    plan = json.loads(typed(*GRID, "--dry-run", "--json")[0])
    in_the_way = typed.workspace / "models" / ".training" / plan["cells"][0]["model"]
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the training wants a folder")
    shown, told = typed(*GRID, status=EXIT_EXPERIMENTS_FAILED)
    assert "trainings of the grid that failed: 1; run again" in told
    assert "failed, cpu_tiny CCCT galaxy seed 0: " in shown and "cpu_tiny CCCC galaxy" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "ablations"], "no grid 'ablations'"),
        (["--seeds", "0,one"], "--seeds 0,one: expected whole numbers"),
        (["--grid", "full", "--model", "x"], "name one of both"),
        (["--dry-run"], "belong to a grid"),
        ([], "no model in"),
    ],
)
def test_what_cannot_be_asked(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--workspace", str(tmp_path), "benchmark", *words]) == 1
    assert message in capsys.readouterr().err
