"""Measures on the simulated sky whether learning from unlabelled tiles helps: `python -m benchmarks.noisy_student`.

A teacher (preset `galaxy`) learns from a few labelled images, surveys unlabelled tiles and publishes a release; a
student (preset `noisy_student`) learns from the same images and the confident rows of that release; a control is the
same student without those rows. All three take the same number of steps with the same schedule and batch size, from
random weights, and are measured on labelled images that none of them has seen, simulated from another seed. Seeds
change weights, order and augmentation; sky, images and split stay. The workspace is kept: after an interruption the
same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from catalogs.atomic import atomic_write
from models.artifacts.registry import ModelCard, champion
from models.inference.predictor import chosen_device, predictor_for
from models.metrics import evaluate
from models.preprocessing import colour_rule
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.datasets.image_set import ImageSet
from pipeline.execution.task import set_torch_threads
from pipeline.simulation import simulate, write_galaxy10
from pipeline.survey.plan import find_inputs, make_plan, start_run
from pipeline.survey.run import classify_tiles, release_catalogue
from pipeline.training.plan import plan_training
from pipeline.training.train import train
from pipeline.training.training_set import LABELLED

_WARM_UP = 0.1  # of all epochs
_ARMS = ("teacher", "student without pseudo-labels", "student with pseudo-labels")


def main(arguments: argparse.Namespace) -> None:
    """Run what is missing, seed by seed, and write the table after each."""
    root: Path = arguments.workspace.absolute()
    _simulate(root, arguments)
    results: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        results.append(_one_seed(root, seed, arguments))
        print(json.dumps(results[-1]), flush=True)
        with atomic_write(arguments.out) as beside:
            beside.write_text(_markdown(results, arguments), encoding="utf-8")


def _simulate(root: Path, arguments: argparse.Namespace) -> None:
    if not (root / "incoming").is_dir():
        half = arguments.unlabelled // 2
        simulate(root / "incoming", tiles=2, galaxies=half, seed=11)
    for name, seed, images in (("labelled.h5", 12, arguments.labelled), ("test.h5", 13, arguments.test)):
        if not (root / name).is_file():
            write_galaxy10(root / name, seed=seed, images=images, render=colour_rule)


def _one_seed(root: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the three and measure them."""
    teaching = _workspace(root, seed, arguments, arguments.epochs, 'training.preset="galaxy"')
    set_torch_threads(teaching.settings.workers.torch_threads())
    images = open_galaxy10(root / "labelled.h5", teaching.settings.input)
    steps = _steps(teaching, images)
    cards = {_ARMS[0]: train(teaching, images)}
    _survey(teaching)
    for arm, pseudo in ((_ARMS[1], "false"), (_ARMS[2], "true")):
        preset = ('training.preset="noisy_student"', f"training.pseudo_labels={pseudo}")
        an_epoch = _steps(_workspace(root, seed, arguments, 1, *preset), images)
        epochs = max(1, round(steps * arguments.epochs / an_epoch))
        cards[arm] = train(_workspace(root, seed, arguments, epochs, *preset), images)
    test = open_galaxy10(root / "test.h5", teaching.settings.input)
    student = cards[_ARMS[2]]
    return {
        "seed": seed,
        **_pseudo_labels(root, teaching.models / student.model_id / "labels.parquet"),
        "left_out": student.data["left_out"],
        "arms": {arm: _measured(teaching, images, test, card) for arm, card in cards.items()},
    }


def _workspace(root: Path, seed: int, arguments: argparse.Namespace, epochs: int, *overrides: str) -> Workspace:
    return open_workspace(
        root / f"seed-{seed}",
        [
            f"training.variant={arguments.variant}",
            f"training.image_size={arguments.size}",
            f"training.batch_size={arguments.batch}",
            f"training.epochs={epochs}",
            f"training.warmup_epochs={_WARM_UP * epochs}",
            f"training.seed={seed}",
            "training.validation_fraction=0.25",
            "training.test_fraction=0",
            f'folders.incoming="{root / "incoming"}"',
            f'folders.cache="{root / "cache"}"',
            "workers.device=cpu",
            *arguments.set,
            *overrides,
        ],
    )


def _steps(workspace: Workspace, images: ImageSet) -> int:
    """Steps of one epoch of a training."""
    planned = plan_training(workspace, images)
    job, training_set = planned.job, planned.training_set
    return job.images_per_epoch // min(job.settings.batch_size, len(training_set.parts.train) // 2 * 2)


def _survey(workspace: Workspace) -> None:
    """Classify the sky with the champion and publish a release."""
    run = start_run(workspace, champion(workspace.models))
    tiles = find_inputs(workspace, []).tiles
    todo = make_plan(workspace, run, tiles)
    if failed := classify_tiles(workspace, run, todo):
        raise RuntimeError(f"sky tiles failed: {failed}")
    release_catalogue(workspace, run, tiles)


def _measured(workspace: Workspace, images: ImageSet, test: ImageSet, card: ModelCard) -> dict[str, Any]:
    """How good a model is on images that no training has seen."""
    predictor = predictor_for(workspace.models, card.model_id, chosen_device("cpu"))
    said = predictor.predict(test.pixels(predictor.preprocessing, workspace.cache))
    numbers = evaluate(said.probabilities, test.labels, said.sets)
    trained = sum(card.data.get("origins", {LABELLED: card.data["counts"]["train"]}).values())
    a_step = min(card.settings["batch_size"], trained // 2 * 2)
    return {
        "model": card.model_id,
        "images": trained,
        "steps": len(card.history) * (trained // a_step),
        "accuracy": numbers.accuracy,
        "macro_f1": numbers.macro_f1,
        "ece": numbers.ece,
    }


def _pseudo_labels(root: Path, table: Path) -> dict[str, Any]:
    """How many rows of the sky were learned from, and what share of their labels is that of the simulation."""
    with (root / "simulated_truth.csv").open(newline="") as file:
        truth = {row["source"]: int(row["label"]) for row in csv.DictReader(file)}
    rows = [row for row in pq.read_table(table).to_pylist() if row["origin"] != LABELLED]
    # The catalogue names sources by the last two parts of their path, the table by their path below `incoming`.
    right = [truth[row["source_name"].removeprefix("incoming/")] == row["label_id"] for row in rows]
    counts = np.bincount([row["label_id"] for row in rows], minlength=10)
    return {"pseudo_labels": len(rows), "right": sum(right) / len(right), "per_class": counts.tolist()}


def _markdown(results: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> str:
    lines = [
        "# Learning from unlabelled tiles, on the simulated sky",
        "",
        f"All galaxies are **simulated**. {arguments.variant} at {arguments.size} px; {arguments.labelled} labelled "
        "images (three quarters for training, the rest for calibration), "
        f"{arguments.unlabelled} unlabelled galaxies in two sky tiles, {arguments.test} independent test images; "
        f"batches of {arguments.batch}; {len(results)} seeds of weights, order and augmentation on the same data.",
        "",
        "Compared at equal numbers of steps, from random weights, with the same schedule. Mean ± standard deviation "
        "over seeds.",
        "",
        "| network | training images | steps | test accuracy | macro-F1 | calibration error |",
        "|---|---|---|---|---|---|",
    ]
    for arm in _ARMS:
        runs = [result["arms"][arm] for result in results]
        shown = [_spread([run[name] for run in runs]) for name in ("accuracy", "macro_f1", "ece")]
        images, steps = (_range([run[name] for run in runs]) for name in ("images", "steps"))
        lines.append(f"| {arm} | {images} | {steps} | {' | '.join(shown)} |")
    for other in _ARMS[:2]:
        gains = [r["arms"][_ARMS[2]]["accuracy"] - r["arms"][other]["accuracy"] for r in results]
        lines += [
            "",
            f"Accuracy with pseudo-labels minus {other}, seed by seed: " + ", ".join(f"{g:+.3f}" for g in gains),
        ]
        lines[-1] += f"; {_spread(gains)}."
    lines += ["", "| seed | pseudo-labels | of them right | of each class |", "|---|---|---|---|"]
    lines += [f"| {r['seed']} | {r['pseudo_labels']} | {r['right']:.3f} | {r['per_class']} |" for r in results]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)}–{max(values)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Learning from unlabelled tiles, with and without, on the simulated sky."
    )
    parser.add_argument("--workspace", type=Path, required=True, help="folder to work in; the same one goes on")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file of the results")
    parser.add_argument("--variant", default="cpu_tiny")
    for name, value in (
        ("size", 64),
        ("labelled", 400),
        ("unlabelled", 1500),
        ("test", 600),
        ("batch", 32),
        ("epochs", 40),
        ("seeds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser


if __name__ == "__main__":
    main(_parser().parse_args())
