"""The experiments of a grid: which there are, each once, and the same budget for all."""

from __future__ import annotations

import pytest

from models.errors import ModelError
from pipeline.config.settings import Settings
from pipeline.config.training import PRESETS, TrainingSettings
from pipeline.core.errors import UserError
from pipeline.evaluation.experiments import LAYOUTS, Axes, Experiment, Grid, experiment_settings, make_grid


def test_a_grid_as_plain_values_and_back() -> None:
    grid = make_grid("ablation", TrainingSettings())
    values = grid.model_dump(mode="json", by_alias=True)
    assert set(values) == {"name", "cells"} and Grid.model_validate(values) == grid


def test_the_ablation_is_every_layout_with_every_seed() -> None:
    grid = make_grid("ablation", TrainingSettings(variant="astroformer_3"))
    assert {(c.variant, c.recipe) for c in grid.experiments} == {("astroformer_3", "galaxy")}
    assert [c.layout for c in grid.experiments[:4]] == list(LAYOUTS)
    assert [c.seed for c in grid.experiments] == [0] * 4 + [1] * 4 + [2] * 4  # all of one seed first


def test_a_peer_has_one_experiment_for_each_recipe_and_seed() -> None:
    axes = Axes(variants=("cpu_tiny", "timm/resnet18"), layouts=("CCCT", "CCCC"), presets=("galaxy", "plain"))
    experiments = make_grid("", TrainingSettings(), axes).experiments
    assert len(experiments) == 2 * 2 * 3 + 2 * 3
    assert {c.layout for c in experiments if c.variant == "timm/resnet18"} == {"-"}


def test_the_full_grid_holds_the_others_and_nothing_twice() -> None:
    settings = TrainingSettings(preset="paper", variant="astroformer_0")
    full = make_grid("full", settings).experiments
    parts = [set(make_grid(name, settings).experiments) for name in ("ablation", "recipes", "peers")]
    assert set(full) == set.union(*parts) and len(full) == len(set(full))
    assert {c.recipe for c in parts[1]} == {"paper", "galaxy", "plain"}
    assert full[0] == Experiment(variant="astroformer_0", layout="CCCT", recipe="paper", seed=0)


def test_axes_replace_those_of_a_name() -> None:
    experiments = make_grid("ablation", TrainingSettings(), Axes(variants=("cpu_tiny",), seeds=(7,))).experiments
    assert [c.name for c in experiments] == [f"cpu_tiny {layout} galaxy seed 7" for layout in LAYOUTS]


@pytest.mark.parametrize(
    ("name", "axes", "error", "message"),
    [
        ("ablations", Axes(), UserError, r"no grid 'ablations': expected one of ablation, recipes, peers, full"),
        ("", Axes(layouts=("CCXT",)), UserError, r"layout = 'CCXT'"),
        ("", Axes(presets=("fancy",)), UserError, r"recipe = 'fancy'.*galaxy, paper, plain"),
        ("", Axes(seeds=(-1,)), UserError, r"seed = -1"),
        ("", Axes(variants=("cpu_tinny",)), ModelError, r"did you mean 'cpu_tiny'"),
    ],
)
def test_experiments_that_cannot_be(name: str, axes: Axes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_grid(name, TrainingSettings(), axes)


# --- settings of an experiment ------------------------------------------------------------------------------------


def settings_of(base: TrainingSettings, axes: Axes, index: int = 0) -> TrainingSettings:
    grid = make_grid("", base, axes)
    return experiment_settings(Settings(training=base), grid, grid.experiments[index]).training


def test_every_experiment_has_the_budget_of_the_workspace_and_its_own_recipe() -> None:
    base = TrainingSettings(variant="cpu_tiny", epochs=7, weight_decay=0.01, test_fraction=0.2)
    for recipe in ("galaxy", "plain", "paper"):
        own = settings_of(base, Axes(presets=(recipe,)))
        assert (own.epochs, own.batch_size, own.image_size) == (7, base.batch_size, base.image_size)
        assert (own.weight_decay, own.test_fraction) == (0.01, 0.2)  # what the workspace changes, it changes for all
        for name in ("mixup", "rotate", "label_smoothing"):
            assert getattr(own, name) == PRESETS[recipe].get(name, getattr(TrainingSettings(), name))


def test_a_workspace_of_the_paper_gives_its_budget_to_other_recipes() -> None:
    base = TrainingSettings(preset="paper", variant="astroformer_0")
    own = settings_of(base, Axes(presets=("plain",)))
    assert (own.epochs, own.image_size, own.batch_size) == (300, 256, 256) and own.mixup == 0


def test_peers_see_the_pixels_of_our_own_network() -> None:
    base = TrainingSettings(variant="cpu_small")
    axes = Axes(variants=("timm/resnet18", "cpu_small", "cpu_tiny"), seeds=(0,))
    assert [settings_of(base, axes, i).image_size for i in range(3)] == [96, 0, 96]  # 0 is 96 for cpu_small
    assert settings_of(base, axes, 0).layout == "CCCT"  # which a network without a layout accepts
    fixed = base.model_copy(update={"image_size": 64})
    assert {settings_of(fixed, axes, i).image_size for i in range(3)} == {64}


def test_a_lone_experiment_with_the_own_settings_is_what_train_would_train() -> None:
    base = TrainingSettings(variant="cpu_tiny", epochs=3, mixup=0.4, seed=5)
    assert settings_of(base, Axes(seeds=(5,))) == base
