"""`morphcat export`: a trained model as an ONNX file for programs without this package."""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.cli.common import Subparsers, short, simulated_mark, workspace_of
from flows.cli.display import print_json
from pipeline.core.errors import UserError


def add(subparsers: Subparsers) -> None:
    """Declare `export`."""
    parser = subparsers.add_parser("export", help="write a model as an ONNX file that runs without morphcat")
    parser.add_argument("--model", metavar="ID", help="the model (the champion)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the file (<model id>.onnx here)")
    parser.set_defaults(run=export)


def export(arguments: argparse.Namespace) -> None:
    """Write the ONNX file of a model and say what it holds."""
    import torch

    from models.artifacts.registry import champion, load_card
    from models.inference.onnx_export import export as write
    from models.inference.predictor import load_ensemble

    root = workspace_of(arguments).models
    model_id = arguments.model or champion(root)
    if model_id is None:
        raise UserError(f"no model in {root}: `morphcat train` makes one")
    card = load_card(root, model_id)
    ensemble = load_ensemble(root, card, torch.device("cpu"), batch_size=1)
    path = arguments.out or Path(f"{model_id}.onnx")
    done = write(
        ensemble.networks,
        ensemble.preprocessing,
        card.temperature,
        card.class_names,
        path,
        model_id=model_id,
        views=ensemble.views,
    )
    simulated = bool(card.data.get("simulated"))
    result = {
        "model": model_id,
        "files": [str(file.absolute()) for file in done.files],
        "networks": len(ensemble.networks),
        "views": ensemble.views,
        "largest_logit_difference": done.logit_difference,
        "largest_probability_difference": done.probability_difference,
        "simulated": simulated,
    }
    if arguments.json:
        print_json(result)
        return
    print(f"{' and '.join(short(file.absolute()) for file in done.files)}: {model_id}{simulated_mark(simulated)}")
    print(
        f"networks: {len(ensemble.networks)}, views of each image: {ensemble.views}; reads pixels uint8 (N, 3, "
        f"{card.image_size}, {card.image_size}), gives logits and probabilities (N, {len(card.class_names)})"
    )
    if done.logit_difference is None:
        print("not checked against torch: onnxruntime is not installed (pip install 'morphcat[onnx]')")
    else:
        print(
            f"onnxruntime and torch differ by {done.logit_difference:.1g} in logits and "
            f"{done.probability_difference:.1g} in probabilities at most"
        )
