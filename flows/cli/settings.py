"""`morphcat config`: every setting with its meaning."""

from __future__ import annotations

import argparse

from flows.cli.common import Subparsers, make_root, workspace_of
from flows.cli.display import print_json, print_message
from pipeline.config.settings import to_toml
from pipeline.config.workspace import FILE_NAME
from pipeline.core.errors import UserError


def add(subparsers: Subparsers) -> None:
    """Declare `config`."""
    parser = subparsers.add_parser("config", help="print every setting with its meaning, as it is in force here")
    parser.add_argument("--write", action="store_true", help="write them to morphcat.toml in the workspace")
    parser.set_defaults(run=config)


def config(arguments: argparse.Namespace) -> None:
    """Print the settings in force, or write them."""
    workspace = workspace_of(arguments)
    if arguments.write:
        path = workspace.root / FILE_NAME
        if path.exists():
            raise UserError(f"{path} is there already; edit it, or delete it first")
        make_root(workspace)
        path.write_text(to_toml(workspace.settings))
        print_message(f"wrote {path}")
    elif arguments.json:
        print_json(workspace.settings.model_dump(by_alias=False))
    else:
        print(to_toml(workspace.settings), end="")
