"""`morphcat release build | list | current | rollback | verify`: what readers of the catalogue see."""

from __future__ import annotations

import argparse
from typing import Any

from flows.cli.common import Subparsers, bars, workspace_of
from flows.cli.display import print_json, print_table
from pipeline.core.errors import UserError

EXIT_MISMATCH = 5


def add(subparsers: Subparsers) -> None:
    """Declare `release` and its verbs."""
    parser = subparsers.add_parser("release", help="releases of the catalogue: build, list, go back, check")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    built = verbs.add_parser("build", help="publish all committed sky tiles of a model, if anything changed")
    built.add_argument("--model", metavar="ID", help="the model (that of the current release, else the champion)")
    built.set_defaults(run=build)
    verbs.add_parser("list", help="all releases").set_defaults(run=list_releases)
    verbs.add_parser("current", help="the release that readers see").set_defaults(run=show_current)
    back = verbs.add_parser("rollback", help="let readers see another release; nothing is deleted")
    back.add_argument("name", metavar="NAME", help="the release to go to, as `release list` shows it")
    back.add_argument("--reason", metavar="TEXT", default="", help="why, for catalog/history.jsonl")
    back.set_defaults(run=go_back)
    checked = verbs.add_parser("verify", help="compare every file of a release with its checksum")
    checked.add_argument("name", metavar="NAME", nargs="?", help="the release (the current one)")
    checked.set_defaults(run=verify)


def build(arguments: argparse.Namespace) -> None:
    """Publish what is committed."""
    from catalogs.releases.registry import is_published
    from pipeline.survey.publish import build_release
    from pipeline.survey.quarantine import surveyed_model

    workspace = workspace_of(arguments)
    model = arguments.model or surveyed_model(workspace)
    unchanged = model is not None and is_published(workspace.catalog, model)
    with bars():
        info = build_release(workspace, model) if model else None
    if info is None:
        raise UserError(f"no sky tile in {workspace.catalog} is committed yet: run `morphcat survey` first")
    if arguments.json:
        print_json({**info.model_dump(), "nothing_to_do": unchanged})
        return
    if unchanged:
        print(f"nothing to do: release {info.release} holds what is committed")
    else:
        print(f"release {info.release}: {info.objects} objects of {info.tiles} sky tiles in {info.partitions} files")


def list_releases(arguments: argparse.Namespace) -> None:
    """Print all releases, oldest first."""
    from catalogs.releases.registry import current_name, folder_size, layout_of, readable_releases

    catalog = workspace_of(arguments).catalog
    current = current_name(catalog)
    rows: list[dict[str, Any]] = [
        {
            "release": info.release,
            "created": info.created,
            "model_id": info.model_id,
            "objects": info.objects,
            "bytes": folder_size(layout_of(catalog, info.release).root),
            "current": info.release == current,
        }
        for info in readable_releases(catalog)
    ]
    if arguments.json:
        print_json(rows)
    elif not rows:
        print("no release yet")
    else:
        shown = []
        for row in rows:
            mark = "current" if row["current"] else ""
            size = f"{row['bytes'] / 1e6:.1f}"
            shown.append([row["release"], row["created"], row["model_id"], row["objects"], size, mark])
        print_table(("release", "created", "model", "objects", "MB", ""), shown)


def show_current(arguments: argparse.Namespace) -> None:
    """Print the release that readers see."""
    from catalogs.releases.registry import current_release, layout_of

    catalog = workspace_of(arguments).catalog
    info = current_release(catalog)
    if info is None:
        raise UserError(f"no release in {catalog} yet: run `morphcat survey` first")
    collection = layout_of(catalog, info.release).collection
    if arguments.json:
        print_json({**info.model_dump(), "collection": str(collection)})
        return
    for name, value in info.words().items():
        print(f"{name:24} {value}")
    print(f"{'collection':24} {collection}")


def go_back(arguments: argparse.Namespace) -> None:
    """Let readers see another release."""
    from catalogs.releases.registry import rollback

    info = rollback(workspace_of(arguments).catalog, arguments.name, arguments.reason)
    if arguments.json:
        print_json(info.model_dump())
    else:
        print(f"readers see release {info.release} ({info.objects} objects, model {info.model_id})")


def verify(arguments: argparse.Namespace) -> int:
    """Compare every file of a release with its checksum."""
    from catalogs.query.sql import find_release
    from catalogs.validation.audit import verify as problems_of

    info, layout = find_release(workspace_of(arguments).catalog, arguments.name)
    problems = problems_of(layout)
    if arguments.json:
        print_json({"release": info.release, "problems": [str(problem) for problem in problems]})
    else:
        for problem in problems:
            print(problem)
        print(f"release {info.release}: " + (f"{len(problems)} problems" if problems else "every file is as published"))
    return EXIT_MISMATCH if problems else 0
