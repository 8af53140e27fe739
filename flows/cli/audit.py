"""`morphcat audit` and `diff`: whether a release is whole and consistent, and what changed between two."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flows.cli.common import Subparsers, count, short, workspace_of
from flows.cli.display import print_json, print_message, print_table, rows_of
from flows.cli.output import FORMATS, format_of, write_table
from flows.cli.release import EXIT_MISMATCH

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_CHANGED = 20


def add(subparsers: Subparsers) -> None:
    """Declare `audit` and `diff`."""
    parser = subparsers.add_parser("audit", help="prove from the files that a release is whole and consistent")
    parser.add_argument("release", metavar="RELEASE", nargs="?", help="a release (the current one)")
    parser.add_argument(
        "--quick", action="store_true", help="without checksums, and without comparing each row with its sky tile"
    )
    parser.set_defaults(run=audit)

    parser = subparsers.add_parser("diff", help="what changed from one release to another, object by object, and why")
    parser.add_argument("old", metavar="A", help="a release")
    parser.add_argument("new", metavar="B", help="a later one")
    parser.add_argument("--limit", metavar="N", type=count, help=f"objects to show ({_MOST_CHANGED}; else all)")
    parser.add_argument("--format", choices=FORMATS, help="every changed object in this format instead of a summary")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write every changed object to a file")
    parser.set_defaults(run=diff)


def audit(arguments: argparse.Namespace) -> int:
    """Check a release; a line for each check."""
    from catalogs.validation.audit import audit as run

    report = run(workspace_of(arguments).catalog, arguments.release, quick=arguments.quick)
    if arguments.json:
        print_json(report.to_dict())
        return 0 if report.ok else EXIT_MISMATCH
    print(f"release {report.release}: {report.rows} rows of {report.tiles} sky tiles")
    for check in report.checks:
        remark = f" ({check.wrong} mismatches)" if check.wrong else f" ({check.remark})" if check.remark else ""
        print(f"{check.status:8}{check.name:14}{check.says}{remark}")
        for example in check.examples:
            print(f"{'':8}{'':14}- {example}")
    wrong = sum(check.status == "wrong" for check in report.checks)
    print("all checks passed" if report.ok else f"{wrong} of {len(report.checks)} checks found mismatches")
    return 0 if report.ok else EXIT_MISMATCH


def diff(arguments: argparse.Namespace) -> None:
    """Compare two releases."""
    from catalogs.releases.diff import compare, flip_matrix, totals
    from catalogs.releases.registry import layout_of, read_release

    catalog = workspace_of(arguments).catalog
    names = [read_release(catalog, name).release for name in (arguments.old, arguments.new)]
    changes = compare(*(layout_of(catalog, name) for name in names))
    if arguments.format or arguments.out:
        _write_all(changes, arguments)
        return
    limit = _MOST_CHANGED if arguments.limit is None else arguments.limit
    summary = {
        "totals": totals(changes),
        "flips": flip_matrix(changes),
        "most_changed": changes.slice(0, limit),
    }
    if arguments.json:
        plain = {name: _dicts(table) for name, table in summary.items()}
        print_json({"old": names[0], "new": names[1], "objects": changes.num_rows, **plain})
    else:
        print(f"{names[0]} -> {names[1]}: {changes.num_rows} objects changed")
        _print_summary(summary)


def _write_all(changes: pa.Table, arguments: argparse.Namespace) -> None:
    shown = changes if arguments.limit is None else changes.slice(0, arguments.limit)
    form = format_of("json" if arguments.json else arguments.format, arguments.out)
    write_table(shown, form, arguments.out, ())
    if arguments.out:
        print_message(f"{short(arguments.out.resolve())}: {shown.num_rows} rows")


def _print_summary(summary: dict[str, pa.Table]) -> None:
    for name, table in summary.items():
        if table.num_rows:
            print()
            if name == "flips":
                _print_matrix(table)
            else:
                print_table(table.column_names, rows_of(table), name.replace("_", " "))


def _print_matrix(flips: pa.Table) -> None:
    """Old labels down, new labels across; `-` stands for no label."""
    counts = {(row["old_label"], row["new_label"]): row["objects"] for row in flips.to_pylist()}
    olds, news = sorted({old for old, _ in counts}), sorted({new for _, new in counts})
    rows = [[old or "-", *(counts.get((old, new), 0) for new in news)] for old in olds]
    print_table(["old \\ new label", *(new or "-" for new in news)], rows, "labels")


def _dicts(table: pa.Table) -> list[dict[str, object]]:
    return [dict(zip(table.column_names, row, strict=True)) for row in rows_of(table)]
