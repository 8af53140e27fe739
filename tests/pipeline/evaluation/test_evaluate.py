"""The benchmark: the numbers of the card again, on the same test split and on nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.errors import ModelError
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import UserError
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.evaluation.evaluate import benchmark, confusion_table
from tests.conftest import Small
from tests.pipeline.makers import hdf5_columns, write_hdf5


def test_it_gives_the_numbers_of_the_card(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path)
    result = benchmark(workspace, small.images, small.card.model_id)
    numbers = result.evaluation.to_dict()
    assert small.card.test is not None
    for name, value in small.card.test.items():
        np.testing.assert_allclose(numbers[name], value, atol=2e-4, err_msg=name)
    assert result.images_per_second > 0
    report = json.loads((workspace.reports / f"benchmark-{small.card.model_id}.json").read_text())
    assert report["accuracy"] == numbers["accuracy"] and report["simulated"] is True
    assert report["split"] == small.card.split_digest and report["model"] == small.card.model_id
    text = (workspace.reports / f"benchmark-{small.card.model_id}.md").read_text()
    assert "**simulated**" in text and "edge_on_bulge" in text


def test_the_confusion_table_adds_up(small: Small, tmp_path: Path) -> None:
    result = benchmark(small.elsewhere(tmp_path), small.images, small.card.model_id)
    table = confusion_table(result.evaluation, small.card.class_slugs)
    assert table.shape == (10, 12)
    assert table.iloc[:, 1:-1].to_numpy().sum() == result.evaluation.n


def test_other_images_are_refused(small: Small, tmp_path: Path) -> None:
    """Nobody can tell which of them the model has seen."""
    columns = hdf5_columns(40)
    path = write_hdf5(tmp_path / "other.h5", {**columns, "ans": np.arange(40) % 10})
    with pytest.raises(UserError, match=r"other\.h5 is not what cpu_tiny-.* was trained on \(galaxy10\.h5\)"):
        benchmark(small.elsewhere(tmp_path), open_galaxy10(path, InputSettings()), small.card.model_id)
    few = write_hdf5(tmp_path / "few.h5", {**hdf5_columns(2), "ans": np.array([1, 2])})
    with pytest.raises(UserError, match=r"few\.h5"):
        benchmark(small.elsewhere(tmp_path), open_galaxy10(few, InputSettings()), small.card.model_id)


def test_an_unknown_model_names_the_nearest(small: Small, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"did you mean {small.card.model_id}"):
        benchmark(small.elsewhere(tmp_path), small.images, small.card.model_id[:-1] + "x")
