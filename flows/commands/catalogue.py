"""`morphcat query`: SQL on the catalogue."""

from __future__ import annotations

import argparse

from flows.commands.common import Subparsers, workspace_of
from flows.display import print_csv, print_json, print_table, rows_of


def add(subparsers: Subparsers) -> None:
    """Declare `query`."""
    parser = subparsers.add_parser("query", help="SQL on the catalogue: tables morphology, quarantine, tiles")
    parser.add_argument("sql", metavar="SQL", help='such as "SELECT label, count(*) FROM morphology GROUP BY label"')
    parser.add_argument("--release", metavar="NAME", help="a release (the current one)")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.set_defaults(run=query)


def query(arguments: argparse.Namespace) -> None:
    """Run SQL on the catalogue."""
    from catalogs.query import query as run

    table = run(workspace_of(arguments).catalog, arguments.sql, release=arguments.release)
    names, rows = table.column_names, rows_of(table)
    form = "json" if arguments.json else arguments.format
    if form == "json":
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    elif form == "csv":
        print_csv(names, rows)
    else:
        print_table(names, rows)
