"""`morphcat train`: networks made."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from flows.cli.common import Subparsers, at_least_one, bars, flow_ready, simulated_mark, workspace_of
from flows.cli.display import print_json
from flows.cli.images import image_options, image_source
from pipeline.config.workspace import Workspace


def add(subparsers: Subparsers) -> None:
    """Declare `train`."""
    parser = subparsers.add_parser("train", help="train a network on labelled images; the first model becomes champion")
    image_options(parser)
    parser.add_argument("--variant", metavar="NAME", help="cpu_tiny, cpu_small, astroformer_0 … 5, or timm/NAME")
    parser.add_argument("--layout", metavar="CCCT", help="kinds of the four stages: C convolution, T transformer")
    parser.add_argument("--preset", metavar="NAME", help="recipe: galaxy (ours), paper, plain, noisy_student")
    parser.add_argument("--seed", metavar="N", help="of weights, order of images and augmentation")
    parser.add_argument("--initial", metavar="MODEL", help="start from this model or checkpoint file")
    parser.add_argument("--split", metavar="FILE", help="a split that `galaxy10 split --out` wrote (one is made)")
    parser.add_argument(
        "--ensemble", metavar="K", type=at_least_one, default=1, help="train K seeds, from --seed on, and join them"
    )
    parser.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> None:
    """Train a network, or several that are joined, and name the model."""
    if _assists(arguments):
        return
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
    for origin, number in card["data"].get("origins", {}).items():
        print(f"training images, {origin}: {number}")
    print(f"model: {card['model_id']}")


_OPTIONS = ("variant", "layout", "preset", "seed", "initial")


def _training_workspace(arguments: argparse.Namespace) -> Workspace:
    """The workspace with what the options of `train` set."""
    for option in _OPTIONS:
        if (value := getattr(arguments, option, None)) is not None:
            arguments.set.append(f"training.{option}={value if option == 'seed' else json.dumps(str(value))}")
    return workspace_of(arguments)


def _assists(arguments: argparse.Namespace) -> bool:
    """Whether this process was started by torchrun to help the one of rank 0, and has done so."""
    if os.environ.get("RANK", "0") == "0":
        return False
    from pipeline.datasets.loading import open_source
    from pipeline.training.train import train_worker

    workspace = _training_workspace(arguments)
    train_worker(workspace, open_source(workspace, _source(arguments)), arguments.split)
    return True


def _source(arguments: argparse.Namespace) -> dict[str, Any] | None:
    source = image_source(arguments)
    return source.model_dump(mode="json") if source else None


def run_train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the training flow; returns the card of the model as plain values."""
    workspace = _training_workspace(arguments)
    flow_ready(workspace, arguments.debug)
    from flows.training import train as flow

    given = getattr(arguments, "split", None)
    split = str(Path(given).absolute()) if given else None
    with bars():
        return flow(str(workspace.root), _source(arguments), split, getattr(arguments, "ensemble", 1), arguments.set)
