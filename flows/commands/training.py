"""`morphcat train`, `models`, `benchmark`: networks made and measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flows.commands.common import Subparsers, bars, flow_ready, simulated_mark, workspace_of
from flows.display import print_json, print_table, say
from pipeline.errors import UserError
from pipeline.settings import Workspace


def add(subparsers: Subparsers) -> None:
    """Declare `train`, `models`, `benchmark`."""
    for declare in (_add_train, _add_models, _add_benchmark):
        declare(subparsers)


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--galaxy10", metavar="FILE", help="HDF5 file of the Galaxy10 layout (benchmark/galaxy10.h5)")
    parser.add_argument("--images", metavar="DIR", help="folder of JPEG or PNG pictures, with --labels")
    parser.add_argument("--labels", metavar="CSV", help="table with a column of file names and one of class numbers")
    parser.add_argument("--label-column", metavar="NAME", help="name of the label column, where it can not be guessed")


def _add_train(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("train", help="train a network on labelled images; the first model becomes champion")
    _images(parser)
    parser.add_argument("--variant", metavar="NAME", help="cpu_tiny, cpu_small, astroformer_0 … astroformer_5")
    parser.set_defaults(run=train)


def _add_models(subparsers: Subparsers) -> None:
    subparsers.add_parser("models", help="list the trained models").set_defaults(run=models)


def _add_benchmark(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "benchmark", help="measure a model on the test split of the images it was trained with"
    )
    _images(parser)
    parser.add_argument("--model", metavar="ID", help="the model (the champion)")
    parser.set_defaults(run=benchmark)


def train(arguments: argparse.Namespace) -> None:
    """Train a network and name the model."""
    card = run_train(arguments)
    if arguments.json:
        print_json(
            {
                key: card[key]
                for key in ("model_id", "variant", "parameters", "temperature", "validation", "test", "data")
            }
        )
        return
    for name in ("validation", "test"):
        if numbers := card[name]:
            print(
                f"{name}: accuracy {numbers['accuracy']:.3f}, macro-F1 {numbers['macro_f1']:.3f}, calibration error "
                f"{numbers['ece']:.3f} on {numbers['n']} images" + simulated_mark(card["data"]["simulated"])
            )
    print(f"model: {card['model_id']}")


def models(arguments: argparse.Namespace) -> None:
    """List the trained models."""
    from models.registry import champion, list_models, load_card

    root = workspace_of(arguments).models
    first = champion(root)
    cards = [load_card(root, model_id) for model_id in list_models(root)]
    rows = [
        {
            "model": card.model_id,
            "champion": card.model_id == first,
            "layout": card.layout,
            "image_size": card.image_size,
            "test_accuracy": card.test["accuracy"] if card.test else None,
            "images": sum(card.data["counts"].values()),
            "source": card.data["source"],
            "simulated": card.data["simulated"],
            "created": card.created,
        }
        for card in cards
    ]
    if arguments.json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        say(f"no models in {root} yet: `morphcat train` makes one")


def benchmark(arguments: argparse.Namespace) -> None:
    """Measure a model on its test split."""
    result = run_benchmark(arguments)
    print_json(result) if arguments.json else print_benchmark(result)


def _training_workspace(arguments: argparse.Namespace) -> Workspace:
    """The workspace with what the options of `train` and `benchmark` set."""
    for option in ("label_column", "variant"):
        if value := getattr(arguments, option, None):
            arguments.set.append(f'training.{option}="{value}"')
    return workspace_of(arguments)


def _training_sources(arguments: argparse.Namespace) -> dict[str, str | None]:
    paths = {name: getattr(arguments, name) for name in ("galaxy10", "images", "labels")}
    return {name: str(Path(path).absolute()) if path else None for name, path in paths.items()}


def run_train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the training flow; returns the card of the model as plain values."""
    workspace = _training_workspace(arguments)
    flow_ready(workspace, arguments.debug)
    from flows.training import train as flow

    with bars():
        return flow(str(workspace.root), **_training_sources(arguments), overrides=arguments.set)


def run_benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark flow; returns its numbers as plain values."""
    from models.registry import champion

    workspace = _training_workspace(arguments)
    model_id = arguments.model or champion(workspace.models)
    if model_id is None:
        raise UserError(f"no model in {workspace.models}: `morphcat train` makes one")
    flow_ready(workspace, arguments.debug)
    from flows.training import benchmark as flow

    with bars():
        return flow(str(workspace.root), model_id, **_training_sources(arguments), overrides=arguments.set)


def print_benchmark(result: dict[str, Any]) -> None:
    """The numbers of one model on its test split, and its confusion matrix."""
    mark = simulated_mark(result["simulated"])
    print(
        f"Test accuracy {result['accuracy']:.3f} on {result['n']} held-out images{mark}; "
        f"macro-F1 {result['macro_f1']:.3f}, calibration error {result['ece']:.3f}, "
        f"{result['images_per_second']:.0f} images/s"
    )
    header = ["true \\ called", *[str(i) for i in range(len(result["classes"]))], "recall"]
    rows = [
        [f"{i} {slug}", *counts, f"{result['recall'][i]:.2f}"]
        for i, (slug, counts) in enumerate(zip(result["classes"], result["confusion"], strict=True))
    ]
    print_table(header, rows)
