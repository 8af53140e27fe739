"""`morphcat retrain`: a candidate trained on people's labels, the gate, and the sky classified again."""

from __future__ import annotations

import argparse
from typing import Any

from flows.cli.common import Subparsers, bars, flow_ready, workspace_of
from flows.cli.display import print_json, print_message
from flows.cli.images import image_options, image_source

EXIT_REFUSED = 6


def add(subparsers: Subparsers) -> None:
    """Declare `retrain`."""
    parser = subparsers.add_parser(
        "retrain", help="train on labels that the champion has not learned from; the gate decides"
    )
    parser.add_argument("--to-version", metavar="V", help="the labels as they were then (the newest)")
    parser.add_argument("--no-survey", action="store_true", help="do not classify the sky again with a new champion")
    image_options(parser)
    parser.set_defaults(run=retrain)


def retrain(arguments: argparse.Namespace) -> int:
    """Retrain where labels are due; the exit status says whether the gate refused."""
    from pipeline.promotion.retraining_trigger import due

    workspace = workspace_of(arguments)
    if not arguments.to_version and due(workspace) is None:
        return _print_result({"outcome": "nothing to do", "rounds": []}, arguments)
    flow_ready(workspace, arguments.debug)
    from flows.retraining import retrain as flow

    source = image_source(arguments)
    with bars():
        result = flow(
            str(workspace.root),
            arguments.to_version,
            source.model_dump(mode="json") if source else None,
            arguments.set,
            reclassify=not arguments.no_survey,
        )
    return _print_result(result, arguments)


def _print_result(result: dict[str, Any], arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json(result)
    elif not result["rounds"]:
        print("nothing to do: the champion has learned from the labels that are there")
    for one in result["rounds"] if not arguments.json else []:
        print(f"{one['labels']['labels']} labels of version {one['labels']['version']}: {one['outcome']}")
        print(f"  {one['why']}")
        print_message(f"  the verdict: morphcat models show {one['candidate']}")
    return EXIT_REFUSED if result["outcome"] == "refused" else 0
