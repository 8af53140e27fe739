"""ONNX files: used without this package, equal to torch, refused when they are not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.inference.ensemble import views_of
from models.inference.onnx_export import export
from models.networks.factory import create_network
from models.preprocessing import Preprocessing

RECIPE = Preprocessing(image_size=32, field_pixels=64)
NAMES = ("Round Smooth", "Edge-on without Bulge", "Barred Spiral")
TEMPERATURE = 1.7


def network(variant: str = "cpu_tiny", layout: str = "CCCT") -> nn.Module:
    """A network whose batch norms have seen images, as after a training."""
    built = create_network(variant, layout=layout, image_size=32, num_classes=3)
    built(RECIPE.to_input(pixels(16, seed=5)))
    return built.eval()


def pixels(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


USER = """
import json, sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = np.load(sys.argv[2])
logits, probabilities = session.run(["logits", "probabilities"], {"pixels": images})
np.savez(sys.argv[3], logits=logits, probabilities=probabilities)
loaded = sorted({"torch", "models", "onnx", "safetensors"} & set(sys.modules))
print(json.dumps({"metadata": session.get_modelmeta().custom_metadata_map, "loaded": loaded}))
"""


def test_a_program_without_this_package_gets_the_same_probabilities(tmp_path: Path) -> None:
    trained = network(layout="CCTT")
    done = export([trained], RECIPE, TEMPERATURE, NAMES, tmp_path / "model.onnx", model_id="cpu_tiny-123")
    images = pixels(5)
    np.save(tmp_path / "images.npy", images.numpy())
    names = ("model.onnx", "images.npy", "found.npz")
    ran = subprocess.run(
        [sys.executable, "-I", "-c", USER, *names], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    said, found = json.loads(ran.stdout), np.load(tmp_path / "found.npz")
    assert said["loaded"] == []
    with torch.inference_mode():
        logits = trained(RECIPE.to_input(images))
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], (logits / TEMPERATURE).softmax(1), rtol=0, atol=1e-5)
    assert done.files == (tmp_path / "model.onnx",)
    assert done.logit_difference is not None and done.logit_difference < 1e-4
    metadata = said["metadata"]
    assert json.loads(metadata["class_names"]) == list(NAMES)
    assert (metadata["model_id"], metadata["recipe_digest"]) == ("cpu_tiny-123", RECIPE.digest)
    assert Preprocessing.from_dict(json.loads(metadata["recipe"])) == RECIPE
    assert "Take 64 x 64 pixels at 0.262 or 0.524 arcsec per pixel" in metadata["how_to_prepare_pixels"]
    assert (metadata["image_size"], metadata["views"], metadata["members"]) == ("32", "1", "1")


@pytest.mark.slow
def test_views_and_members_of_an_ensemble_are_in_the_graph(tmp_path: Path) -> None:
    import onnxruntime

    members = [network(), network("timm/test_resnet")]
    path = tmp_path / "model.onnx"
    export(members, RECIPE, TEMPERATURE, NAMES, path, model_id="ensemble", views=8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = pixels(2)
    found = session.run(["logits", "probabilities"], {"pixels": images.numpy()})
    turned = session.run(["probabilities"], {"pixels": np.ascontiguousarray(np.rot90(images.numpy(), axes=(2, 3)))})
    with torch.inference_mode():
        views = list(views_of(RECIPE.to_input(images), 8))
        logits = sum(member(view) for member in members for view in views) / 16
    np.testing.assert_allclose(found[0], logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[1], (logits / TEMPERATURE).softmax(1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(turned[0], found[1], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_file_is_valid_and_the_batch_is_free(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export([network()], RECIPE, TEMPERATURE, NAMES, path, model_id="x")
    onnx.checker.check_model(path, full_check=True)
    (pixels_in,) = onnx.load(path).graph.input
    batch, *rest = pixels_in.type.tensor_type.shape.dim
    assert pixels_in.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert batch.dim_param and [dim.dim_value for dim in rest] == [3, 32, 32]


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    broken = network()
    nn.init.constant_(broken.head.fc.bias, torch.nan)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"onnxruntime \S+ gives other results than torch.*nothing was written"):
        export([broken], RECIPE, TEMPERATURE, NAMES, tmp_path / "model.onnx", model_id="x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="cannot be written"):
        export([network()], RECIPE, TEMPERATURE, NAMES, tmp_path / "no" / "model.onnx", model_id="x")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ModelError, match=r"needs onnxscript, not installed here: pip install 'morphcat\[onnx\]'"):
        export([network()], RECIPE, TEMPERATURE, NAMES, tmp_path / "model.onnx", model_id="x")


@pytest.mark.slow
def test_weights_too_large_for_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.inference.onnx_export._LARGEST_FILE", 1000)
    path = tmp_path / "model.onnx"
    done = export([network()], RECIPE, TEMPERATURE, NAMES, path, model_id="x")
    assert done.files == (path, tmp_path / "model.onnx.data") and all(file.is_file() for file in done.files)
    assert path.stat().st_size < done.files[1].stat().st_size
    onnx.checker.check_model(path)
