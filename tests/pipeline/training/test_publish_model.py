"""From a fit to a card: calibrated on what is served, and honest about what was too little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.artifacts.registry import load_card
from models.inference.ensemble import Ensemble
from models.inference.predictor import load_ensemble, predictor_for
from models.metrics import ReliabilityBin, calibration_gap, evaluate
from pipeline.datasets.splits import Split
from pipeline.training.plan import split_of
from pipeline.training.publish_model import measure
from pipeline.training.train import train
from tests.conftest import Small


def ensemble_of(small: Small) -> Ensemble:
    return load_ensemble(small.workspace.models, small.card, torch.device("cpu"), 64)


def test_the_numbers_of_the_card_are_those_of_what_is_served(small: Small) -> None:
    card = small.card
    predictor = predictor_for(small.workspace.models, card.model_id, "cpu")
    rows = split_of(small.workspace.settings.training, small.images).test
    pixels = small.images.pixels(predictor.preprocessing, small.workspace.cache)
    said = predictor.predict(pixels[torch.from_numpy(rows)])
    found = evaluate(said.probabilities, small.images.labels[rows], said.sets).to_dict()
    assert card.test is not None
    for name, value in found.items():
        np.testing.assert_allclose(np.array(card.test[name], float), value, atol=1e-6, err_msg=name)


def test_calibration_before_and_after_is_kept_with_its_table(small: Small) -> None:
    card = load_card(small.workspace.models, small.card.model_id)
    assert set(card.calibration) == {"validation", "test"} and card.validation is not None
    fitted = card.calibration["validation"]
    assert fitted.after["nll"] <= fitted.before["nll"] + 1e-6  # what the temperature was chosen for
    assert fitted.after["ece"] == card.validation["ece"]
    for numbers in (fitted.before, fitted.after):
        bins = [ReliabilityBin(**each) for each in numbers["bins"]]
        assert sum(b.n for b in bins) == card.validation["n"]
        assert calibration_gap(bins) == pytest.approx(numbers["ece"])
    assert card.conformal.coverage == small.workspace.settings.training.coverage
    assert sum(card.conformal.counts) == card.validation["n"]


def test_a_small_validation_split_is_remarked(small: Small) -> None:
    assert small.card.validation is not None and small.card.validation["n"] < 20
    text = " ".join(small.card.remarks)
    assert f"only {small.card.validation['n']} validation images" in text and "threshold of their own" in text
    readme = small.workspace.models / small.card.model_id / "README.md"
    assert small.card.remarks[0] in readme.read_text()


def test_a_class_without_validation_images_borrows_and_is_named(small: Small) -> None:
    parts = split_of(small.workspace.settings.training, small.images)
    kept = parts.validation[small.images.labels[parts.validation] != 4]
    pixels = small.images.pixels(ensemble_of(small).preprocessing, small.workspace.cache)
    found = measure(ensemble_of(small), pixels, small.images, replace(parts, validation=kept), 0.5)
    sets = found.confidence.conformal
    assert sets.counts[4] == 0 and sets.thresholds[4] == sets.pooled
    assert any("cigar_smooth" in remark for remark in found.remarks)


def test_one_validation_image_and_no_test(small: Small) -> None:
    parts = split_of(small.workspace.settings.training, small.images)
    none = np.empty(0, np.int64)
    pixels = small.images.pixels(ensemble_of(small).preprocessing, small.workspace.cache)
    found = measure(ensemble_of(small), pixels, small.images, Split(parts.train, parts.validation[:1], none), 0.9)
    assert found.test is None and set(found.calibration) == {"validation"}
    assert found.validation["coverage"] == 1 and found.validation["mean_set_size"] == 10
    assert any("every class is in every set" in remark for remark in found.remarks)


def test_eight_views_are_another_model_with_a_calibration_of_its_own(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path, 'folders.models="models"', "training.views=8", "training.epochs=1")
    card = train(workspace, small.images)
    assert card.views == 8 and card.model_id != small.card.model_id
    predictor = predictor_for(workspace.models, card.model_id, "cpu")
    pixels = small.images.pixels(predictor.preprocessing, workspace.cache)[:3]
    said, turned = predictor.predict(pixels), predictor.predict(pixels.rot90(1, dims=(2, 3)))
    assert said.n_views == 8
    np.testing.assert_allclose(said.probabilities, turned.probabilities, atol=1e-5)


def test_the_card_is_the_same_each_time(small: Small) -> None:
    parts = split_of(small.workspace.settings.training, small.images)
    pixels = small.images.pixels(ensemble_of(small).preprocessing, small.workspace.cache)
    again = measure(ensemble_of(small), pixels, small.images, parts, small.card.conformal.coverage)
    assert again.confidence.temperature == small.card.temperature
    assert again.confidence.conformal == small.card.conformal and again.confidence.novelty == small.card.novelty
