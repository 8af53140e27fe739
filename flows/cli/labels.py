"""`morphcat labels add | log | show | revert`: what people say of objects, kept version by version."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.cli.common import Subparsers, at_least_one, workspace_of
from flows.cli.display import print_csv, print_json, print_message, print_table, rows_of
from flows.runtime.events import emit_labels_changed

_REFUSED_SHOWN = 20


def add(subparsers: Subparsers) -> None:
    """Declare `labels` and its verbs."""
    parser = subparsers.add_parser("labels", help="labels that people gave: add, list, show, take back")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _declare_add(verbs)
    log = verbs.add_parser("log", help="every version: who, when, from what, how many")
    log.set_defaults(run=show_log)
    show = verbs.add_parser("show", help="the labels in force: of each object the newest that is not taken back")
    show.add_argument("--version", metavar="V", help="as it was when this version was the newest (number or name)")
    show.add_argument("--format", choices=("table", "csv", "json"), default="table")
    show.set_defaults(run=show_labels)
    revert = verbs.add_parser("revert", help="take a version back, by a version that says so")
    revert.add_argument("version", metavar="VERSION", help="its number or name, see `labels log`")
    revert.add_argument("--author", metavar="NAME", required=True, help="who takes it back")
    revert.add_argument("--note", metavar="TEXT", default="", help="why")
    revert.set_defaults(run=revert_version)


def _declare_add(verbs: Subparsers) -> None:
    parser = verbs.add_parser("add", help="add the labels of a file to those that are there")
    parser.add_argument("file", metavar="FILE", type=Path, help="CSV, Parquet, FITS or VOTable")
    parser.add_argument("--author", metavar="NAME", required=True, help="who gave the labels")
    parser.add_argument("--source", metavar="TEXT", help="where they come from (the name of the file)")
    parser.add_argument("--note", metavar="TEXT", default="", help="a sentence for the log")
    parser.add_argument(
        "--radius", metavar="ARCSEC", type=float, default=1.0, help="for rows that name a position (1.0)"
    )
    parser.add_argument(
        "--column",
        metavar="FOR=NAME",
        action="append",
        default=[],
        help="the column for object_id, ra, dec, label or note, where its name is another; repeatable",
    )
    parser.add_argument("--votes", action="store_true", help="make labels of Galaxy Zoo vote fractions, by the rule")
    parser.add_argument("--release", metavar="R", help="look objects up in this release (the current one)")
    parser.add_argument("--strict", action="store_true", help="add nothing when any row is refused; exit status 1")
    parser.add_argument(
        "--show",
        metavar="N",
        type=at_least_one,
        default=_REFUSED_SHOWN,
        help=f"refused rows to print ({_REFUSED_SHOWN})",
    )
    parser.set_defaults(run=add_labels)


def add_labels(arguments: argparse.Namespace) -> int:
    """Add the labels of a file, and say which rows were refused, and why."""
    from catalogs.labels.checks import checked, objects_of
    from catalogs.labels.io import read_proposals
    from catalogs.labels.store import AddResult
    from catalogs.labels.store import add as append
    from pipeline.core.classes import GALAXY10_CLASSES
    from pipeline.datasets.galaxy_zoo import GALAXY_ZOO_DECALS

    workspace = workspace_of(arguments)
    proposals, not_understood = read_proposals(
        arguments.file,
        [(one.slug, one.name) for one in GALAXY10_CLASSES],
        columns=_columns(arguments.column),
        votes=GALAXY_ZOO_DECALS if arguments.votes else None,
    )
    labels, refused, repeated = checked(proposals, objects_of(workspace.catalog, arguments.release), arguments.radius)
    refused = sorted(not_understood + refused, key=lambda one: one.row)
    stopped = arguments.strict and bool(refused)
    added = AddResult(None, 0)
    if not stopped:
        source = arguments.source if arguments.source is not None else arguments.file.name
        added = append(workspace.labels, labels, author=arguments.author, source=source, note=arguments.note)
    version = added.version
    if version and emit_labels_changed(workspace.root, version.name, version.labels):
        print_message("the service knows of them: a retraining begins when no more come for a while")
    counts = {
        "rows": len(proposals) + len(not_understood),
        "added": version.labels if version else 0,
        "new": version.new if version else 0,
        "revised": version.revised if version else 0,
        "unchanged": added.unchanged,
        "repeated": repeated,
        "refused": len(refused),
    }
    if arguments.json:
        name = version.name if version else None
        print_json({"version": name, **counts, "refused_rows": [asdict(one) for one in refused]})
    else:
        _print_refused([asdict(one) for one in refused], arguments.show)
        _print_added(counts, version.name if version else "", stopped)
    return 1 if stopped else 0


def show_log(arguments: argparse.Namespace) -> None:
    """Print every version, the newest first."""
    from catalogs.labels.store import taken_back, versions

    history = versions(workspace_of(arguments).labels)
    gone = taken_back(history)
    if arguments.json:
        print_json([{**one.model_dump(), "taken_back": one.name in gone} for one in reversed(history)])
        return
    if not history:
        print("no labels yet: add some with `morphcat labels add FILE --author NAME`")
        return
    rows = [
        (one.name, one.time, one.author, one.source, one.labels, one.new, one.revised, one.reverts, one.note)
        for one in reversed(history)
    ]
    marked = [(f"{row[0]} (taken back)" if row[0] in gone else row[0], *row[1:]) for row in rows]
    print_table(("version", "time", "author", "source", "labels", "new", "revised", "takes back", "note"), marked)


def show_labels(arguments: argparse.Namespace) -> None:
    """Print the labels in force."""
    from catalogs.labels.store import digest, in_force

    table = in_force(workspace_of(arguments).labels, arguments.version)
    names, rows = table.column_names, rows_of(table)
    form = "json" if arguments.json else arguments.format
    if form == "json":
        print_json({"digest": digest(table), "labels": [dict(zip(names, row, strict=True)) for row in rows]})
    elif form == "csv":
        print_csv(names, rows)
    else:
        print_table(names, rows)
        counts = Counter(table["label"].to_pylist()).most_common()
        print_message(
            f"{table.num_rows} labels, digest {digest(table)}; " + ", ".join(f"{n} {slug}" for slug, n in counts)
        )


def revert_version(arguments: argparse.Namespace) -> None:
    """Take a version back."""
    from catalogs.labels.store import revert

    workspace = workspace_of(arguments)
    version = revert(workspace.labels, arguments.version, author=arguments.author, note=arguments.note)
    emit_labels_changed(workspace.root, version.name, version.labels)
    if arguments.json:
        print_json(version.model_dump())
    else:
        print(f"version {version.name}: takes back {version.reverts}")


def _columns(given: list[str]) -> dict[str, str]:
    """`FOR=NAME` pairs; what stands before the first equals sign is what the column is for."""
    from pipeline.core.errors import UserError

    pairs = [text.partition("=") for text in given]
    for purpose, equals, name in pairs:
        if not (equals and purpose and name):
            raise UserError(f"--column {purpose}{equals}{name}: expected FOR=NAME, such as label=answer")
    return {purpose: name for purpose, _, name in pairs}


def _print_refused(refused: list[dict[str, Any]], most: int) -> None:
    if not refused:
        return
    names = ("row", "object", "label", "reason", "detail")
    print_table(names, [[one[name] for name in names] for one in refused[:most]], title="refused")
    if len(refused) > most:
        print(f"… and {len(refused) - most} more (--show N, or --json for all)")
    print("refused: " + ", ".join(f"{n} {why}" for why, n in Counter(one["reason"] for one in refused).most_common()))


def _print_added(counts: dict[str, int], version: str, stopped: bool) -> None:
    if stopped:
        print(f"nothing added: {counts['refused']} of {counts['rows']} rows are refused, and --strict wants none")
        return
    others = f"{counts['unchanged']} were there already, {counts['repeated']} repeat another row"
    if not version:
        print(f"nothing to add: {others}, {counts['refused']} refused")
        return
    confirmed = counts["added"] - counts["new"] - counts["revised"]
    print(
        f"version {version}: {counts['added']} labels added ({counts['new']} new, {counts['revised']} revised, "
        f"{confirmed} confirmed); {others}, {counts['refused']} refused"
    )
