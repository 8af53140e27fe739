"""`morphcat status`: how a workspace stands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flows.cli.common import Subparsers, workspace_of
from flows.cli.display import print_json, print_table
from flows.runtime import environment as prefect_home

if TYPE_CHECKING:
    from pipeline.inspection.status import Status

EXIT_ALARM = 4


def add(subparsers: Subparsers) -> None:
    """Declare `status`."""
    parser = subparsers.add_parser(
        "status", help="last runs, tiles and labels that wait, champion, release, alarms; exit status 4 with an alarm"
    )
    parser.set_defaults(run=show)


def show(arguments: argparse.Namespace) -> int:
    """Print how the workspace stands."""
    from pipeline.inspection.status import status

    workspace = workspace_of(arguments)
    now, served = status(workspace), prefect_home.server_of(workspace.root)
    url = served.url if served else None
    if arguments.json:
        print_json({**now.to_dict(), "service": url})
    else:
        _print(now, url)
    return EXIT_ALARM if now.alarms else 0


def _print(now: Status, url: str | None) -> None:
    print(f"workspace  {now.workspace}; {now.disk['free_gb']} of {now.disk['total_gb']} GB free")
    print(f"service    {url or 'does not run (morphcat serve starts it)'}")
    print(f"survey     {f'under way: {now.survey}' if now.survey else 'none under way'}")
    print(f"retraining {f'under way: {now.retraining}' if now.retraining else 'none under way'}")
    if now.tiles is None:
        print("champion   none: `morphcat train` makes one")
    elif now.champion:
        print(f"champion   {now.champion['model_id']} since {now.champion['since'] or 'an unknown time'}")
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in now.tiles.items())
        print(f"sky tiles  {counts}")
    if now.release:
        simulated = " (simulated)" if now.release["simulated_objects"] else ""
        origin = f"of {now.release['created']} by {now.release['model_id']}"
        print(f"release    {now.release['release']} {origin}, {now.release['objects']} objects{simulated}")
    else:
        print("release    none: `morphcat survey` makes one")
    labels = now.labels
    version = f" of version {labels['version']}" if labels["version"] else ""
    print(f"labels     {labels['labels']}{version}; {labels['not_learned']} differ from what the champion learned")
    for one in now.retrainings[:1]:
        print(f"           last retraining, {one['outcome']}: {one['why']}")
    if now.runs:
        names = ("run_id", "tiles", "skipped_tiles", "failed", "objects", "quarantined", "release")
        print_table(names, [[run[name] for name in names] for run in now.runs], title="last surveys")
    for alarm in now.alarms:
        print(f"ALARM      {alarm}")
