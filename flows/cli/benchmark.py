"""`morphcat benchmark`: one model measured, or a grid of trainings compared on a board."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.cli.common import RenamedOption, Subparsers, bars, flow_ready, make_root, short, simulated_mark, workspace_of
from flows.cli.display import print_json, print_message, print_table
from flows.cli.images import image_options, image_source
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from pipeline.evaluation.experiments import Grid
    from pipeline.evaluation.grid import GridPlan

EXIT_EXPERIMENTS_FAILED = 3
_AXES = ("variants", "layouts", "presets", "seeds")


def add(subparsers: Subparsers) -> None:
    """Declare `benchmark`."""
    parser = subparsers.add_parser(
        "benchmark", help="measure a model on its test split, or train and compare a grid of them"
    )
    image_options(parser)
    parser.add_argument("--model", metavar="ID", help="measure this model (the champion)")
    grid = parser.add_argument_group("a grid: trains what is not trained yet and writes a board")
    grid.add_argument("--grid", metavar="NAME", help="ablation, recipes, peers, or full: all of them")
    grid.add_argument("--variants", metavar="A,B", help="networks: astroformer_0, timm/resnet50, …")
    grid.add_argument("--layouts", metavar="A,B", help="such as CCCT,CCTT; a network of timm has none")
    grid.add_argument("--presets", metavar="A,B", help="presets of the training: galaxy, plain, paper, …")
    grid.add_argument("--recipes", action=RenamedOption, dest="presets", new_name="--presets")
    grid.add_argument("--seeds", metavar="A,B", help="0,1,2 unless given")
    grid.add_argument("--split", metavar="FILE", help="a split that `galaxy10 split --out` wrote (one is made)")
    grid.add_argument("--dry-run", action="store_true", help="list the trainings and which are done, and train nothing")
    parser.set_defaults(run=benchmark)


def benchmark(arguments: argparse.Namespace) -> int:
    """Measure a model, or run a grid where the options ask for one."""
    if arguments.grid or any(getattr(arguments, axis) for axis in _AXES):
        return _benchmark_grid(arguments)
    if arguments.dry_run or arguments.split:
        raise UserError("--dry-run and --split belong to a grid: name one with --grid, or axes such as --seeds 0,1,2")
    result = run_benchmark(arguments)
    print_json(result) if arguments.json else print_benchmark(result)
    return 0


# --- one model ----------------------------------------------------------------------------------------------------


def run_benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark flow; returns its numbers as plain values."""
    from models.artifacts.registry import champion

    workspace = workspace_of(arguments)
    model_id = arguments.model or champion(workspace.models)
    if model_id is None:
        raise UserError(f"no model in {workspace.models}: `morphcat train` makes one")
    flow_ready(workspace, arguments.debug)
    from flows.training import benchmark as flow

    source = image_source(arguments)
    with bars():
        plain = source.model_dump(mode="json") if source else None
        return flow(str(workspace.root), model_id, plain, overrides=arguments.set)


def print_benchmark(result: dict[str, Any]) -> None:
    """The numbers of one model on its test split, and its confusion matrix."""
    mark = simulated_mark(result["simulated"])
    print(
        f"Test accuracy {result['accuracy']:.3f} on {result['n']} held-out images{mark}; "
        f"macro-F1 {result['macro_f1']:.3f}, calibration error {result['ece']:.3f}, "
        f"{result['images_per_second']:.0f} images/s"
    )
    header = ["true \\ called", *[str(i) for i in range(len(result["classes"]))], "recall"]
    rows = [
        [f"{i} {slug}", *counts, f"{result['recall'][i]:.2f}"]
        for i, (slug, counts) in enumerate(zip(result["classes"], result["confusion"], strict=True))
    ]
    print_table(header, rows)


# --- a grid -------------------------------------------------------------------------------------------------------


def _benchmark_grid(arguments: argparse.Namespace) -> int:
    if arguments.model:
        raise UserError("--model measures one model, a grid trains its own: name one of both")
    workspace = workspace_of(arguments)
    grid = _grid(workspace, arguments)
    make_root(workspace)
    from pipeline.datasets.loading import source_or_benchmark
    from pipeline.evaluation.grid import plan_grid, update_leaderboard

    source = source_or_benchmark(workspace, image_source(arguments))
    split = Path(arguments.split).absolute() if arguments.split else None
    with bars():
        plan = plan_grid(workspace, source, grid, split)
    if arguments.dry_run:
        _print_plan(plan, arguments.json)
        return 0
    if plan.to_do:
        board, status = _run_flow(workspace, grid, source.model_dump(mode="json"), split, arguments)
    else:
        board, status = update_leaderboard(workspace, plan, {}).to_dict(), 0
    print_json(board) if arguments.json else print_board(board)
    return status


def _grid(workspace: Workspace, arguments: argparse.Namespace) -> Grid:
    from pipeline.evaluation.experiments import Axes, make_grid

    chosen = {axis: _list(getattr(arguments, axis)) for axis in _AXES if getattr(arguments, axis)}
    try:
        axes = Axes.model_validate(chosen)
    except ValueError as error:
        raise UserError(f"--seeds {arguments.seeds}: expected whole numbers such as 0,1,2") from error
    return make_grid(arguments.grid or "", workspace.settings.training, axes)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _run_flow(
    workspace: Workspace, grid: Grid, source: dict[str, Any], split: Path | None, arguments: argparse.Namespace
) -> tuple[dict[str, Any], int]:
    flow_ready(workspace, arguments.debug)
    from flows.training import ExperimentsFailed
    from flows.training import benchmark_grid as flow

    try:
        with bars():
            path = str(split) if split else None
            plain = grid.model_dump(mode="json", by_alias=True)
            return flow(str(workspace.root), plain, source, path, arguments.set), 0
    except ExperimentsFailed as failed:
        print_message(f"morphcat: {failed}")
        return failed.board, EXIT_EXPERIMENTS_FAILED


def _print_plan(plan: GridPlan, as_json: bool) -> None:
    rows = [
        {
            "cell": planned.experiment.name,
            "state": planned.state,
            "model": planned.job.model_id if planned.job else None,
            "reason": planned.reason or None,
        }
        for planned in plan.experiments
    ]
    if as_json:
        print_json({"grid": plan.heading.grid, "board": str(plan.folder), "cells": rows})
        return
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    mark = simulated_mark(plan.heading.simulated)
    print(f"{len(plan.to_do)} of {len(rows)} to do; board: {short(plan.folder)}{mark}")


def print_board(board: dict[str, Any]) -> None:
    """The main numbers of a board, row by row, what is missing on it, and where it lies."""
    if board["rows"]:
        header = ["#", "network, layout, recipe", "seeds", "accuracy %", "calibration error", "coverage %", "images/s"]
        header += [f"against {board['reference']}", "reported %"]
        rows = [[number, *_shown(row)] for number, row in enumerate(board["rows"], 1)]
        mark = "SIMULATED images: " if board["simulated"] else ""
        title = f"{mark}{board['test_images']} test images of {board['source']}; mean ± deviation over seeds"
        print_table(header, rows, title)
    for cell in (*board["failed"], *board["skipped"]):
        print(f"{cell['state']}, {cell['name']}: {cell['reason']}")
    for model_id, reason in board["lost"].items():
        print(f"not on the board, {model_id}: {reason}")
    print(f"board: {short(Path(board['folder']) / 'board.md')}")


def _shown(row: dict[str, Any]) -> list[Any]:
    against, reported = row["against_reference"], row["reported_percent"]
    return [
        row["label"],
        len(row["seeds"]),
        _spread(row["accuracy"], 100, 1),
        f"{_spread(row['ece_before'], 1, 3)} → {_spread(row['ece'], 1, 3)}",
        _spread(row["coverage"], 100, 1),
        f"{row['images_per_second']['mean']:,.0f}",
        f"{100 * against['mean']:+.1f}, {against['verdict']}" if against else "",
        "" if reported is None else f"{reported:.2f}",
    ]


def _spread(spread: dict[str, Any], scale: float, digits: int) -> str:
    if spread["mean"] is None:
        return "–"
    mean = f"{scale * spread['mean']:.{digits}f}"
    return mean if spread["deviation"] is None else f"{mean} ± {scale * spread['deviation']:.{digits}f}"
