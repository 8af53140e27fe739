"""`morphcat explain ID`, `morphcat reproduce ID`: why one object has its label, and whether it comes out reproduced."""

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
    explained = subparsers.add_parser(
        "explain", help="one object: stamp, probabilities, flags, views, nearest examples"
    )
    explained.add_argument("--out", metavar="PAGE.html", type=Path, help="write one HTML page too")
    explained.add_argument(
        "--neighbours", metavar="N", type=count, default=5, help="nearest training examples to show (5); 0: none"
    )
    image_options(explained)
    explained.set_defaults(run=explain)
    reproduced = subparsers.add_parser(
        "reproduce", help="classify one object again from its input and compare; exit status 1 where anything differs"
    )
    reproduced.add_argument(
        "--tolerance", metavar="P", type=float, help="difference of a probability that counts as equal"
    )
    reproduced.set_defaults(run=reproduce)
    for parser in (explained, reproduced):
        parser.add_argument("object_id", metavar="ID", type=int, help="object_id in the catalogue")
        parser.add_argument("--release", metavar="R", help="a release (the current one)")


def explain(arguments: argparse.Namespace) -> None:
    """Print everything known about an object, and write the page."""
    from catalogs.atomic import atomic_write
    from pipeline.inspection.explain import explain as gather
    from pipeline.inspection.explain_report import to_html, to_text

    workspace = workspace_of(arguments)
    with bars():
        explanation = gather(
            workspace,
            arguments.object_id,
            release=arguments.release,
            images=_images(workspace, arguments) if arguments.neighbours else None,
            neighbours=arguments.neighbours,
        )
    if arguments.out:
        with atomic_write(arguments.out) as temporary:
            temporary.write_text(to_html(explanation), encoding="utf-8")
    if arguments.json:
        print_json(
            {
                **asdict(explanation.entry),
                "same_input": explanation.same_input,
                "calibration": explanation.calibration,
                "classes": [asdict(one) for one in explanation.classes],
                "flags": [name for name, _, _ in explanation.flags],
                "views": [asdict(one) for one in explanation.views],
                "neighbours": [
                    {"row": one.row, "label": one.label, "distance": one.distance} for one in explanation.neighbours
                ],
                "neighbours_from": explanation.neighbours_from,
                "problems": explanation.problems,
            }
        )
        return
    print(to_text(explanation), end="")
    if arguments.out:
        print(f"page: {short(arguments.out)}")


def reproduce(arguments: argparse.Namespace) -> int:
    """Classify an object again and say whether the catalogue has the same."""
    from pipeline.inspection.reproduce import TOLERANCE
    from pipeline.inspection.reproduce import reproduce as reproduce_object

    tolerance = TOLERANCE if arguments.tolerance is None else arguments.tolerance
    result = reproduce_object(workspace_of(arguments), arguments.object_id, arguments.release, tolerance)
    if arguments.json:
        print_json({**asdict(result), "equal": not result.differences})
    elif result.differences:
        print(f"object {result.object_id} of release {result.release} does not come out as it is in the catalogue:")
        print("\n".join(f"  {difference}" for difference in result.differences))
    else:
        outcome = (
            f"{result.label}, largest difference of a probability {result.largest:.1e}" if result.label else "no label"
        )
        print(f"object {result.object_id} of release {result.release}: equal (the same pixels, {outcome})")
    return 1 if result.differences else 0


def _images(workspace: Workspace, arguments: argparse.Namespace) -> ImageSet | None:
    """The labelled images that were named, else those of the workspace if there are any."""
    from pipeline.datasets.loading import open_images, source_or_benchmark

    named = image_source(arguments)
    try:
        return open_images(source_or_benchmark(workspace, named), workspace.settings.input)
    except UserError:
        if named is not None:
            raise
        return None
