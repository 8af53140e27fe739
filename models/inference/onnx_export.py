"""A trained model as one ONNX file that runs without this package: model-ready pixels in, calibrated probabilities out.

The graph holds everything from pixels to probabilities: normalisation, every view and every member of an ensemble, the
mean of their logits, the temperature. It does not hold the way from an image to pixels (field of view, size; the file
says how to prepare them), prediction sets and novelty. This module must not know model folders or images.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.errors import ModelError
from models.inference.ensemble import views_of
from models.preprocessing import Preprocessing

INPUT, OUTPUTS = "pixels", ("logits", "probabilities")
_LARGEST_FILE = 1_900_000_000  # bytes of weights in one file; protobuf holds no message of 2 GiB
_TOLERANCE = 1e-3  # of a logit in units of the largest (at least 1), and of a probability
_CHECKED = 3  # images of the check; another number than that of the tracing


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written, and how far onnxruntime and torch agree on it; None if onnxruntime is not installed.

    `files` are the ONNX file and, for networks of nearly 2 GB and more, the file of weights that must stay beside it.
    """

    files: tuple[Path, ...]
    logit_difference: float | None
    probability_difference: float | None


class _ServedModel(nn.Module):
    """What a model serves, as one graph. uint8 (N, 3, S, S) -> mean logits (N, C), probabilities (N, C), float32."""

    def __init__(
        self, networks: Sequence[nn.Module], preprocessing: Preprocessing, views: int, temperature: float
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.preprocessing, self.views, self.temperature = preprocessing, views, temperature

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        images = torch.cat(list(views_of(self.preprocessing.to_input(pixels), self.views)))  # (V N, 3, S, S)
        passes = torch.cat([network(images).unflatten(0, (self.views, -1)) for network in self.networks])
        logits = passes.mean(dim=0)  # (members V, N, C) -> (N, C), as models.inference.predictions
        return logits, (logits / self.temperature).softmax(dim=1)


def export(
    networks: Sequence[nn.Module],
    preprocessing: Preprocessing,
    temperature: float,
    class_names: Sequence[str],
    path: Path,
    *,
    model_id: str,
    views: int = 1,
) -> ExportResult:
    """Write a model as an ONNX file and check it against torch.

    The graph reads `pixels` uint8 (N, 3, S, S), RGB, any N, and gives `logits` and `probabilities` float32 (N, C). Its
    metadata hold what a user needs: class names, preprocessing, sizes, scales, how to prepare pixels.

    networks : one, or the members of an ensemble; put into evaluation mode and on the CPU
    temperature : the logits are divided by it, greater than 0
    views : 1 or 8 views of each image, as the temperature was fitted

    Raises
    ------
    ModelError : the packages for it are missing, the network cannot be exported, the file cannot be written, or
        onnxruntime computes something else than torch; no file is left then.
    """
    _require("onnx", "onnxscript")
    served = _ServedModel(networks, preprocessing, views, temperature).cpu().eval()
    program = _traced(served)
    program.model.metadata_props.update(
        _metadata(preprocessing, temperature, class_names, model_id, len(networks), views)
    )
    program.model.producer_name = "morphcat"
    weight_bytes = sum(p.nbytes for p in served.parameters())
    with _temporary_folder(path) as folder:
        program.save(folder / path.name, external_data=weight_bytes > _LARGEST_FILE)
        differences = _checked(served, folder / path.name)
        files = []
        for written in sorted(folder.iterdir(), reverse=True):  # weights before the graph that names them
            os.replace(written, path.parent / written.name)
            files.append(path.parent / written.name)
    return ExportResult(tuple(sorted(files)), *differences)


def _require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ModelError(
            f"an ONNX export needs {' and '.join(missing)}, not installed here: pip install 'morphcat[onnx]'"
        )


def _traced(served: _ServedModel) -> Any:
    """The graph for any number of images."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    # The plain attention: the fused one lays its output out in memory in a way that the exporter's own does not.
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")  # of the exporter's own making: deprecations inside torch
            return torch.onnx.export(
                served,
                (_random_pixels(served.preprocessing, 2),),
                dynamo=True,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        why = str(error).partition("\n")[0]
        raise ModelError(f"this network cannot be exported with torch {torch.__version__} ({why})") from error
    finally:
        exporter.setLevel(level)


def _random_pixels(preprocessing: Preprocessing, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    shape = (count, 3, preprocessing.image_size, preprocessing.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _metadata(
    preprocessing: Preprocessing,
    temperature: float,
    class_names: Sequence[str],
    model_id: str,
    members: int,
    views: int,
) -> dict[str, str]:
    """What the file says of itself; values that are no plain text are JSON."""
    scales = " or ".join(f"{scale:g}" for scale in preprocessing.pixel_scales)
    field, size = preprocessing.field_pixels, preprocessing.image_size
    return {
        "model_id": model_id,
        "class_names": json.dumps(list(class_names)),
        "image_size": str(preprocessing.image_size),
        "field_pixels": str(preprocessing.field_pixels),
        "pixel_scales": json.dumps(list(preprocessing.pixel_scales)),
        "rendering": preprocessing.rendering,
        "recipe": json.dumps(preprocessing.to_dict()),
        "recipe_digest": preprocessing.digest,
        "temperature": repr(temperature),
        "members": str(members),
        "views": str(views),
        "how_to_prepare_pixels": (
            f"RGB of 0 to 255, channels first, rows from north to south, rendered as {preprocessing.rendering}. Take "
            f"{field} x {field} pixels at {scales} arcsec per pixel around the object and "
            f"resample them to {size} x {size} (bilinear, antialiased; round to uint8). The "
            "normalisation is part of the graph."
        ),
    }


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `path`; ModelError if none can be made."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror or error}); choose another file") from error


def _checked(served: _ServedModel, file: Path) -> tuple[float | None, float | None]:
    """Largest differences of logits and of probabilities between onnxruntime and torch; None without onnxruntime."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None, None
    import onnxruntime

    pixels = _random_pixels(served.preprocessing, _CHECKED)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(list(OUTPUTS), {INPUT: pixels.numpy()})
    with torch.inference_mode():
        expected = [tensor.numpy() for tensor in served(pixels)]
    differences = [float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)]
    largest = max(1.0, float(np.abs(expected[0]).max()))
    if not (differences[0] <= _TOLERANCE * largest and differences[1] <= _TOLERANCE):  # also when not a number
        raise ModelError(
            f"onnxruntime {onnxruntime.__version__} gives other results than torch {torch.__version__}: logits differ "
            f"by {differences[0]:.2g}, probabilities by {differences[1]:.2g}; nothing was written"
        )
    return differences[0], differences[1]
