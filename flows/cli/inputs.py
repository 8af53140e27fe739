"""`morphcat inputs`: file by file, what became of everything that lies where sky arrives."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from time import time

from flows.cli.common import Subparsers, workspace_of
from flows.cli.display import print_json, print_table


def add(subparsers: Subparsers) -> None:
    """Declare `inputs`."""
    parser = subparsers.add_parser("inputs", help="file by file, what became of everything under the roots")
    parser.add_argument(
        "--tiles", metavar="DIR", action="append", default=[], help="folder or file to look at (incoming/); repeatable"
    )
    parser.add_argument("--model", metavar="ID", help="the model whose catalogue counts (that of the current release)")
    parser.set_defaults(run=inputs)


def inputs(arguments: argparse.Namespace) -> None:
    """Print the table."""
    from models.artifacts.registry import load_card
    from pipeline.survey.input_report import input_statuses
    from pipeline.survey.quarantine import surveyed_model

    workspace = workspace_of(arguments)
    model = arguments.model or surveyed_model(workspace)
    card = load_card(workspace.models, model) if model else None
    rows = input_statuses(workspace, [Path(root).absolute() for root in arguments.tiles], card, time())
    if arguments.json:
        print_json([asdict(row) for row in rows])
    else:
        print_table(("file", "kind", "outcome", "tile"), [(r.file, r.kind, r.outcome, r.tile) for r in rows])
