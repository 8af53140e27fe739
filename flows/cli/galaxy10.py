"""`morphcat galaxy10 fetch`, `check`, `split`: the benchmark file, before anything is trained on it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.cli.common import Subparsers, bars, count, simulated_mark, workspace_of
from flows.cli.display import print_json, print_table

if TYPE_CHECKING:
    from pipeline.datasets.galaxy10_check import Galaxy10Check
    from pipeline.datasets.splits import LabelledRows, Split

_SHOWN = 10  # rows named of a longer list


def add(subparsers: Subparsers) -> None:
    """Declare `galaxy10` with its own commands."""
    parser = subparsers.add_parser("galaxy10", help="fetch, check or split the Galaxy10 DECaLS file")
    below = parser.add_subparsers(dest="galaxy10_command", metavar="COMMAND", required=True)
    _add_fetch(below)
    _add_check(below)
    _add_split(below)


def _add_fetch(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("fetch", help="download the published file (2.5 GB), going on where it stopped")
    parser.add_argument("--url", metavar="URL", help="a mirror (the public record)")
    parser.add_argument("--sha256", metavar="HEX", help="checksum of what is fetched (that of the published file)")
    parser.add_argument(
        "--out", metavar="FILE", help="where to put it (benchmark/ of the workspace, under its own name)"
    )
    parser.set_defaults(run=fetch)


def _add_check(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("check", help="what is in a file, and whether it can be trained on")
    parser.add_argument("file", metavar="FILE", help="HDF5 file of the Galaxy10 layout")
    parser.set_defaults(run=check)


def _add_split(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "split", help="share a file or a table out into training, validation and test, as `train` does"
    )
    parser.add_argument("file", metavar="FILE", help="HDF5 file of the Galaxy10 layout, or CSV with ra, dec and label")
    parser.add_argument("--seed", type=count, metavar="S", help="seed of the split (training.split_seed)")
    parser.add_argument(
        "--validation", type=float, metavar="F", help="share for validation (training.validation_fraction)"
    )
    parser.add_argument("--test", type=float, metavar="F", help="share for the test split (training.test_fraction)")
    parser.add_argument(
        "--label-column", metavar="NAME", default="", help="label column of a table, if not known by name"
    )
    parser.add_argument("--out", metavar="JSON", help="write the split, for `train --split`")
    parser.set_defaults(run=split)


def fetch(arguments: argparse.Namespace) -> None:
    """Download the file, or find that it is there."""
    from pipeline.datasets.download import fetch as download
    from pipeline.datasets.galaxy10 import PUBLISHED_SHA256, PUBLISHED_URL

    url = arguments.url or PUBLISHED_URL
    path = Path(arguments.out or workspace_of(arguments).benchmark / "Galaxy10_DECals.h5").absolute()
    sha256 = arguments.sha256 or PUBLISHED_SHA256
    with bars():
        new = download(url, path, sha256)
    if arguments.json:
        print_json({"path": str(path), "sha256": sha256.lower(), "fetched": new})
    else:
        print(f"{path}: {'fetched, checksum right' if new else 'is there already, checksum right'}")


def check(arguments: argparse.Namespace) -> int:
    """Look through a file; 1 when it cannot be used."""
    from pipeline.datasets.galaxy10_check import check_galaxy10

    with bars():
        found = check_galaxy10(Path(arguments.file))
    print_json(found.to_dict()) if arguments.json else _print_check(found)
    return 0 if found.usable else 1


def _print_check(found: Galaxy10Check) -> None:
    from pipeline.datasets.galaxy10 import PUBLISHED_SHA256

    print(found.path + simulated_mark(found.simulated))
    print("is the published file" if found.published else f"is not the published file: sha256 {found.sha256},")
    if not found.published:
        print(f"  of the published one {PUBLISHED_SHA256}")
    for name, what in found.datasets.items():
        print(f"  {name}: {what}")
    if found.counts:
        published = found.to_dict()["published_counts"]
        rows = [[slug, count, published[slug]] for slug, count in found.counts.items()]
        print_table(["class", "images", "published"], [*rows, ["all", found.images, sum(published.values())]])
        print("pixel scales: " + (", ".join(f"{n} at {scale}″" for scale, n in found.scales.items()) or "none given"))
        print(
            f"sky positions of several rows: {found.conflicting_positions} with conflicting labels, "
            f"{found.equal_positions} with equal labels"
        )
        print(f"blank images: {_some(found.blank)}")
        print(f"images that are the same, byte for byte: {_some(found.identical)}")
    for problem in found.problems:
        print(f"problem: {problem}")
    print("usable" if found.usable else "not usable")


def _some(rows: list[Any]) -> str:
    return f"{len(rows)}" + (
        f" (rows {', '.join(map(str, rows[:_SHOWN]))}{', …' if len(rows) > _SHOWN else ''})" if rows else ""
    )


def split(arguments: argparse.Namespace) -> None:
    """Share rows out and count."""
    from pipeline.datasets.splits import split as share_out
    from pipeline.datasets.splits import write_split

    settings = workspace_of(arguments).settings.training
    seed = settings.split_seed if arguments.seed is None else arguments.seed
    validation = settings.validation_fraction if arguments.validation is None else arguments.validation
    test = settings.test_fraction if arguments.test is None else arguments.test
    rows = _labelled_rows(arguments)
    parts = share_out(rows, validation=validation, test=test, seed=seed)
    if arguments.out:
        write_split(Path(arguments.out), rows, parts, validation=validation, test=test, seed=seed)
    summary = {
        "source": rows.source,
        "seed": seed,
        "fractions": {"validation": validation, "test": test},
        "digest": parts.digest,
        **_counted(rows, parts),
        "out": arguments.out,
    }
    print_json(summary) if arguments.json else _print_split(summary, rows.class_slugs)


def _labelled_rows(arguments: argparse.Namespace) -> LabelledRows:
    from pipeline.datasets.galaxy10 import open_galaxy10
    from pipeline.datasets.label_table import read_label_table

    path = Path(arguments.file)
    if path.suffix.lower() == ".csv":
        return read_label_table(path, arguments.label_column)
    return open_galaxy10(path, workspace_of(arguments).settings.input)


def _counted(rows: LabelledRows, parts: Split) -> dict[str, Any]:
    """Images per part and class, and sky positions that several rows share or that several parts have."""
    import numpy as np

    from pipeline.datasets.splits import PARTS, crossing_groups, position_groups

    groups = position_groups(rows.ra, rows.dec)
    counts = {}
    for part in PARTS:
        of_class = np.bincount(rows.labels[getattr(parts, part)], minlength=len(rows.class_slugs))
        counts[part] = dict(zip(rows.class_slugs, of_class.tolist(), strict=True))
    return {
        "counts": counts,
        "totals": {part: sum(of_class.values()) for part, of_class in counts.items()},
        "shared_positions": int((np.unique(groups, return_counts=True)[1] > 1).sum()),
        "positions_across_parts": crossing_groups(groups, parts),
    }


def _print_split(summary: dict[str, Any], slugs: tuple[str, ...]) -> None:
    counts = summary["counts"]
    rows = [[slug, *(counts[part][slug] for part in counts)] for slug in slugs]
    print_table(["class", *counts], [*rows, ["all", *summary["totals"].values()]])
    print(
        f"sky positions of several rows: {summary['shared_positions']}; in more than one part: "
        f"{summary['positions_across_parts']}"
    )
    print(f"split {summary['digest']}" + (f" in {summary['out']}" if summary["out"] else ""))
