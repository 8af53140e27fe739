"""`morphcat survey`: new sky tiles into the catalogue."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flows.cli.common import Subparsers, bars, flow_ready, workspace_of
from flows.cli.display import print_json, print_message
from pipeline.config.workspace import Workspace

EXIT_TILES_FAILED = 3
EXIT_ALARM = 4
_MOST_REMARKS = 10
_MOST_DRIFT = 5


def add(subparsers: Subparsers) -> None:
    """Declare `survey`."""
    parser = subparsers.add_parser("survey", help="classify new or changed sky tiles and publish the catalogue")
    parser.add_argument(
        "--tiles",
        metavar="DIR",
        action="append",
        default=[],
        help="folder, archive or HDF5 file of sky tiles (incoming/); repeatable",
    )
    parser.add_argument(
        "--catalogue",
        metavar="FILE",
        help="cut these positions (CSV, Parquet, FITS with ra and dec) from bricks, not the survey's objects",
    )
    parser.add_argument("--model", metavar="ID", help="the model (the champion)")
    parser.set_defaults(run=survey)


def survey(arguments: argparse.Namespace) -> int:
    """Classify what is new and publish."""
    if arguments.catalogue:
        arguments.set = [*arguments.set, f"bricks.catalogue={json.dumps(str(Path(arguments.catalogue).absolute()))}"]
    workspace = workspace_of(arguments)
    summary, status = run_survey(workspace, arguments)
    if arguments.json:
        print_json(summary)
    else:
        print_summary(summary)
    return status


def run_survey(workspace: Workspace, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The totals of a survey and the exit status. Where there is nothing to do, no flow is started for it."""
    from pipeline.survey.plan import start_run
    from pipeline.survey.run import already_done

    roots = [Path(root).absolute() for root in arguments.tiles]
    summary = already_done(workspace, start_run(workspace, arguments.model), roots)
    if summary is not None:
        return _with_exit_status(summary.to_dict())
    return run_flow(workspace, arguments, roots, arguments.model, [])


def run_flow(
    workspace: Workspace, arguments: argparse.Namespace, roots: list[Path], model: str | None, again: list[str]
) -> tuple[dict[str, Any], int]:
    """The totals of the survey flow and the exit status; `again` are reasons of quarantine to try once more."""
    flow_ready(workspace, arguments.debug)
    from flows.survey import TilesFailed
    from flows.survey import survey as flow

    try:
        with bars():
            return _with_exit_status(
                flow(str(workspace.root), [str(root) for root in roots], model, arguments.set, again)
            )
    except TilesFailed as failed:
        print_message(f"morphcat: {failed}")
        return _with_exit_status(failed.summary.to_dict())[0], EXIT_TILES_FAILED


def _with_exit_status(summary: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Say alarms on the error stream, whatever else is printed; those of drift do not change the exit status."""
    if summary["alarm"]:
        print_message(f"morphcat: alarm: {summary['alarm']}; see `morphcat quarantine list`")
    for alarm in summary["drift"][:_MOST_DRIFT]:
        print_message(f"morphcat: drift: {alarm}")
    if len(summary["drift"]) > _MOST_DRIFT:
        print_message(f"morphcat: drift: and {len(summary['drift']) - _MOST_DRIFT} more, see `morphcat drift`")
    return summary, EXIT_ALARM if summary["alarm"] else 0


def print_summary(summary: dict[str, Any]) -> None:
    """The totals of a survey, reasons of quarantine, failures and warnings."""
    if summary["nothing_to_do"]:
        print("nothing to do: every sky tile that has arrived is done")
    print(
        f"sky tiles {summary['tiles']} ({summary['skipped_tiles']} done before); objects {summary['objects']} = "
        f"{summary['classified']} classified + {summary['unclassified']} without label + "
        f"{summary['quarantined']} quarantined + {summary['out_of_footprint']} out of footprint + "
        f"{summary['duplicates']} duplicates"
    )
    for reason, count in sorted(summary["reasons"].items()):
        print(f"  quarantined, {reason}: {count}")
    if others := summary["passed_over"]:
        print(
            "  passed over, no input by their names: "
            + ", ".join(f"{count} {ending}" for ending, count in others.items())
        )
    if not_selected := summary["set_aside"]:
        print("  catalogue rows not selected: " + ", ".join(f"{count} {why}" for why, count in not_selected.items()))
    if summary["reused"]:
        print(f"  predictions kept, for the pixels are the same: {summary['reused']}")
    if summary["duplicates_across_tiles"]:
        print(f"  rows left out of the release, objects of other tiles: {summary['duplicates_across_tiles']}")
    for tile, why in sorted(summary["waiting"].items()):
        print(f"  still arriving, {tile}: {why}")
    _print_remarks(summary["remarks"])
    for tile, error in sorted(summary["failed"].items()):
        print(f"  failed, {tile}: {error.strip().splitlines()[-1]}")
    for warning in summary["warnings"]:
        print_message(f"note: {warning}")
    simulated = summary["simulated_objects"]
    print(
        f"release {summary['release']} in {summary['catalog']}"
        + (f", {simulated} objects simulated" if simulated else "")
    )


def _print_remarks(remarks: dict[str, list[str]]) -> None:
    lines = [f"{tile}: {remark}" for tile, of_tile in sorted(remarks.items()) for remark in of_tile]
    for line in lines[:_MOST_REMARKS]:
        print(f"  remark, {line}")
    if len(lines) > _MOST_REMARKS:
        print(f"  and {len(lines) - _MOST_REMARKS} more remarks (--json has all)")
