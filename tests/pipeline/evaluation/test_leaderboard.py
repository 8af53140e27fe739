"""The board: its means are those of its cells, by hand; its files agree; nothing of another split gets on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from models.metrics import evaluate
from pipeline.core.errors import UserError
from pipeline.evaluation.evaluate import PredictedSplit, benchmark
from pipeline.evaluation.grid import Axes, make_grid, run_grid
from pipeline.evaluation.leaderboard import METRICS, Leaderboard, SeedSummary, read_leaderboard
from pipeline.evaluation.leaderboard_report import to_markdown, write_leaderboard
from tests.conftest import Small
from tests.pipeline.grids import RanGrid, numbers, run_small_grid


@pytest.fixture(scope="module")
def ran(small: Small, tmp_path_factory: pytest.TempPathFactory) -> RanGrid:
    return run_small_grid(tmp_path_factory.mktemp("board"), small)


def test_means_and_deviations_are_those_of_the_cells(ran: RanGrid) -> None:
    cells = pd.read_parquet(ran.board.folder / "cells.parquet")
    for row in ran.board.rows:
        mine = cells[cells.label == row.label]
        assert mine.seed.tolist() == row.seeds == [0, 1]
        for metric in METRICS:
            first, second = mine[metric]
            spread = row.spread(metric)
            assert spread.mean == pytest.approx((first + second) / 2)
            assert spread.deviation == pytest.approx(abs(first - second) / 2**0.5)
    means = [row.spread("accuracy").mean for row in ran.board.rows]
    assert means == sorted(means, reverse=True)


def test_numbers_of_a_cell_are_those_of_its_predictions_and_its_card(ran: RanGrid, small: Small) -> None:
    for cell in ran.board.cells:
        table = pd.read_parquet(ran.board.folder / "predictions" / f"{cell.card.model_id}.parquet")
        probabilities = np.stack(table.probabilities)
        assert cell.numbers["accuracy"] == (probabilities.argmax(axis=1) == table.label).mean()
        np.testing.assert_array_equal(table.label, small.images.labels[table.row])
        assert cell.card.test is not None
        for name in ("accuracy", "macro_f1", "ece", "brier", "coverage", "mean_set_size"):
            assert cell.numbers[name] == pytest.approx(cell.card.test[name], abs=2e-4), name
        truth = cell.card.conformal.sets(probabilities.astype(np.float32))[np.arange(len(table)), table.label]
        assert cell.numbers["coverage"] == truth.mean()
        assert cell.numbers["images_per_second"] > 0 and "CPU" in cell.run.device


def test_a_model_alone_has_the_numbers_it_has_on_the_board(ran: RanGrid, small: Small) -> None:
    cell = ran.board.cells[0]
    alone = benchmark(ran.workspace, small.images, cell.card.model_id)
    assert alone.evaluation == cell.evaluation


def test_classes_confusion_and_scales_add_up(ran: RanGrid) -> None:
    folder, n = ran.board.folder, ran.board.record.test_images
    names = ("confusion", "recall", "scales")
    confusion, recall, scales = (pd.read_parquet(folder / f"{name}.parquet") for name in names)
    for row in ran.board.rows:
        assert row.confusion().sum() == 2 * n
        mine = confusion[confusion.label == row.label]
        assert mine.images.sum() == 2 * n
        right = mine[mine.true == mine.called].images.sum()
        assert right / (2 * n) == pytest.approx(row.spread("accuracy").mean)
        of_class = recall[(recall.label == row.label) & (recall["class"] == 3)]
        assert row.recall()[3].mean == pytest.approx(of_class.recall.mean())
        assert row.class_coverage()[3].mean == pytest.approx(of_class.coverage.mean())
        of_scale = scales[scales.label == row.label]
        assert (of_scale.images * of_scale.accuracy).sum() / (2 * n) == pytest.approx(row.spread("accuracy").mean)
        assert sum(each.n for each in row.reliability("before")) == 2 * n


def test_the_first_cell_of_the_grid_is_what_others_are_compared_with(ran: RanGrid) -> None:
    reference = ran.board.row(ran.board.reference)
    assert ran.board.reference == "cpu_tiny CCCT galaxy" and reference.against is None
    (other,) = [row for row in ran.board.rows if row is not reference]
    assert other.against is not None
    difference = other.spread("accuracy").mean - reference.spread("accuracy").mean
    assert other.against.mean == pytest.approx(difference)
    assert other.against.low <= difference <= other.against.high


def test_every_file_says_simulated(ran: RanGrid) -> None:
    folder = ran.board.folder
    text = (folder / "board.md").read_text()
    assert text.startswith("# SIMULATED images") and "Of other images:" in text and "94.86" in text
    results = text[text.index("## Results") : text.index("## Compared")]
    assert "94.86" not in results and "92.39" not in results
    board = json.loads((folder / "board.json").read_text())
    assert board["simulated"] is True and "SIMULATED" in board["title"]
    assert json.loads((folder / "grid.json").read_text())["simulated"] is True
    for name in ("cells", "recall", "confusion", "scales"):
        assert pd.read_parquet(folder / f"{name}.parquet").simulated.all()
    assert all(cell.run.simulated for cell in ran.board.cells)
    for name in ("accuracy", "reliability", "confusion", "curves"):
        corner = np.asarray(Image.open(folder / f"{name}.png").convert("RGB")).astype(int)[-60:, -400:]
        assert ((corner[..., 0] > 180) & (corner[..., 1:].max(axis=2) < 120)).any(), name  # the mark, in red


def test_a_board_is_made_again_from_what_lies_there(ran: RanGrid, tmp_path: Path) -> None:
    again = read_leaderboard(ran.board.folder, ran.workspace.models)
    assert again.to_dict() == ran.board.to_dict() and to_markdown(again) == to_markdown(ran.board)
    write_leaderboard(again, tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ran.board.folder / path.name).read_bytes(), path.name


def copied(ran: RanGrid, root: Path) -> tuple[Path, Path]:
    """Folders of a board and of models of its own."""
    workspace = ran.copied_to(root)
    return workspace.reports / ran.board.folder.name, workspace.models


def test_other_splits_stay_off_the_board(ran: RanGrid, tmp_path: Path) -> None:
    folder, models = copied(ran, tmp_path)
    path = next((folder / "predictions").glob("*.parquet"))
    run = PredictedSplit.load(path)
    for other in (replace(run, split="0123"), replace(run, image_set="0123")):
        other.save(path)
        with pytest.raises(UserError, match=r"0123.*cannot stand on one board"):
            read_leaderboard(folder, models)
    replace(run, rows=run.rows[::-1].copy()).save(path)
    with pytest.raises(UserError, match=r"not the test images of"):
        read_leaderboard(folder, models)


def test_what_is_gone_or_damaged_is_named(ran: RanGrid, tmp_path: Path) -> None:
    folder, models = copied(ran, tmp_path)
    gone, damaged = sorted((folder / "predictions").glob("*.parquet"))[:2]
    (models / gone.stem).rename(models / "elsewhere")
    damaged.write_bytes(b"PAR1")
    board = read_leaderboard(folder, models)
    assert set(board.lost) == {gone.stem, damaged.stem} and len(board.cells) == 2
    assert gone.stem in to_markdown(board) and "the model is gone" in to_markdown(board)
    (folder / "grid.json").unlink()
    with pytest.raises(UserError, match=r"grid\.json cannot be read .* run the benchmark grid again"):
        read_leaderboard(folder, models)


def test_another_budget_is_another_row_with_its_name(ran: RanGrid, tmp_path: Path) -> None:
    workspace = ran.copied_to(tmp_path, "training.epochs=2")
    board = run_grid(workspace, ran.source, make_grid("", workspace.settings.training, Axes(seeds=(0,))))
    labels = {row.label: row.seeds for row in board.rows}
    assert labels == {
        "cpu_tiny CCCT galaxy (epochs 1)": [0, 1],
        "cpu_tiny CCCT galaxy (epochs 2)": [0],
        "cpu_tiny CCCC galaxy": [0, 1],
    }
    assert board.reference == "cpu_tiny CCCT galaxy (epochs 2)"
    against = board.row("cpu_tiny CCCC galaxy").against
    assert against is not None and not against.over_seeds
    assert len(numbers(board.folder)) == 5


def test_reported_numbers_stand_beside_the_true_benchmark_only(ran: RanGrid) -> None:
    cell = ran.board.cells[0]
    record = ran.board.record.model_copy(update={"simulated": False, "images": 17_736})
    row = replace(ran.board.rows[0], reported=94.86)
    text = to_markdown(Leaderboard(ran.board.folder, record, (row,), ""))
    assert "94.86 |" in text[text.index("## Results") : text.index("## Recall")]
    assert "SIMULATED" not in text and "not on this split" in text and cell.card.variant in text


def test_spreads() -> None:
    assert SeedSummary.of([1.0, 3.0]) == SeedSummary(2.0, 2**0.5, 2)
    assert SeedSummary.of([1.0, float("nan")]) == SeedSummary(1.0, None, 1)
    assert np.isnan(SeedSummary.of([float("nan")]).mean)


def test_before_and_after_are_what_the_network_said(ran: RanGrid) -> None:
    """Undoing the temperature of the predictions gives the calibration error that the card has for before."""
    cell = ran.board.cells[0]
    logits = cell.card.temperature * np.log(np.clip(cell.run.probabilities.astype(np.float64), 1e-30, None))
    raw = np.exp(logits - logits.max(axis=1, keepdims=True))
    raw /= raw.sum(axis=1, keepdims=True)
    assert evaluate(raw, cell.run.labels).ece == pytest.approx(cell.numbers["ece_before"], abs=1e-3)
