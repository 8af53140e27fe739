"""Ensembles: one model made of several, calibrated together, and only of what belongs together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.artifacts.registry import ModelCard, champion, load_card
from models.errors import ModelError
from models.inference.predictor import predictor_for
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.evaluation.evaluate import benchmark
from pipeline.training.ensembles import ensemble
from pipeline.training.train import train
from tests.conftest import Small


@pytest.fixture(scope="module")
def two(small: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, list[ModelCard]]:
    """A workspace with two models that differ in their seed, and one of another split."""
    root = tmp_path_factory.mktemp("two")
    cards = [
        train(small.elsewhere(root, 'folders.models="models"', "training.epochs=1", *settings), small.images)
        for settings in (["training.seed=1"], ["training.seed=2"], ["training.split_seed=5"])
    ]
    return small.elsewhere(root, 'folders.models="models"'), cards


def test_an_ensemble_is_a_model_like_any_other(
    small: Small, two: tuple[Workspace, list[ModelCard]], as_was: Callable
) -> None:
    workspace, (one, other, _) = two
    card = ensemble(workspace, small.images, [other.model_id, one.model_id])
    assert {member.model_id for member in card.members} == {one.model_id, other.model_id}
    assert card.parameters == 2 * one.parameters and card.split_digest == one.split_digest
    assert champion(workspace.models) == one.model_id
    assert card.temperature not in (one.temperature, other.temperature)
    with as_was(workspace.models):
        assert ensemble(workspace, small.images, [one.model_id, other.model_id]) == card
    result = benchmark(workspace, small.images, card.model_id)
    assert card.test is not None
    assert result.evaluation.accuracy == card.test["accuracy"]
    np.testing.assert_allclose(result.evaluation.brier, card.test["brier"], atol=1e-6)
    predictor = predictor_for(workspace.models, card.model_id, "cpu")
    said = predictor.predict(small.images.pixels(predictor.preprocessing, workspace.cache)[:5])
    assert said.n_views == 2 and said.spread.max() > 0 and set(said.agreement) <= {0.0, 0.5, 1.0}


def test_an_ensemble_of_one_says_what_its_member_says(small: Small, two: tuple[Workspace, list[ModelCard]]) -> None:
    workspace, (one, *_) = two
    card = ensemble(workspace, small.images, [one.model_id])
    assert (card.temperature, card.conformal, card.novelty) == (one.temperature, one.conformal, one.novelty)
    pixels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    alone = predictor_for(workspace.models, one.model_id, "cpu").predict(pixels)
    joined = predictor_for(workspace.models, card.model_id, "cpu").predict(pixels)
    for name in ("probabilities", "sets", "spread", "agreement", "novelty"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(joined, name))


def test_views_and_coverage_are_chosen_for_the_ensemble(small: Small, two: tuple[Workspace, list[ModelCard]]) -> None:
    workspace, (one, other, _) = two
    settings = ['folders.models="models"', "training.views=8", "training.coverage=0.7"]
    card = ensemble(small.elsewhere(workspace.root, *settings), small.images, [one.model_id, other.model_id])
    assert card.views == 8 and card.conformal.coverage == 0.7 and card.settings["views"] == 8
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert predictor_for(workspace.models, card.model_id, "cpu").predict(pixels).n_views == 16


def test_what_does_not_belong_together_is_refused(small: Small, two: tuple[Workspace, list[ModelCard]]) -> None:
    workspace, (one, other, stranger) = two
    joined = ensemble(workspace, small.images, [one.model_id, other.model_id])
    for members, message in (
        ([], "needs members"),
        ([one.model_id, one.model_id], "named twice"),
        ([one.model_id, stranger.model_id], "their split differ"),
        ([joined.model_id, one.model_id], "an ensemble itself"),
    ):
        with pytest.raises(UserError, match=message):
            ensemble(workspace, small.images, members)
    with pytest.raises(ModelError, match="no model"):
        ensemble(workspace, small.images, ["gone", one.model_id])


def test_a_member_that_was_deleted_is_missed(
    small: Small, two: tuple[Workspace, list[ModelCard]], tmp_path: Path
) -> None:
    workspace, (one, other, _) = two
    card = ensemble(workspace, small.images, [one.model_id, other.model_id])
    copy = tmp_path / "models"
    shutil.copytree(workspace.models, copy)
    shutil.rmtree(copy / other.model_id)
    with pytest.raises(ModelError, match=f"{other.model_id}: not found, but the ensemble {card.model_id}"):
        predictor_for(copy, card.model_id, "cpu")
    assert load_card(copy, card.model_id) == card
