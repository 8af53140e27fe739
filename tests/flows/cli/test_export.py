"""`morphcat export`: the champion as a file that answers as the champion does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from flows.cli.main import main
from models.inference.predictor import predictor_for
from tests.conftest import Small


def typed(small: Small, *words: object) -> int:
    return main(["--workspace", str(small.workspace.root), "export", *map(str, words)])


@pytest.mark.slow
def test_the_file_answers_as_the_model_does(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    assert typed(small, "--out", path, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["files"], said["simulated"]) == (small.card.model_id, [str(path)], True)
    predictor = predictor_for(small.workspace.models, small.card.model_id, "cpu")
    side = small.card.image_size
    pixels = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], {"pixels": pixels.numpy()})
    np.testing.assert_allclose(found, predictor.predict(pixels).probabilities, rtol=0, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == small.card.class_names


@pytest.mark.slow
def test_without_options_the_champion_goes_into_this_folder(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed(small) == 0
    assert [file.name for file in tmp_path.iterdir()] == [f"{small.card.model_id}.onnx"]
    said = capsys.readouterr().out
    assert f"{small.card.model_id} (simulated)" in said and "onnxruntime and torch differ by" in said


def test_errors_are_in_words(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(small, "--model", "cpu_tiny-0") == 1
    assert "no model 'cpu_tiny-0'" in capsys.readouterr().err
    assert main(["--workspace", str(tmp_path), "export"]) == 1
    assert "`morphcat train` makes one" in capsys.readouterr().err
