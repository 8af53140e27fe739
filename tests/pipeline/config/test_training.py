"""Presets fill in what is not set; what is set wins; what cannot be is an error that names the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models.training.config import LoopSettings
from pipeline.config.training import PRESETS, TrainingSettings
from pipeline.config.workspace import open_workspace
from pipeline.core.errors import UserError


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_what_is_not_set_and_nothing_else(preset: str) -> None:
    found = TrainingSettings(preset=preset, epochs=7, drop_path=0.03)
    for name, field in TrainingSettings.model_fields.items():
        wanted = {"preset": preset, "epochs": 7, "drop_path": 0.03}.get(name, PRESETS[preset].get(name, field.default))
        assert getattr(found, name) == wanted, name
    assert set(PRESETS[preset]) <= set(TrainingSettings.model_fields)


def test_every_preset_is_named_and_galaxy_is_the_default() -> None:
    assert set(PRESETS) == set(TrainingSettings.model_fields["preset"].annotation.__args__)
    assert TrainingSettings() == TrainingSettings(preset="galaxy")
    assert TrainingSettings() != TrainingSettings(preset="plain") != TrainingSettings(preset="paper")


def test_the_paper_preset_is_what_the_paper_says() -> None:
    """What arXiv 2304.05350 fixes: 256 px, 300 epochs, 5 of warm-up, AdamW, and these rates."""
    paper = TrainingSettings(preset="paper")
    told: dict[str, Any] = {
        "image_size": 256,
        "epochs": 300,
        "warmup_epochs": 5.0,
        "optimizer": "adamw",
        "mixup": 0.8,
        "cutmix": 0.0,
        "label_smoothing": 0.1,
        "head_dropout": 0.1,
        "stratified": True,
        "rotate": False,
        "mirror": False,
        "ema_decay": 0.0,
    }
    assert {name: getattr(paper, name) for name in told} == told
    assert paper.randaugment_ops > 0 and paper.drop_path > 0 and paper.weight_decay > 0


def test_the_plain_preset_leaves_images_and_targets_as_they_are() -> None:
    plain = TrainingSettings(preset="plain")
    off = ("label_smoothing", "mixup", "cutmix", "randaugment_ops", "rotate", "mirror", "zoom", "shift", "drop_path")
    assert not any(getattr(plain, name) for name in (*off, "head_dropout", "ema_decay", "stratified"))
    shared = ("epochs", "batch_size", "learning_rate", "warmup_epochs", "weight_decay", "optimizer", "clip_gradient")
    assert all(getattr(plain, name) == getattr(TrainingSettings(), name) for name in shared)  # the same budget


def test_values_read_back_are_the_same_settings() -> None:
    """A dump holds every value, so that a preset that changes later does not change what was trained."""
    for preset in PRESETS:
        settings = TrainingSettings(preset=preset, seed=5)
        assert TrainingSettings(**settings.model_dump()) == settings
        assert TrainingSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"preset": "papper"}, "preset"),
        ({"preset": ["paper"]}, "preset"),
        ({"batch_size": 7}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"accumulate": 0}, "accumulate"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"mixup": -1}, "mixup"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"randaugment_magnitude": 31}, "randaugment_magnitude"),
        ({"select": "first"}, "select"),
        ({"learnig_rate": 1e-3}, "learnig_rate"),
        ({"seed": -1}, "seed"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingSettings(**values)
    assert [error["loc"] for error in caught.value.errors()] == [(where,)]


def test_settings_cannot_be_changed_and_all_are_described() -> None:
    settings = TrainingSettings()
    with pytest.raises(ValidationError):
        settings.epochs = 3  # type: ignore[misc]
    assert all(field.description for field in TrainingSettings.model_fields.values())
    assert set(LoopSettings.model_fields) < set(TrainingSettings.model_fields)


def test_a_preset_in_the_file_and_a_value_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "morphcat.toml").write_text('[training]\npreset = "plain"\nepochs = 3\n')
    training = open_workspace(tmp_path, ["training.mixup=0.4"]).settings.training
    assert (training.preset, training.epochs, training.mixup, training.mirror) == ("plain", 3, 0.4, False)
    assert open_workspace(tmp_path, ["training.preset=paper"]).settings.training.mixup == 0.8
    with pytest.raises(UserError, match="preset"):
        open_workspace(tmp_path, ["training.preset=papper"])
