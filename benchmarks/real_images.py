"""How far weak labels carry on real images: trained on Galaxy Zoo pictures, tested on true Galaxy10 DECaLS images.

    python benchmarks/real_images.py DATA [--configurations NAME,NAME …] [--seeds 5] [--variant cpu_small] [--out DIR]

DATA is a folder with `gz2_sdss/levignatev_gz2_1000`, `gz2_sdss/zooniverse_sloan_examples`,
`gz_decals/zooniverse_examples` (pictures whose Galaxy Zoo answers were mapped to the ten classes) and
`galaxy10_decals` (60 true images, 6 a class). Training and validation are drawn from the former, the test split is the
latter, and nothing is chosen by it: configurations are compared on the validation split. The figures are written as
they are, with the confusion matrix of all seeds, to `real-images.md` in the folder of results.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image

from flows.cli.display import progress_bar
from models.inference.predictor import predictor_for
from models.metrics import Evaluation, evaluate
from models.preprocessing import colour_rule
from pipeline.config.inputs import InputSettings
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.core.classes import CLASS_SLUGS
from pipeline.core.progress import progress_display
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.datasets.image_folder import open_pictures
from pipeline.datasets.image_set import ImageSet
from pipeline.simulation import write_galaxy10
from pipeline.training.ensembles import ensemble
from pipeline.training.plan import split_of
from pipeline.training.train import train

WEAK = ("gz2_sdss/levignatev_gz2_1000", "gz2_sdss/zooniverse_sloan_examples", "gz_decals/zooniverse_examples")
SKY = 34.0  # grey level of the sky in the Galaxy10 rendering; that of the other renderings is lower
EPOCHS = 40


@dataclass(frozen=True)
class Configuration:
    """What is tried: preparation of the weakly labelled pictures, settings, start from the simulated sky."""

    meaning: str
    matched: bool = False
    pretrained: bool = False
    mixed: bool = False
    overrides: tuple[str, ...] = field(default=())


CONFIGURATIONS = {
    "simulated": Configuration("trained on the simulated sky only, no real image seen", matched=True),
    "plain": Configuration("plain recipe", overrides=("training.preset=plain",)),
    "galaxy": Configuration("galaxy recipe"),
    "galaxy-matched": Configuration("galaxy recipe; pictures cropped and lifted to Galaxy10's sky", matched=True),
    "matched-randaugment": Configuration(
        "as galaxy-matched, with two RandAugment operations", matched=True, overrides=("training.randaugment_ops=2",)
    ),
    "pretrained": Configuration(
        "as galaxy-matched, started from a network trained on the simulated sky",
        matched=True,
        pretrained=True,
        overrides=("training.learning_rate=0.001",),
    ),
    "pretrained-gentle": Configuration(
        "as pretrained, ten epochs at a fifth of the rate",
        matched=True,
        pretrained=True,
        overrides=("training.learning_rate=0.0002", "training.epochs=10"),
    ),
    "mixed": Configuration(
        "as galaxy-matched, 2,400 simulated images among training and validation images, 15 epochs",
        matched=True,
        mixed=True,
        overrides=("training.epochs=15",),
    ),
    "pretrained-randaugment": Configuration(
        "as pretrained, with two RandAugment operations",
        matched=True,
        pretrained=True,
        overrides=("training.learning_rate=0.001", "training.randaugment_ops=2"),
    ),
}


def main() -> None:
    arguments = _arguments()
    rows = []
    with progress_display(progress_bar):
        for name in arguments.configurations.split(","):
            rows.append(_measured(name, CONFIGURATIONS[name], arguments))
            _write(rows, arguments)
            print(rows[-1]["line"], flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="weak labels on real images")
    parser.add_argument("data", type=Path)
    parser.add_argument("--configurations", default=",".join(CONFIGURATIONS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--variant", default="cpu_small")
    parser.add_argument("--image-size", type=int, default=0)
    parser.add_argument("--simulated", type=int, default=3000, help="simulated images to start from")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: all cores")
    parser.add_argument("--out", type=Path, default=Path("real-images"))
    return parser.parse_args()


def _measured(name: str, configuration: Configuration, arguments: argparse.Namespace) -> dict[str, object]:
    """Train all seeds and their ensemble of one configuration; returns its figures."""
    if name == "simulated":
        return _measured_untouched(name, configuration, arguments)
    settings = list(configuration.overrides)
    if configuration.pretrained:
        settings.append(f"training.initial={_pretrained(arguments)}")
    images = _pictures(configuration, arguments)
    cards = [train(_workspace(arguments, [*settings, f"training.seed={k}"]), images) for k in range(arguments.seeds)]
    joined = ensemble(_workspace(arguments, ["training.views=8"]), images, [card.model_id for card in cards])
    test = [card.test["accuracy"] for card in cards if card.test]
    validation = [card.validation["accuracy"] for card in cards if card.validation]
    confusion = np.sum([card.test["confusion"] for card in cards if card.test], axis=0)
    assert joined.test is not None and joined.validation is not None
    line = (
        f"| {name} | {configuration.meaning} | {_spread(validation)} | {_spread(test)} | "
        f"{joined.validation['accuracy']:.3f} | {joined.test['accuracy']:.3f} | {joined.test['ece']:.3f} |"
    )
    return {"name": name, "line": line, "confusion": confusion.tolist(), "test": test, "validation": validation}


def _measured_untouched(name: str, configuration: Configuration, arguments: argparse.Namespace) -> dict[str, object]:
    """The network of the simulated sky on the same validation and test images, as it is: one seed."""
    workspace = _workspace(arguments, [])
    predictor = predictor_for(workspace.models, _pretrained(arguments), "cpu")
    images = _pictures(configuration, arguments)
    parts = split_of(workspace.settings.training, images)
    pixels = images.pixels(predictor.preprocessing, workspace.cache)

    def measured(rows: np.ndarray) -> Evaluation:
        return evaluate(predictor.predict(pixels[torch.from_numpy(rows)]).probabilities, images.labels[rows])

    validation, test = measured(parts.validation), measured(parts.test)
    line = f"| {name} | {configuration.meaning} | {validation.accuracy:.3f} | {test.accuracy:.3f} | – | – | – |"
    figures = {"validation": [validation.accuracy], "test": [test.accuracy]}
    return {"name": name, "line": line, "confusion": test.confusion, **figures}


def _workspace(arguments: argparse.Namespace, settings: list[str]) -> Workspace:
    common = [
        f"training.variant={arguments.variant}",
        f"training.image_size={arguments.image_size}",
        f"training.epochs={arguments.epochs}",
        f"workers.threads={arguments.threads}",
    ]
    return open_workspace(arguments.out, [*common, *settings])


def _pretrained(arguments: argparse.Namespace) -> str:
    """A model trained on the simulated sky, made when it is not there."""
    path = _simulated(arguments)
    workspace = _workspace(arguments, ["training.epochs=30"])
    return train(workspace, open_galaxy10(path, workspace.settings.input)).model_id


def _simulated(arguments: argparse.Namespace) -> Path:
    path: Path = arguments.out / "benchmark" / f"simulated-{arguments.simulated}.h5"
    if not path.is_file():
        write_galaxy10(path, seed=11, images=arguments.simulated, render=colour_rule)
    return path


def _pictures(configuration: Configuration, arguments: argparse.Namespace) -> ImageSet:
    kind = "mixed" if configuration.mixed else "matched" if configuration.matched else "as-they-are"
    folder = arguments.out / kind
    if not (folder / "labels.csv").is_file():
        _prepare(arguments.data, folder, configuration.matched, _simulated(arguments) if configuration.mixed else None)
    return open_pictures(folder, folder / "labels.csv", InputSettings())


def _prepare(data: Path, folder: Path, matched: bool, simulated: Path | None) -> None:
    """One folder of all pictures with a table: weak labels to train on, true ones marked as the test split."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    table = []
    for source in WEAK:
        for row in csv.DictReader((data / source / "labels.csv").open()):
            if int(row["galaxy10_like_label"]) >= 0:
                picture = Image.open(_find(data / source, row["file"])).convert("RGB")
                name = f"{source.split('/')[-1]}-{Path(row['file']).stem}.png"
                (_matched(picture) if matched else picture).save(folder / "images" / name)
                table.append({"file": name, "label": row["galaxy10_like_label"], "split": ""})
    for row in csv.DictReader((data / "galaxy10_decals" / "labels.csv").open()):
        name = f"galaxy10-{Path(row['file']).stem}.png"
        Image.open(_find(data / "galaxy10_decals", row["file"])).convert("RGB").save(folder / "images" / name)
        table.append({"file": name, "label": row["label"], "split": "test"})
    if simulated:
        with h5py.File(simulated, "r") as file:
            for number, label in enumerate(file["ans"][:]):
                Image.fromarray(file["images"][number]).save(folder / "images" / f"simulated-{number}.png")
                table.append({"file": f"simulated-{number}.png", "label": int(label), "split": ""})
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "label", "split"])
        writer.writeheader()
        writer.writerows(table)


def _matched(picture: Image.Image) -> Image.Image:
    """The inner three quarters, where galaxies look as large as in Galaxy10, with the sky lifted to its level."""
    side = picture.width
    edge = side // 8
    inner = np.asarray(picture.crop((edge, edge, side - edge, side - edge)), dtype=np.float32)
    sky = np.median(inner, axis=(0, 1))
    lifted = SKY + (inner - sky) * (255 - SKY) / (255 - sky)
    return Image.fromarray(lifted.round().clip(0, 255).astype(np.uint8))


def _find(folder: Path, name: str) -> Path:
    return next(path for path in (folder / "images" / name, folder / name) if path.is_file())


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def _write(rows: list[dict[str, object]], arguments: argparse.Namespace) -> None:
    best = max(rows, key=lambda row: statistics.mean(row["validation"]))  # type: ignore[type-var,arg-type,return-value]
    lines = [
        f"Network {arguments.variant}, {arguments.epochs} epochs, {arguments.seeds} seeds; 60 test images, one is "
        "1.7 points.",
        "",
        "| configuration | what | validation | test | ensemble, 8 views: validation | test | test ECE |",
        "|---|---|---|---|---|---|---|",
        *[str(row["line"]) for row in rows],
        "",
        f"Confusion of {best['name']}, the best on the validation split, all seeds together (rows: true class):",
        "",
        "| | " + " | ".join(str(k) for k in range(len(CLASS_SLUGS))) + " |",
        "|---" * (len(CLASS_SLUGS) + 1) + "|",
    ]
    confusion: list[list[int]] = best["confusion"]  # type: ignore[assignment]
    lines += [f"| {k} {slug} | " + " | ".join(map(str, confusion[k])) + " |" for k, slug in enumerate(CLASS_SLUGS)]
    (arguments.out / "real-images.md").write_text("\n".join(lines) + "\n")
    (arguments.out / "real-images.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
