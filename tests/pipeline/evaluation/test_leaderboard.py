"""The leaderboard: its means are those of its experiments, by hand; its files agree; it has one split only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from models.artifacts.registry import load_card
from models.metrics import evaluate
from pipeline.core.errors import UserError
from pipeline.evaluation.evaluate import PredictedSplit, benchmark
from pipeline.evaluation.experiments import Axes, make_grid
from pipeline.evaluation.grid import run_grid
from pipeline.evaluation.grid_record import predictions_file
from pipeline.evaluation.leaderboard import of_entry, read_leaderboard, seed_summary
from pipeline.evaluation.leaderboard_plots import pooled_bins
from pipeline.evaluation.leaderboard_report import to_markdown, write_leaderboard
from pipeline.evaluation.measured_experiment import METRICS, MeasuredExperiment
from tests.conftest import Small
from tests.pipeline.grids import RanGrid, numbers, run_small_grid


@pytest.fixture(scope="module")
def ran(small: Small, tmp_path_factory: pytest.TempPathFactory) -> RanGrid:
    return run_small_grid(tmp_path_factory.mktemp("board"), small)


def first_experiment(ran: RanGrid) -> MeasuredExperiment:
    """That of the best entry and the first seed."""
    model_id = ran.board.experiments.model_id.iloc[0]
    run = PredictedSplit.load(predictions_file(ran.board.folder, model_id))
    return MeasuredExperiment(load_card(ran.workspace.models, model_id), run)


def test_means_and_deviations_are_those_of_the_experiments(ran: RanGrid) -> None:
    written = pd.read_parquet(ran.board.folder / "cells.parquet")
    for entry in ran.board.entries.itertuples():
        own = written[written.label == entry.label]
        assert own.seed.tolist() == entry.seeds == [0, 1]
        for metric in METRICS:
            first, second = own[metric]
            summary = ran.board.metric(metric).loc[entry.Index]
            assert summary["mean"] == pytest.approx((first + second) / 2)
            assert summary["deviation"] == pytest.approx(abs(first - second) / 2**0.5)
            assert summary["n"] == 2
    assert ran.board.metric("accuracy")["mean"].is_monotonic_decreasing


def test_numbers_of_an_experiment_are_those_of_its_predictions_and_its_card(ran: RanGrid, small: Small) -> None:
    for experiment in ran.board.experiments.to_dict("records"):
        table = pd.read_parquet(predictions_file(ran.board.folder, experiment["model_id"]))
        card = load_card(ran.workspace.models, experiment["model_id"])
        probabilities = np.stack(table.probabilities)
        assert experiment["accuracy"] == (probabilities.argmax(axis=1) == table.label).mean()
        np.testing.assert_array_equal(table.label, small.images.labels[table.row])
        assert card.test is not None
        for name in ("accuracy", "macro_f1", "ece", "brier", "coverage", "mean_set_size"):
            assert experiment[name] == pytest.approx(card.test[name], abs=2e-4), name
        truth = card.conformal.sets(probabilities.astype(np.float32))[np.arange(len(table)), table.label]
        assert experiment["coverage"] == truth.mean()
        assert experiment["images_per_second"] > 0 and "CPU" in experiment["device"]


def test_a_model_alone_has_the_numbers_it_has_on_the_leaderboard(ran: RanGrid, small: Small) -> None:
    experiment = first_experiment(ran)
    alone = benchmark(ran.workspace, small.images, experiment.card.model_id)
    assert alone.evaluation == experiment.evaluation
    assert alone.evaluation.accuracy == ran.board.experiments.accuracy.iloc[0]


def test_classes_confusion_and_scales_add_up(ran: RanGrid) -> None:
    folder, n = ran.board.folder, ran.board.record.test_images
    names = ("confusion", "recall", "scales")
    confusion, recall, scales = (pd.read_parquet(folder / f"{name}.parquet") for name in names)
    for entry, label in ran.board.entries.label.items():
        accuracy = ran.board.metric("accuracy")["mean"][entry]
        counts = ran.board.confusion_matrix(entry)
        assert counts.sum() == 2 * n and np.trace(counts) / (2 * n) == pytest.approx(accuracy)
        own = confusion[confusion.label == label]
        assert own.images.sum() == 2 * n
        right = own[own.true == own.called].images.sum()
        assert right / (2 * n) == pytest.approx(accuracy)
        of_class = recall[(recall.label == label) & (recall["class"] == 3)]
        assert ran.board.class_metric("recall")["mean"][entry, 3] == pytest.approx(of_class.recall.mean())
        assert ran.board.class_metric("coverage")["mean"][entry, 3] == pytest.approx(of_class.coverage.mean())
        of_scale = scales[scales.label == label]
        assert (of_scale.images * of_scale.accuracy).sum() / (2 * n) == pytest.approx(accuracy)
        bins = of_entry(ran.board.reliability, entry)
        assert sum(each.n for each in pooled_bins(bins[bins.calibration == "before"])) == 2 * n


def test_the_first_experiment_of_the_grid_is_what_others_are_compared_with(ran: RanGrid) -> None:
    reference = ran.board.reference
    assert reference is not None and ran.board.reference_label == "cpu_tiny CCCT galaxy"
    ((other, compared),) = ran.board.comparisons.items()
    means = ran.board.metric("accuracy")["mean"]
    assert other != reference and compared.mean == pytest.approx(means[other] - means[reference])
    assert compared.low <= compared.mean <= compared.high


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
    runs = [PredictedSplit.load(path) for path in (folder / "predictions").glob("*.parquet")]
    assert len(runs) == 4 and all(run.simulated for run in runs)
    for name in ("accuracy", "reliability", "confusion", "curves"):
        corner = np.asarray(Image.open(folder / f"{name}.png").convert("RGB")).astype(int)[-60:, -400:]
        assert ((corner[..., 0] > 180) & (corner[..., 1:].max(axis=2) < 120)).any(), name  # the mark, in red


def test_a_leaderboard_is_made_again_from_what_lies_there(ran: RanGrid, tmp_path: Path) -> None:
    again = read_leaderboard(ran.board.folder, ran.workspace.models)
    assert again.to_dict() == ran.board.to_dict() and to_markdown(again) == to_markdown(ran.board)
    write_leaderboard(again, tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ran.board.folder / path.name).read_bytes(), path.name


def copied(ran: RanGrid, root: Path) -> tuple[Path, Path]:
    """Folders of a leaderboard and of its models, to be changed by a test."""
    workspace = ran.copied_to(root)
    return workspace.reports / ran.board.folder.name, workspace.models


def test_other_splits_stay_off_the_leaderboard(ran: RanGrid, tmp_path: Path) -> None:
    folder, models = copied(ran, tmp_path)
    path = next((folder / "predictions").glob("*.parquet"))
    run = PredictedSplit.load(path)
    for other in (replace(run, split="0123"), replace(run, image_set="0123")):
        other.save(path)
        with pytest.raises(UserError, match=r"0123.*cannot share a leaderboard"):
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
    assert set(board.lost) == {gone.stem, damaged.stem} and len(board.experiments) == 2
    assert gone.stem in to_markdown(board) and "the model is gone" in to_markdown(board)
    (folder / "grid.json").unlink()
    with pytest.raises(UserError, match=r"grid\.json cannot be read .* run the benchmark grid again"):
        read_leaderboard(folder, models)


def test_another_budget_is_another_entry_with_its_name(ran: RanGrid, tmp_path: Path) -> None:
    workspace = ran.copied_to(tmp_path, "training.epochs=2")
    board = run_grid(workspace, ran.source, make_grid("", workspace.settings.training, Axes(seeds=(0,))))
    assert dict(zip(board.entries.label, board.entries.seeds, strict=True)) == {
        "cpu_tiny CCCT galaxy (epochs 1)": [0, 1],
        "cpu_tiny CCCT galaxy (epochs 2)": [0],
        "cpu_tiny CCCC galaxy": [0, 1],
    }
    assert board.reference_label == "cpu_tiny CCCT galaxy (epochs 2)"
    assert len(board.comparisons) == 2 and not any(each.over_seeds for each in board.comparisons.values())
    assert len(numbers(board.folder)) == 5


def test_published_figures_stand_beside_the_true_benchmark_only(ran: RanGrid) -> None:
    record = ran.board.record.model_copy(update={"simulated": False, "images": 17_736})
    experiments = ran.board.experiments.assign(reported_percent=94.86)
    text = to_markdown(replace(ran.board, record=record, experiments=experiments))
    assert "94.86 |" in text[text.index("## Results") : text.index("## Recall")]
    assert "SIMULATED" not in text and "not on this split" in text and experiments.variant.iloc[0] in text


def test_seed_summaries() -> None:
    nan = float("nan")
    entries = pd.Index([1, 1, 2, 2, 3], name="entry")
    table = pd.DataFrame({"accuracy": [1.0, 3.0, 1.0, nan, nan]}, index=entries)
    summary = seed_summary(table, "accuracy")
    assert summary["mean"].tolist() == pytest.approx([2.0, 1.0, nan], nan_ok=True)
    assert summary["deviation"].tolist() == pytest.approx([2**0.5, nan, nan], nan_ok=True)
    assert summary["n"].tolist() == [2, 1, 0]


def test_before_and_after_are_what_the_network_predicted(ran: RanGrid) -> None:
    """Undoing the temperature of the predictions gives the calibration error that the card has for before."""
    experiment = first_experiment(ran)
    probabilities = experiment.run.probabilities.astype(np.float64)
    logits = experiment.card.temperature * np.log(np.clip(probabilities, 1e-30, None))
    raw = np.exp(logits - logits.max(axis=1, keepdims=True))
    raw /= raw.sum(axis=1, keepdims=True)
    ece_before = ran.board.experiments.ece_before.iloc[0]
    assert evaluate(raw, experiment.run.labels).ece == pytest.approx(ece_before, abs=1e-3)
