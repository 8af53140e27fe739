"""`morphcat explain ID`, `morphcat reproduce ID`: why one object has its label, and whether it comes out again."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flows.cli.common import Subparsers, bars, count, short, workspace_of
from flows.cli.display import print_json
from flows.cli.images import image_options, image_source
from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.workspace import Workspace
    from pipeline.datasets.image_set import ImageSet


def add(subparsers: Subparsers) -> None:
    """Declare `explain` and `reproduce`."""
    told = subparsers.add_parser("explain", help="one object: stamp, probabilities, flags, views, nearest examples")
    told.add_argument("--out", metavar="PAGE.html", type=Path, help="write one HTML page too")
    told.add_argument(
        "--neighbours", metavar="N", type=count, default=5, help="nearest training examples to show (5); 0: none"
    )
    image_options(told)
    told.set_defaults(run=explain)
    again = subparsers.add_parser(
        "reproduce", help="classify one object again from its input and compare; exit status 1 where anything differs"
    )
    again.add_argument("--tolerance", metavar="P", type=float, help="difference of a probability that counts as equal")
    again.set_defaults(run=reproduce)
    for parser in (told, again):
        parser.add_argument("object_id", metavar="ID", type=int, help="object_id in the catalogue")
        parser.add_argument("--release", metavar="R", help="a release (the current one)")


def explain(arguments: argparse.Namespace) -> None:
    """Print what there is to say about an object, and write the page."""
    from catalogs.atomic import atomic_write
    from pipeline.inspection.explain import explain as gather
    from pipeline.inspection.explain_report import to_html, to_text

    workspace = workspace_of(arguments)
    with bars():
        told = gather(
            workspace,
            arguments.object_id,
            release=arguments.release,
            images=_images(workspace, arguments) if arguments.neighbours else None,
            neighbours=arguments.neighbours,
        )
    if arguments.out:
        with atomic_write(arguments.out) as beside:
            beside.write_text(to_html(told), encoding="utf-8")
    if arguments.json:
        print_json(
            {
                **asdict(told.entry),
                "same_input": told.same_input,
                "calibration": told.calibration,
                "classes": [asdict(one) for one in told.classes],
                "flags": [name for name, _, _ in told.flags],
                "views": [asdict(one) for one in told.views],
                "neighbours": [
                    {"row": one.row, "label": one.label, "distance": one.distance} for one in told.neighbours
                ],
                "neighbours_from": told.neighbours_from,
                "problems": told.problems,
            }
        )
        return
    print(to_text(told), end="")
    if arguments.out:
        print(f"page: {short(arguments.out)}")


def reproduce(arguments: argparse.Namespace) -> int:
    """Classify an object again and say whether the catalogue has the same."""
    from pipeline.inspection.reproduce import TOLERANCE
    from pipeline.inspection.reproduce import reproduce as again

    tolerance = TOLERANCE if arguments.tolerance is None else arguments.tolerance
    result = again(workspace_of(arguments), arguments.object_id, arguments.release, tolerance)
    if arguments.json:
        print_json({**asdict(result), "equal": not result.differences})
    elif result.differences:
        print(f"object {result.object_id} of release {result.release} does not come out as it is in the catalogue:")
        print("\n".join(f"  {difference}" for difference in result.differences))
    else:
        said = (
            f"{result.label}, largest difference of a probability {result.largest:.1e}" if result.label else "no label"
        )
        print(f"object {result.object_id} of release {result.release}: equal (the same pixels, {said})")
    return 1 if result.differences else 0


def _images(workspace: Workspace, arguments: argparse.Namespace) -> ImageSet | None:
    """The labelled images that were named, else those of the workspace where there are any."""
    from pipeline.datasets.loading import open_images, source_or_benchmark

    named = image_source(arguments)
    try:
        return open_images(source_or_benchmark(workspace, named), workspace.settings.input)
    except UserError:
        if named is not None:
            raise
        return None
