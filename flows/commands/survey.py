"""`morphcat survey`: new sky tiles into the catalogue."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flows.commands.common import Subparsers, bars, flow_ready, workspace_of
from flows.display import print_json, say
from pipeline.settings import Workspace

EXIT_TILES_FAILED = 3


def add(subparsers: Subparsers) -> None:
    """Declare `survey`."""
    parser = subparsers.add_parser("survey", help="classify new or changed sky tiles and publish the catalogue")
    parser.add_argument(
        "--tiles",
        metavar="DIR",
        action="append",
        default=[],
        help="folder or HDF5 file of sky tiles (incoming/); repeatable",
    )
    parser.add_argument("--model", metavar="ID", help="the model (the champion)")
    parser.set_defaults(run=survey)


def survey(arguments: argparse.Namespace) -> int:
    """Classify what is new and publish."""
    workspace = workspace_of(arguments)
    summary, status = run_survey(workspace, arguments)
    if arguments.json:
        print_json(summary)
    else:
        print_summary(summary)
    return status


def run_survey(workspace: Workspace, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The totals of a survey and the exit status. Where there is nothing to do, no flow is started for it."""
    from pipeline import survey as story

    roots = [Path(root).absolute() for root in arguments.tiles]
    summary = story.already_done(workspace, story.begin(workspace, arguments.model), roots)
    if summary is not None:
        return summary.to_dict(), 0
    flow_ready(workspace, arguments.debug)
    from flows.survey import TilesFailed
    from flows.survey import survey as flow

    try:
        with bars():
            return flow(str(workspace.root), [str(root) for root in roots], arguments.model, arguments.set), 0
    except TilesFailed as failed:
        say(f"morphcat: {failed}")
        return failed.summary.to_dict(), EXIT_TILES_FAILED


def print_summary(summary: dict[str, Any]) -> None:
    """The totals of a survey, reasons of quarantine, failures and warnings."""
    if summary["nothing_to_do"]:
        print("nothing to do: every sky tile is done")
    print(
        f"sky tiles {summary['tiles']} ({summary['skipped_tiles']} done before); objects {summary['objects']} = "
        f"{summary['classified']} classified + {summary['unclassified']} without label + "
        f"{summary['quarantined']} quarantined"
    )
    for reason, count in sorted(summary["reasons"].items()):
        print(f"  quarantined, {reason}: {count}")
    if others := summary["passed_over"]:
        print(
            "  passed over, no input by their names: "
            + ", ".join(f"{count} {ending}" for ending, count in others.items())
        )
    for tile, error in sorted(summary["failed"].items()):
        print(f"  failed, {tile}: {error.strip().splitlines()[-1]}")
    for warning in summary["warnings"]:
        say(f"note: {warning}")
    simulated = summary["simulated_objects"]
    print(
        f"release {summary['release']} in {summary['catalog']}"
        + (f", {simulated} objects simulated" if simulated else "")
    )
