"""Training: content-addressed, resumable to the very same model, and honest about what it was made from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from models.artifacts.registry import champion, list_models, load_card
from models.errors import ModelError
from pipeline.config.inputs import InputSettings
from pipeline.config.workspace import Workspace
from pipeline.core.classes import CLASS_SLUGS
from pipeline.core.errors import UserError
from pipeline.core.progress import progress_display
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.training.train import _model_id, recipe_for, split_of, train
from tests.conftest import Small
from tests.pipeline.makers import hdf5_columns, write_hdf5


def test_training_again_is_a_no_op(small: Small, as_was: Callable) -> None:
    with as_was(small.workspace.models):
        assert train(small.workspace, small.images) == small.card
    again = open_galaxy10(Path(small.images.source), InputSettings())
    with as_was(small.workspace.models):
        assert train(small.workspace, again).model_id == small.card.model_id


def test_the_first_model_is_champion_and_nothing_unfinished_is_left(small: Small) -> None:
    assert champion(small.workspace.models) == small.card.model_id
    assert list_models(small.workspace.models) == [small.card.model_id]
    assert not list(small.workspace.models.glob(".training/*"))


def test_the_card_says_what_the_model_was_made_from(small: Small) -> None:
    card, settings = small.card, small.workspace.settings.training
    assert re.fullmatch(r"cpu_tiny-[0-9a-f]{10}", card.model_id)
    assert card == load_card(small.workspace.models, card.model_id)
    assert card.class_slugs == list(CLASS_SLUGS) and card.image_size == 32 and card.settings == settings.model_dump()
    parts = split_of(settings, small.images)
    assert card.split_digest == parts.digest
    counts = {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)}
    assert card.data["counts"] == counts and sum(counts.values()) == 80
    assert card.data["simulated"] is True and card.data["source"] == "galaxy10.h5"
    assert card.data["digest"] == small.images.digest
    scales = small.images.pixscale
    assert card.envelope["pixscale"] == [scales.min(), scales.max()]
    assert card.validation is not None and card.validation["n"] == counts["validation"]
    assert card.test is not None and card.test["n"] == counts["test"]
    assert [record["epoch"] for record in card.history] == [0, 1]
    assert 0.05 <= card.temperature <= 20 and card.parameters > 10_000
    assert {"python", "torch", "morphcat"} <= set(card.versions)


@pytest.mark.parametrize(
    "override", ["training.seed=1", "training.epochs=3", "training.split_seed=1", "training.rotate=false"]
)
def test_whatever_determines_the_outcome_makes_another_model(small: Small, override: str) -> None:
    def name(workspace: Workspace) -> str:
        settings = workspace.settings.training
        recipe = recipe_for(settings, small.images)
        return _model_id(settings, recipe, small.images, split_of(settings, small.images), "")

    assert name(small.workspace) == small.card.model_id
    assert name(small.elsewhere(small.workspace.root, override)) != small.card.model_id
    assert name(small.elsewhere(small.workspace.root, "workers.count=7", "survey.batch=3")) == small.card.model_id


class Killed(BaseException):
    """Stands for the end of the process between two epochs."""


def test_a_training_that_was_cut_off_ends_in_the_very_same_model(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path, 'folders.models="models"')

    @contextmanager
    def cut_off(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        def step(done: int, note: str) -> None:
            if title.startswith("training") and note:  # an epoch is finished
                raise Killed

        yield step

    with pytest.raises(Killed), progress_display(cut_off):
        train(workspace, small.images)
    assert list_models(workspace.models) == []
    assert (workspace.models / ".training" / small.card.model_id / "checkpoint.pt").is_file()

    told: list[int] = []
    totals: list[int] = []

    @contextmanager
    def count(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        totals.append(total)
        yield lambda done, note: told.append(done) if title.startswith("training") else None

    with progress_display(count):
        card = train(workspace, small.images)
    assert told[0] == totals[-1] / 2 and sum(told) == totals[-1]  # one epoch was there and one was trained
    assert card.model_id == small.card.model_id
    weights = f"{card.model_id}/weights.safetensors"
    assert (workspace.models / weights).read_bytes() == (small.workspace.models / weights).read_bytes()
    assert (card.temperature, card.test, card.validation) == (
        small.card.temperature,
        small.card.test,
        small.card.validation,
    )
    assert not (workspace.models / ".training" / card.model_id).exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.variant=cpu_tinny", r"unknown network 'cpu_tinny'; did you mean 'cpu_tiny'"),
        ("training.layout=CCXT", r"expected layout as four letters"),
        ("training.image_size=33", r"expected image_size as a multiple of 32"),
        ("training.initial=elsewhere.pt", r"training.initial = 'elsewhere.pt': neither a model .* nor a file"),
    ],
)
def test_settings_that_make_no_network(small: Small, tmp_path: Path, override: str, message: str) -> None:
    workspace = small.elsewhere(tmp_path, 'folders.models="models"', override)
    with pytest.raises((UserError, ModelError), match=message):
        train(workspace, small.images)
    assert list_models(workspace.models) == []


def test_too_few_images(small: Small, tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "g.h5", {**hdf5_columns(3), "ans": np.array([0, 1, 2])})
    with pytest.raises(UserError, match=r"g\.h5: no example of in_between_smooth"):
        train(small.elsewhere(tmp_path), open_galaxy10(path, InputSettings()))


def test_without_a_test_split_and_without_scales(small: Small, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file["images"], file["ans"] = hdf5_columns(30)["images"], np.arange(30) % 10
    images = open_galaxy10(tmp_path / "g.h5", InputSettings())
    overrides = ['folders.models="models"', "training.test_fraction=0", "training.epochs=1"]
    card = train(small.elsewhere(tmp_path, *overrides), images)
    assert card.test is None and card.envelope["pixscale"] is None and not card.data["simulated"]
