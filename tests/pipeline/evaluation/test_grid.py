"""The benchmark grid: every experiment trained and measured once, resumed where it was, and never a champion."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from models.artifacts.registry import champion, list_models, load_card
from pipeline.config.workspace import open_workspace
from pipeline.core.errors import UserError
from pipeline.core.progress import progress_display
from pipeline.datasets.splits import split, write_split
from pipeline.evaluation.evaluate import PredictedSplit
from pipeline.evaluation.experiments import Axes, experiment_settings, make_grid
from pipeline.evaluation.grid import ExperimentJob, plan_grid, run_experiment, run_grid
from pipeline.evaluation.grid_record import predictions_file
from pipeline.training.train import train
from tests.conftest import Small
from tests.pipeline.grids import ONE_EPOCH, RanGrid, numbers, run_small_grid, source_of

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


@pytest.fixture(scope="module")
def ran(small: Small, tmp_path_factory: pytest.TempPathFactory) -> RanGrid:
    return run_small_grid(tmp_path_factory.mktemp("grid"), small)


def test_a_job_is_small_and_gives_the_very_settings_again(ran: RanGrid) -> None:
    for recipe in ("galaxy", "plain", "paper"):
        grid = make_grid("", ran.workspace.settings.training, Axes(presets=(recipe,), seeds=(3,)))
        (planned,) = plan_grid(ran.workspace, ran.source, grid).experiments
        job = planned.job
        assert job is not None and len(repr(job).encode()) < 1024
        assert job.workspace.settings == experiment_settings(ran.workspace.settings, grid, planned.experiment)


# --- running ------------------------------------------------------------------------------------------------------


def test_a_grid_trains_every_experiment_and_makes_no_champion(ran: RanGrid) -> None:
    assert len(list_models(ran.workspace.models)) == 4 and champion(ran.workspace.models) is None
    assert [len(seeds) for seeds in ran.board.entries.seeds] == [2, 2] and not ran.board.failed
    cards = [load_card(ran.workspace.models, name) for name in ran.board.experiments.model_id]
    assert len({card.split_digest for card in cards}) == 1 and {card.settings["epochs"] for card in cards} == {1}
    trained = [(card.layout, card.settings["seed"]) for card in cards]
    assert sorted(trained) == [("CCCC", 0), ("CCCC", 1), ("CCCT", 0), ("CCCT", 1)]


def test_training_what_a_grid_has_trained_makes_it_champion(ran: RanGrid, small: Small, tmp_path: Path) -> None:
    workspace = ran.copied_to(tmp_path)
    card = train(workspace, small.images)
    assert card.model_id in ran.board.experiments.model_id.tolist()
    assert champion(workspace.models) == card.model_id


def test_running_again_trains_and_measures_nothing(ran: RanGrid, as_was: Callable) -> None:
    plan = plan_grid(ran.workspace, ran.source, ran.grid)
    assert [planned.state for planned in plan.experiments] == ["done"] * 4 and plan.to_do == []
    with as_was(ran.workspace.models), as_was(ran.board.folder / "predictions"):
        again = run_grid(ran.workspace, ran.source, ran.grid)
    assert again.to_dict() == ran.board.to_dict()


def test_a_grid_leaves_the_champion_alone(ran: RanGrid, small: Small, tmp_path: Path) -> None:
    workspace = ran.copied_to(tmp_path)
    first = train(workspace, small.images).model_id
    run_grid(workspace, ran.source, make_grid("", workspace.settings.training, Axes(layouts=("CCTT",), seeds=(0,))))
    assert champion(workspace.models) == first and len(list_models(workspace.models)) == 5


def test_damaged_predictions_are_made_again_without_training(ran: RanGrid, tmp_path: Path, as_was: Callable) -> None:
    workspace = ran.copied_to(tmp_path)
    folder = workspace.reports / ran.board.folder.name
    path = sorted((folder / "predictions").glob("*.parquet"))[0]
    path.write_bytes(path.read_bytes()[:-20])
    plan = plan_grid(workspace, ran.source, ran.grid)
    assert [job.model_id for job in plan.to_do] == [path.stem]
    with as_was(workspace.models):
        run_grid(workspace, ran.source, ran.grid)
    assert PredictedSplit.load(path).model_id == path.stem
    assert numbers(folder) == numbers(ran.board.folder)


def test_an_experiment_that_fails_costs_only_itself(small: Small, tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, ONE_EPOCH)
    source = source_of(small)
    grid = make_grid("", workspace.settings.training, Axes(layouts=("CCCC", "CCCT"), seeds=(0,)))
    broken = plan_grid(workspace, source, grid).to_do[0]
    in_the_way = workspace.models / ".training" / broken.model_id
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the training wants a folder")
    board = run_grid(workspace, source, grid)
    (failed,) = board.failed
    assert failed.name == "cpu_tiny CCCC galaxy seed 0" and "Error" in failed.reason
    assert board.entries.label.tolist() == ["cpu_tiny CCCT galaxy"]
    assert failed.name in (board.folder / "board.md").read_text()
    in_the_way.unlink()
    assert not run_grid(workspace, source, grid).failed


class Killed(BaseException):
    """Stands for the end of the process between two epochs."""


def test_a_grid_that_was_killed_goes_on_where_it_was(ran: RanGrid, small: Small, tmp_path: Path) -> None:
    overrides = [*ONE_EPOCH, "training.epochs=2"]
    whole, cut = (open_workspace(tmp_path / name, overrides) for name in ("whole", "cut"))
    grid = make_grid("", cut.settings.training, Axes(layouts=("CCCT", "CCCC"), seeds=(0,)))
    trainings = 0

    @contextmanager
    def cut_off(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        nonlocal trainings
        trainings += title.startswith("training")

        def step(done: int, note: str) -> None:
            if trainings == 2 and title.startswith("training") and note:  # the second has an epoch
                raise Killed

        yield step

    with pytest.raises(Killed), progress_display(cut_off):
        run_grid(cut, ran.source, grid)
    (finished,) = list_models(cut.models)
    before = {p: p.stat().st_mtime_ns for p in (cut.models / finished).iterdir()}
    plan = plan_grid(cut, ran.source, grid)
    assert [planned.state for planned in plan.experiments] == ["done", "to do"]
    assert (cut.models / ".training" / plan.to_do[0].model_id / "checkpoint.pt").is_file()

    epochs: list[str] = []

    @contextmanager
    def listen(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        yield lambda done, note: epochs.append(note) if title.startswith("training") and note else None

    with progress_display(listen):
        board = run_grid(cut, ran.source, grid)
    assert len(epochs) == 2  # the first is reported again, the second is trained
    assert {p: p.stat().st_mtime_ns for p in (cut.models / finished).iterdir()} == before
    assert numbers(board.folder) == numbers(run_grid(whole, ran.source, grid).folder)


@pytest.mark.slow
def test_workers_give_the_same_leaderboard(ran: RanGrid, tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, [*ONE_EPOCH, "workers.kind=local", "workers.count=2"])
    board = run_grid(workspace, ran.source, make_grid("", workspace.settings.training, Axes(seeds=(0, 1))))
    inline = [row for row in numbers(ran.board.folder) if row["layout"] == "CCCT"]
    assert not board.failed and numbers(board.folder) == inline


def test_without_timm_a_peer_is_skipped(ran: RanGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    workspace = ran.copied_to(tmp_path)
    axes = Axes(variants=("cpu_tiny", "timm/resnet18"), seeds=(0,))
    board = run_grid(workspace, ran.source, make_grid("", workspace.settings.training, axes))
    (skipped,) = board.skipped
    assert skipped.name == "timm/resnet18 galaxy seed 0" and "pip install 'morphcat[peers]'" in skipped.reason
    assert not board.failed and len(board.entries) == 2


@needs_timm
def test_a_peer_is_measured_under_the_same_budget(ran: RanGrid, tmp_path: Path) -> None:
    workspace = ran.copied_to(tmp_path)
    axes = Axes(variants=("cpu_tiny", "timm/mobilenetv3_small_050"), seeds=(0,))
    board = run_grid(workspace, ran.source, make_grid("", workspace.settings.training, axes))
    (row,) = board.experiments[board.experiments.label == "timm/mobilenetv3_small_050 galaxy"].itertuples()
    assert row.layout == "-" and row.image_size == 32 and row.epochs == 1
    assert row.split == ran.board.record.split and row.Index in board.comparisons


# --- one split for all --------------------------------------------------------------------------------------------


def job_of(ran: RanGrid) -> ExperimentJob:
    job = plan_grid(ran.workspace, ran.source, ran.grid).experiments[0].job
    assert job is not None
    return job


@pytest.mark.parametrize("what", ["image_set", "split", "model_id"])
def test_an_experiment_refuses_what_it_was_not_planned_with(ran: RanGrid, what: str, as_was: Callable) -> None:
    with as_was(ran.workspace.root), pytest.raises(UserError, match=r"changed since the grid was planned \(0123"):
        run_experiment(replace(job_of(ran), **{what: "0123"}))


def test_a_split_from_elsewhere(ran: RanGrid, small: Small, tmp_path: Path) -> None:
    parts = split(small.images, validation=0.2, test=0.3, seed=9)
    path = tmp_path / "split.json"
    write_split(path, small.images, parts, validation=0.2, test=0.3, seed=9)
    workspace = ran.copied_to(tmp_path / "workspace")
    grid = make_grid("", workspace.settings.training, Axes(seeds=(0,)))
    board = run_grid(workspace, ran.source, grid, path)
    assert board.record.split == parts.digest and board.folder.name != ran.board.folder.name
    predictions = predictions_file(board.folder, board.experiments.model_id.iloc[0])
    assert PredictedSplit.load(predictions).rows.tolist() == parts.test.tolist()


def test_grids_that_cannot_run(ran: RanGrid, tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, [*ONE_EPOCH, "training.test_fraction=0"])
    with pytest.raises(UserError, match=r"no test split"):
        plan_grid(workspace, ran.source, ran.grid)
    workspace = open_workspace(tmp_path, [*ONE_EPOCH, "workers.kind=local", "workers.train_processes=2"])
    with pytest.raises(UserError, match=r"workers\.train_processes = 2 with workers\.kind = 'local'"):
        plan_grid(workspace, ran.source, ran.grid)
