"""`morphcat drift`: whether what is new in a release is like what came before."""

from __future__ import annotations

import argparse

from flows.cli.common import Subparsers, workspace_of
from flows.cli.display import print_json


def add(subparsers: Subparsers) -> None:
    """Declare `drift`."""
    parser = subparsers.add_parser("drift", help="compare the new objects of a release with those before, by region")
    parser.add_argument("release", metavar="RELEASE", nargs="?", help="the release (the current one)")
    parser.set_defaults(run=show)


def show(arguments: argparse.Namespace) -> None:
    """Compare with the settings of now and print the report; nothing is written."""
    from pipeline.drift.monitor import drift

    workspace = workspace_of(arguments)
    report = drift(workspace.catalog, workspace.settings.drift, arguments.release)
    if arguments.json:
        print_json(report.to_dict())
    else:
        print(report.to_markdown(), end="")
