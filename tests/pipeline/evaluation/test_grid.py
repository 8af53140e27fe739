"""The benchmark grid: which cells, the same budget for all, resumed where it was, and never a champion."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from models.artifacts.registry import champion, list_models
from models.errors import ModelError
from pipeline.config.settings import Settings
from pipeline.config.training import PRESETS, TrainingSettings
from pipeline.config.workspace import open_workspace
from pipeline.core.errors import UserError
from pipeline.core.progress import progress_display
from pipeline.datasets.splits import split, write_split
from pipeline.evaluation.evaluate import PredictedSplit
from pipeline.evaluation.grid import (
    LAYOUTS,
    Axes,
    Experiment,
    ExperimentJob,
    experiment_settings,
    make_grid,
    plan_grid,
    run_experiment,
    run_grid,
)
from pipeline.training.train import train
from tests.conftest import Small
from tests.pipeline.grids import ONE_EPOCH, RanGrid, numbers, run_small_grid, source_of

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


@pytest.fixture(scope="module")
def ran(small: Small, tmp_path_factory: pytest.TempPathFactory) -> RanGrid:
    return run_small_grid(tmp_path_factory.mktemp("grid"), small)


# --- which cells --------------------------------------------------------------------------------------------------


def test_the_ablation_is_every_layout_with_every_seed() -> None:
    grid = make_grid("ablation", TrainingSettings(variant="astroformer_3"))
    assert {(c.variant, c.recipe) for c in grid.cells} == {("astroformer_3", "galaxy")}
    assert [c.layout for c in grid.cells[:4]] == list(LAYOUTS)
    assert [c.seed for c in grid.cells] == [0] * 4 + [1] * 4 + [2] * 4  # all of one seed first


def test_a_peer_has_one_cell_a_recipe_and_seed() -> None:
    axes = Axes(variants=("cpu_tiny", "timm/resnet18"), layouts=("CCCT", "CCCC"), recipes=("galaxy", "plain"))
    cells = make_grid("", TrainingSettings(), axes).cells
    assert len(cells) == 2 * 2 * 3 + 2 * 3
    assert {c.layout for c in cells if c.variant == "timm/resnet18"} == {"-"}


def test_the_full_grid_holds_the_others_and_nothing_twice() -> None:
    settings = TrainingSettings(preset="paper", variant="astroformer_0")
    full = make_grid("full", settings).cells
    parts = [set(make_grid(name, settings).cells) for name in ("ablation", "recipes", "peers")]
    assert set(full) == set.union(*parts) and len(full) == len(set(full))
    assert {c.recipe for c in parts[1]} == {"paper", "galaxy", "plain"}
    assert full[0] == Experiment(variant="astroformer_0", layout="CCCT", recipe="paper", seed=0)


def test_axes_replace_those_of_a_name() -> None:
    cells = make_grid("ablation", TrainingSettings(), Axes(variants=("cpu_tiny",), seeds=(7,))).cells
    assert [c.name for c in cells] == [f"cpu_tiny {layout} galaxy seed 7" for layout in LAYOUTS]


@pytest.mark.parametrize(
    ("name", "axes", "error", "message"),
    [
        ("ablations", Axes(), UserError, r"no grid 'ablations': expected one of ablation, recipes, peers, full"),
        ("", Axes(layouts=("CCXT",)), UserError, r"layout = 'CCXT'"),
        ("", Axes(recipes=("fancy",)), UserError, r"recipe = 'fancy'.*galaxy, paper, plain"),
        ("", Axes(seeds=(-1,)), UserError, r"seed = -1"),
        ("", Axes(variants=("cpu_tinny",)), ModelError, r"did you mean 'cpu_tiny'"),
    ],
)
def test_cells_that_can_not_be(name: str, axes: Axes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_grid(name, TrainingSettings(), axes)


# --- settings of a cell -------------------------------------------------------------------------------------------


def settings_of(base: TrainingSettings, axes: Axes, index: int = 0) -> TrainingSettings:
    grid = make_grid("", base, axes)
    return experiment_settings(Settings(training=base), grid, grid.cells[index]).training


def test_every_cell_has_the_budget_of_the_workspace_and_its_own_recipe() -> None:
    base = TrainingSettings(variant="cpu_tiny", epochs=7, weight_decay=0.01, test_fraction=0.2)
    for recipe in ("galaxy", "plain", "paper"):
        cell = settings_of(base, Axes(recipes=(recipe,)))
        assert (cell.epochs, cell.batch_size, cell.image_size) == (7, base.batch_size, base.image_size)
        assert (cell.weight_decay, cell.test_fraction) == (0.01, 0.2)  # what the workspace changes, it changes for all
        for name in ("mixup", "rotate", "label_smoothing"):
            assert getattr(cell, name) == PRESETS[recipe].get(name, getattr(TrainingSettings(), name))


def test_a_workspace_of_the_paper_gives_its_budget_to_other_recipes() -> None:
    base = TrainingSettings(preset="paper", variant="astroformer_0")
    cell = settings_of(base, Axes(recipes=("plain",)))
    assert (cell.epochs, cell.image_size, cell.batch_size) == (300, 256, 256) and cell.mixup == 0


def test_peers_see_the_pixels_of_our_own_network() -> None:
    base = TrainingSettings(variant="cpu_small")
    axes = Axes(variants=("timm/resnet18", "cpu_small", "cpu_tiny"), seeds=(0,))
    assert [settings_of(base, axes, i).image_size for i in range(3)] == [96, 0, 96]  # 0 is 96 for cpu_small
    assert settings_of(base, axes, 0).layout == "CCCT"  # which a network without a layout accepts
    fixed = base.model_copy(update={"image_size": 64})
    assert {settings_of(fixed, axes, i).image_size for i in range(3)} == {64}


def test_a_lone_cell_of_the_own_settings_is_what_train_would_train() -> None:
    base = TrainingSettings(variant="cpu_tiny", epochs=3, mixup=0.4, seed=5)
    assert settings_of(base, Axes(seeds=(5,))) == base


def test_a_job_is_small_and_gives_the_very_settings_again(ran: RanGrid) -> None:
    for recipe in ("galaxy", "plain", "paper"):
        grid = make_grid("", ran.workspace.settings.training, Axes(recipes=(recipe,), seeds=(3,)))
        (planned,) = plan_grid(ran.workspace, ran.source, grid).cells
        job = planned.job
        assert job is not None and len(repr(job).encode()) < 1024
        assert job.workspace.settings == experiment_settings(ran.workspace.settings, grid, planned.cell)


# --- running ------------------------------------------------------------------------------------------------------


def test_a_grid_trains_every_cell_and_makes_no_champion(ran: RanGrid) -> None:
    assert len(list_models(ran.workspace.models)) == 4 and champion(ran.workspace.models) is None
    assert [len(row.cells) for row in ran.board.rows] == [2, 2] and not ran.board.failed
    cards = [cell.card for cell in ran.board.cells]
    assert len({card.split_digest for card in cards}) == 1 and {card.settings["epochs"] for card in cards} == {1}
    trained = [(card.layout, card.settings["seed"]) for card in cards]
    assert sorted(trained) == [("CCCC", 0), ("CCCC", 1), ("CCCT", 0), ("CCCT", 1)]


def test_training_what_a_grid_has_trained_makes_it_champion(ran: RanGrid, small: Small, tmp_path: Path) -> None:
    workspace = ran.copied_to(tmp_path)
    card = train(workspace, small.images)
    assert card.model_id in [cell.card.model_id for cell in ran.board.cells]
    assert champion(workspace.models) == card.model_id


def test_running_again_trains_and_measures_nothing(ran: RanGrid, as_was: Callable) -> None:
    plan = plan_grid(ran.workspace, ran.source, ran.grid)
    assert [planned.state for planned in plan.cells] == ["done"] * 4 and plan.to_do == []
    with as_was(ran.workspace.models), as_was(ran.board.folder / "predictions"):
        again = run_grid(ran.workspace, ran.source, ran.grid)
    assert again.to_dict() == ran.board.to_dict()


def test_a_grid_leaves_the_champion_alone(ran: RanGrid, small: Small, tmp_path: Path) -> None:
    workspace = ran.copied_to(tmp_path)
    first = train(workspace, small.images).model_id
    run_grid(workspace, ran.source, make_grid("", workspace.settings.training, Axes(layouts=("CCTT",), seeds=(0,))))
    assert champion(workspace.models) == first and len(list_models(workspace.models)) == 5


def test_damaged_predictions_are_made_anew_without_training(ran: RanGrid, tmp_path: Path, as_was: Callable) -> None:
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


def test_a_cell_that_fails_costs_only_itself(small: Small, tmp_path: Path) -> None:
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
    assert [row.label for row in board.rows] == ["cpu_tiny CCCT galaxy"]
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
            if trainings == 2 and title.startswith("training") and note:  # an epoch of the second cell is finished
                raise Killed

        yield step

    with pytest.raises(Killed), progress_display(cut_off):
        run_grid(cut, ran.source, grid)
    (finished,) = list_models(cut.models)
    before = {p: p.stat().st_mtime_ns for p in (cut.models / finished).iterdir()}
    plan = plan_grid(cut, ran.source, grid)
    assert [planned.state for planned in plan.cells] == ["done", "to do"]
    assert (cut.models / ".training" / plan.to_do[0].model_id / "checkpoint.pt").is_file()

    epochs: list[str] = []

    @contextmanager
    def listen(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        yield lambda done, note: epochs.append(note) if title.startswith("training") and note else None

    with progress_display(listen):
        board = run_grid(cut, ran.source, grid)
    assert len(epochs) == 2  # the one that was there is told again, the other trained
    assert {p: p.stat().st_mtime_ns for p in (cut.models / finished).iterdir()} == before
    assert numbers(board.folder) == numbers(run_grid(whole, ran.source, grid).folder)


@pytest.mark.slow
def test_workers_give_the_same_board(ran: RanGrid, tmp_path: Path) -> None:
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
    assert not board.failed and len(board.rows) == 2


@needs_timm
def test_a_peer_is_measured_under_the_same_budget(ran: RanGrid, tmp_path: Path) -> None:
    workspace = ran.copied_to(tmp_path)
    axes = Axes(variants=("cpu_tiny", "timm/mobilenetv3_small_050"), seeds=(0,))
    board = run_grid(workspace, ran.source, make_grid("", workspace.settings.training, axes))
    row = board.row("timm/mobilenetv3_small_050 galaxy")
    assert row.card.layout == "-" and row.card.image_size == 32 and row.card.settings["epochs"] == 1
    assert row.card.split_digest == ran.board.record.split and row.against is not None


# --- one split for all --------------------------------------------------------------------------------------------


def job_of(ran: RanGrid) -> ExperimentJob:
    job = plan_grid(ran.workspace, ran.source, ran.grid).cells[0].job
    assert job is not None
    return job


@pytest.mark.parametrize("what", ["image_set", "split", "model_id"])
def test_a_cell_refuses_what_it_was_not_planned_with(ran: RanGrid, what: str, as_was: Callable) -> None:
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
    assert board.cells[0].run.rows.tolist() == parts.test.tolist()


def test_grids_that_can_not_run(ran: RanGrid, tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, [*ONE_EPOCH, "training.test_fraction=0"])
    with pytest.raises(UserError, match=r"no test split"):
        plan_grid(workspace, ran.source, ran.grid)
    workspace = open_workspace(tmp_path, [*ONE_EPOCH, "workers.kind=local", "workers.train_processes=2"])
    with pytest.raises(UserError, match=r"workers\.train_processes = 2 with workers\.kind = 'local'"):
        plan_grid(workspace, ran.source, ran.grid)
