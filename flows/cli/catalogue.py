"""`morphcat query`, `cone` and `decode`: the catalogue by SQL, by position, and its bits as text."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from flows.cli.common import Subparsers, count, short, workspace_of
from flows.cli.display import print_json, print_message, print_table
from flows.cli.output import FORMATS, format_of, write_table
from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from catalogs.query.catalog import Catalogue


def add(subparsers: Subparsers) -> None:
    """Declare `query`, `cone` and `decode`."""
    parser = subparsers.add_parser("query", help="SQL on the catalogue: morphology, tiles, runs, quarantine …")
    parser.add_argument(
        "sql",
        metavar="SQL",
        help='such as "SELECT label, count(*) FROM morphology GROUP BY label"; CONE(ra, dec, radius), all in degrees, '
        "is true within a circle",
    )
    _answer_options(parser)
    parser.set_defaults(run=query)

    parser = subparsers.add_parser("cone", help="objects within a circle on the sky, the nearest first")
    parser.add_argument(
        "position", metavar="RA DEC", nargs="+", help="degrees, or sexagesimal: 10:20:30.5 +02:03:04, 10h20m30.5s"
    )
    parser.add_argument("radius", metavar="RADIUS", help="10m (arcmin), 30s (arcsec), 0.5d or 0.5 (degrees)")
    parser.add_argument("--columns", metavar="A,B,…", help="columns to show (all); distance in arcsec comes last")
    _answer_options(parser)
    # Else argparse takes the declination -02:03:04 for an option.
    parser._negative_number_matcher = re.compile(r"-\.?\d")
    parser.set_defaults(run=cone)

    parser = subparsers.add_parser("decode", help="quality flags and prediction sets in words")
    parser.add_argument("flags", metavar="FLAGS", nargs="?", type=_number, help="a value of quality_flags")
    parser.add_argument("--pred-set", metavar="N", type=_number, help="a value of pred_set")
    parser.add_argument("--release", metavar="NAME", help="whose classes pred_set means (the current release)")
    parser.set_defaults(run=decode)


def query(arguments: argparse.Namespace) -> None:
    """Run SQL on the catalogue."""
    form = _format(arguments)
    catalogue = _open(arguments)
    result = catalogue.arrow(arguments.sql, limit=arguments.limit)
    write_table(result, form, arguments.out, catalogue.columns)
    _print_where(arguments, result.num_rows)


def cone(arguments: argparse.Namespace) -> None:
    """Objects within a circle."""
    from catalogs.query.cone_search import Cone
    from flows.cli.coordinates import position_of, radius_of

    form = _format(arguments)
    circle = Cone(*position_of(arguments.position), radius_of(arguments.radius))
    columns = arguments.columns.replace(" ", "").split(",") if arguments.columns else None
    catalogue = _open(arguments)
    result = catalogue.cone_arrow(circle, columns, limit=arguments.limit)
    write_table(result, form, arguments.out, catalogue.columns)
    _print_where(arguments, result.num_rows)


def decode(arguments: argparse.Namespace) -> None:
    """Flags and sets as text."""
    from catalogs.query.catalog import describe_flags

    if arguments.flags is None and arguments.pred_set is None:
        raise UserError("decode what? A value of quality_flags, or --pred-set N")
    flags = describe_flags(arguments.flags) if arguments.flags is not None else None
    classes = _open(arguments).decode_set(arguments.pred_set) if arguments.pred_set is not None else None
    if arguments.json:
        decoded = {"quality_flags": flags and dict(flags), "pred_set": classes}
        print_json({name: value for name, value in decoded.items() if value is not None})
        return
    if flags is not None:
        print_table(["quality flag", "meaning"], flags) if flags else print("no quality flag is set")
    if classes is not None:
        print(f"prediction set: {', '.join(classes) or 'no class'}")


def _open(arguments: argparse.Namespace) -> Catalogue:
    from catalogs.query.catalog import open_catalogue

    return open_catalogue(workspace_of(arguments).catalog, arguments.release)


def _answer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--release", metavar="NAME", help="a release (the current one)")
    parser.add_argument("--format", choices=FORMATS, help="table, or what the ending of --out says")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write to a file, which is replaced if it is there")
    parser.add_argument("--limit", metavar="N", type=count, help="most rows (all)")


def _format(arguments: argparse.Namespace) -> str:
    """The format of the result, once it is clear that it can be written where it is wanted."""
    catalog = workspace_of(arguments).catalog.resolve()
    if arguments.out and catalog in arguments.out.resolve().parents:
        raise UserError(f"{arguments.out} lies in the catalogue, which queries only read; choose another place")
    return format_of("json" if arguments.json else arguments.format, arguments.out)


def _print_where(arguments: argparse.Namespace, rows: int) -> None:
    if arguments.out:
        print_message(f"{short(arguments.out.resolve())}: {rows} rows")


def _number(text: str) -> int:
    """An integer, decimal or as 0x… and 0b…"""
    return int(text, 0)
