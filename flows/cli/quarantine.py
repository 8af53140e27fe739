"""`morphcat quarantine list | retry`: inputs that gave no row, and another try."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.cli.common import Subparsers, workspace_of
from flows.cli.display import print_json, print_message, print_table
from flows.cli.survey import print_summary, run_flow
from pipeline.config.workspace import Workspace

_DETAIL = 60  # characters of a detail that are shown on a terminal
_SHOWN = ("source_name", "reason", "exception", "attempts", "first_seen", "last_seen", "file", "detail")


def add(subparsers: Subparsers) -> None:
    """Declare `quarantine list` and `quarantine retry`."""
    parser = subparsers.add_parser("quarantine", help="inputs that gave no row: what, why, since when; try them again")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listed = verbs.add_parser("list", help="every input in quarantine, and sums by reason")
    listed.add_argument("--tile", metavar="T", default="", help="of one sky tile: its id, or the name of its source")
    listed.set_defaults(run=list_entries)
    retried = verbs.add_parser("retry", help="survey the sky tiles that hold such inputs once more")
    retried.add_argument(
        "--tiles", metavar="DIR", action="append", default=[], help="where the sky tiles lie now (where they lay)"
    )
    retried.set_defaults(run=retry)
    for verb in (listed, retried):
        verb.add_argument(
            "--reason", metavar="R", action="append", default=[], help="only for this reason (any); repeatable"
        )
        verb.add_argument("--model", metavar="ID", help="the model (that of the current release)")


def list_entries(arguments: argparse.Namespace) -> None:
    """Print what is in quarantine."""
    from pipeline.survey.quarantine import quarantine_entries

    workspace = workspace_of(arguments)
    model = _model(workspace, arguments)
    entries = quarantine_entries(workspace, model, arguments.reason, arguments.tile)
    if arguments.json:
        print_json([{"tile_id": stamp.tile_id, **entry.model_dump()} for stamp, entry in entries])
        return
    if not entries:
        print("nothing in quarantine" + (" for these reasons" if arguments.reason else ""))
        return
    print_table(
        ("object", "reason", "exception", "attempts", "first seen", "last seen", "file", "detail"),
        [[_cell(name, getattr(entry, name)) for name in _SHOWN] for _, entry in entries],
    )
    for reason, count in Counter(entry.reason for _, entry in entries).most_common():
        print(f"{reason}: {count}")


def retry(arguments: argparse.Namespace) -> int:
    """Survey sky tiles with inputs in quarantine once more, and say how many came good."""
    from pipeline.survey.quarantine import (
        RetryPlan,
        RetryResult,
        plan_retry,
        quarantine_entries,
        reasons_of,
        retry_result,
    )

    workspace = workspace_of(arguments)
    reasons, model = reasons_of(arguments.reason), _model(workspace, arguments)
    entries = quarantine_entries(workspace, model, arguments.reason)
    retry = plan_retry(workspace, model, entries) if not arguments.tiles else RetryPlan()
    for tile, why in sorted(retry.skipped.items()):
        print_message(f"note: passed over, {tile}: {why}")
    roots = [Path(root).absolute() for root in arguments.tiles] or retry.roots
    summary, status, result = None, 0, RetryResult()
    if entries and roots:
        summary, status = run_flow(workspace, arguments, roots, model, sorted(reasons))
        result = retry_result(workspace, model, entries, summary["run_id"])
    if arguments.json:
        print_json({**asdict(result), "passed_over": retry.skipped, "survey": summary})
        return status
    if summary is None:
        print("nothing to try again")
        return status
    print_summary(summary)
    print(
        f"tried again: {result.tried} inputs in quarantine; {result.good} came good, {result.still} are still there, "
        f"{result.gone} are gone"
    )
    return status


def _model(workspace: Workspace, arguments: argparse.Namespace) -> str:
    """The model whose tiles are meant; "none" if there is no model yet, and hence no tile."""
    from pipeline.survey.quarantine import surveyed_model

    return arguments.model or surveyed_model(workspace) or "none"


def _cell(name: str, value: Any) -> Any:
    """A value as the table shows it: details are cut on a terminal, and only there."""
    if name == "detail" and sys.stdout.isatty() and len(value) > _DETAIL:
        return value[: _DETAIL - 1] + "…"
    return value
