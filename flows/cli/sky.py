"""`morphcat simulate`: a simulated sky to try everything on."""

from __future__ import annotations

import argparse
import re
from typing import Any

from flows.cli.common import Subparsers, bars, count, make_root, workspace_of
from flows.cli.display import print_json
from pipeline.config.workspace import Workspace
from pipeline.core.progress import track


def add(subparsers: Subparsers) -> None:
    """Declare `simulate`."""
    parser = subparsers.add_parser(
        "simulate", help="write a simulated sky: tiles to classify, a labelled set to train on"
    )
    parser.add_argument("--tiles", type=count, default=4, help="sky tiles under incoming/ (4)")
    parser.add_argument("--galaxies", type=count, default=50, help="galaxies a tile, and a brick (50)")
    parser.add_argument(
        "--bricks",
        type=columns_and_rows,
        default=(0, 0),
        metavar="CxR",
        help="whole survey bricks too, such as 2x1: coadds and tractor tables under incoming/simulated-bricks (none)",
    )
    parser.add_argument(
        "--benchmark", type=count, default=0, help="images of benchmark/galaxy10.h5, Galaxy10 layout (0: none)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=simulate)


def simulate(arguments: argparse.Namespace) -> None:
    """Write a simulated sky."""
    workspace = workspace_of(arguments)
    make_root(workspace)
    with bars():
        written = write_sky(workspace, arguments)
        written |= write_block(workspace, arguments)
    print_json(written) if arguments.json else [print(f"{key}: {value}") for key, value in written.items()]


def write_sky(workspace: Workspace, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write tiles and benchmark as the options say; returns what was written and where."""
    from models.preprocessing import colour_rule
    from pipeline.simulation import simulate as write

    galaxy10 = workspace.benchmark / "galaxy10.h5" if arguments.benchmark else None
    total = arguments.tiles * arguments.galaxies + arguments.benchmark
    with track("simulating galaxies", total) as step:
        write(
            workspace.incoming,
            tiles=arguments.tiles,
            galaxies=arguments.galaxies,
            seed=arguments.seed,
            galaxy10=galaxy10,
            benchmark_images=arguments.benchmark,
            render=colour_rule,
            on_progress=lambda done: step(done, "simulated"),
        )
    return {
        "tiles": arguments.tiles,
        "galaxies": arguments.tiles * arguments.galaxies,
        "incoming": str(workspace.incoming),
        "benchmark": str(galaxy10) if galaxy10 else None,
        "simulated": True,
    }


def write_block(workspace: Workspace, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write a block of survey bricks if the options ask for one; returns what was written and where."""
    from pipeline.simulation import block_steps, write_bricks

    columns, rows = arguments.bricks
    if not columns:
        return {}
    galaxies = columns * rows * arguments.galaxies
    root = workspace.incoming / "simulated-bricks"
    with track("simulating bricks", block_steps(columns, rows, galaxies)) as step:
        written = write_bricks(
            root,
            seed=arguments.seed,
            columns=columns,
            rows=rows,
            galaxies=galaxies,
            truth=workspace.incoming.parent / "simulated_bricks_truth.csv",
            on_progress=lambda done: step(done, "simulated"),
        )
    return {"bricks": str(root), "galaxies_on_bricks": galaxies, "truth_of_bricks": str(written.truth)}


def columns_and_rows(text: str) -> tuple[int, int]:
    """An argument such as 2x1: columns and rows of a block; zeros for "none"."""
    if text == "none":
        return 0, 0
    match = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be columns x rows of bricks, such as 2x1, found {text!r}")
    return int(match[1]), int(match[2])
