"""`morphcat plan`: what a survey would do now, and how long it would take here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flows.cli.common import Subparsers, workspace_of
from flows.cli.display import print_json, print_message

if TYPE_CHECKING:
    from pipeline.survey.estimate import Interval, SurveyEstimate


def add(subparsers: Subparsers) -> None:
    """Declare `plan`."""
    parser = subparsers.add_parser("plan", help="what a survey would do now: tiles, stamps, hours and disk")
    parser.add_argument(
        "--tiles", metavar="DIR", action="append", default=[], help="as for survey (incoming/); repeatable"
    )
    parser.add_argument("--model", metavar="ID", help="the model (the champion)")
    parser.add_argument(
        "--seconds", type=_seconds, default=60.0, help="how long to try tiles on this machine; 0: only count (60)"
    )
    parser.set_defaults(run=plan)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be 0 or more seconds")
    return value


def plan(arguments: argparse.Namespace) -> None:
    """Count, try some tiles, and print the forecast. Changes nothing and starts no flow."""
    from pipeline.survey.estimate import estimate

    workspace = workspace_of(arguments)
    if arguments.seconds:
        print_message(f"counting, then trying sky tiles on this machine for about {arguments.seconds:g} s …")
    roots = [Path(root).absolute() for root in arguments.tiles]
    found = estimate(workspace, arguments.model, roots, arguments.seconds)
    print_json(found.to_dict()) if arguments.json else _print(found, workspace.settings.workers.kind)


def _print(found: SurveyEstimate, kind: str) -> None:
    print(f"sky tiles {found.tiles}: {found.to_do} to do, {found.done} done, {found.waiting} still arriving")
    if not found.to_do:
        print("nothing to do: every sky tile that has arrived is done")
        return
    print("to do: " + ", ".join(f"{count} {kind}" for kind, count in sorted(found.kinds.items())))
    print(f"stamps to classify: {found.stamps:,}{_how_counted(found)}; to read: {_bytes(found.read_bytes)}")
    if found.pilot is None:
        return
    for tile, error in sorted(found.pilot.failed.items()):
        print(f"  could not be tried, {tile}: {error}")
    if found.seconds is None or found.read_bytes_per_second is None:
        print("no forecast: nothing could be tried within this time, or nothing of it classified")
        return
    pilot = found.pilot
    print(
        f"tried on this machine: {pilot.stamps:,} stamps of {len(pilot.tiles)} sky tiles, "
        f"{pilot.stamps_per_second:.3g} stamps/s, {_bytes(found.read_bytes_per_second)}/s"
        + (f" by {pilot.workers} workers" if pilot.workers > 1 else "")
    )
    print(f"forecast from these {pilot.stamps:,} stamps: {_span(found.seconds)}{_for_whom(found, kind)}")
    if found.tile_bytes is not None and found.release_bytes is not None:
        print(
            f"disk: {_bytes(found.tile_bytes)} for committed tiles, {_bytes(found.release_bytes)} for the release; "
            f"{_bytes(found.free_bytes)} are free"
        )
        if found.tile_bytes + found.release_bytes > found.free_bytes:
            print_message("morphcat: the disk of the catalogue has too little room for this survey")


def _how_counted(found: SurveyEstimate) -> str:
    if not found.bricks:
        return ""
    if found.catalogues_read == found.bricks:
        return f" (of {found.bricks} bricks by their catalogues)"
    return f" (about; of {found.bricks} bricks from the catalogues of {found.catalogues_read} of them)"


def _for_whom(found: SurveyEstimate, kind: str) -> str:
    workers = f"{found.workers} worker{'s' if found.workers > 1 else ''}"
    if kind in ("inline", "local"):
        return f" with {workers}"
    return f" with {workers} of the kind {kind}, if each is like this machine"


def _span(seconds: Interval) -> str:
    """A time in the unit that suits it, with its range."""
    unit, name = next(((u, n) for u, n in ((3600.0, "hours"), (60.0, "minutes")) if seconds.value >= 2 * u), (1.0, "s"))
    value, low, high = (_number(each / unit) for each in (seconds.value, seconds.low, seconds.high))
    return f"{value} {name} ({low} to {high})"


def _number(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _bytes(number: float) -> str:
    """A size in the unit that suits it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
