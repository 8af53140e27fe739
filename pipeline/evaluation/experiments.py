"""The experiments of a benchmark grid: every combination of networks, layouts, presets and seeds.

All experiments of a grid share images, split, epochs, images per step and image size; whatever else a recipe chooses is
what the grid compares. They run seed by seed, so that a grid which is cut short has compared everything once.
`pipeline.evaluation.grid` runs them.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from models.networks.factory import DEFAULT_LAYOUT, PEER_LAYOUT, check_variant, default_image_size, is_peer
from pipeline.config.settings import Settings
from pipeline.config.training import PRESETS, TrainingSettings
from pipeline.core.errors import UserError

LAYOUTS = ("CCCT", "CCTT", "CTTT", "CCCC")  # the ablation of the paper
SEEDS = (0, 1, 2)
NAMES = ("ablation", "recipes", "peers", "full")

# Peers of about the size of our CPU variants (2.6 and 0.46 million parameters), and those for the paper's variants.
_SMALL_PEERS = {
    "cpu_small": ("timm/convnext_atto", "timm/resnet10t"),
    "cpu_tiny": ("timm/mobilenetv3_small_050",),
}
_PEERS = ("timm/coatnet_0_rw_224", "timm/convnext_nano", "timm/resnet50")
# The same for every experiment, whatever its recipe would choose.
_BUDGET = ("epochs", "batch_size", "image_size")


class Experiment(BaseModel):
    """One training of a grid; the layout of a peer is "-"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: str
    layout: str = Field(pattern=r"^([CT]{4}|-)$")
    recipe: str
    seed: int = Field(ge=0, lt=2**31)

    @field_validator("recipe")
    @classmethod
    def _known(cls, recipe: str) -> str:
        if recipe not in PRESETS:
            raise ValueError(f"expected one of {', '.join(PRESETS)}")
        return recipe

    @property
    def name(self) -> str:
        """For messages."""
        layout = "" if self.layout == PEER_LAYOUT else f" {self.layout}"
        return f"{self.variant}{layout} {self.recipe} seed {self.seed}"


class Axes(BaseModel):
    """What is combined; an empty axis is that of the grid's name, or of the workspace's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variants: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


class Grid(BaseModel):
    """Distinct experiments in the order in which they run. The others are compared with the first.

    As plain values, for flows, the experiments are named `cells`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str
    experiments: tuple[Experiment, ...] = Field(min_length=1, alias="cells")


def make_grid(name: str, settings: TrainingSettings, axes: Axes | None = None) -> Grid:
    """The grid of a name ("ablation", "recipes", "peers", "full", or "" for the axes alone), around `settings`.

    An axis that is given replaces that of the name. Axes that a name leaves open are those of `settings`, with three
    seeds.

    Raises
    ------
    UserError : an unknown name, or a value on an axis that no experiment can have.
    ModelError : an unknown network.
    """
    axes = axes or Axes()
    for variant in axes.variants:
        if not is_peer(variant) or has_timm():
            check_variant(variant)
    given = {axis: values for axis, values in axes if values}
    try:
        parts = [_combinations(named.model_copy(update=given), settings) for named in _axes_of(name, settings)]
        return Grid(name=name or "axes", experiments=tuple(dict.fromkeys(itertools.chain(*parts))))
    except ValidationError as error:
        problems = "; ".join(f"{e['loc'][-1]} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise UserError(f"no experiment of a grid can have this: {problems}") from error


def _axes_of(name: str, settings: TrainingSettings) -> list[Axes]:
    """The axes of each part of a named grid."""
    presets = tuple(dict.fromkeys((settings.preset, "galaxy", "plain")))
    own = settings.variant
    ablation = Axes(layouts=LAYOUTS)
    peers = Axes(variants=(own, *_SMALL_PEERS.get(own, _PEERS)))
    known = {
        "": [Axes()],
        "ablation": [ablation],
        "recipes": [Axes(presets=presets)],
        "peers": [peers],
        "full": [ablation, Axes(presets=presets), peers],
    }
    if name not in known:
        raise UserError(f"no grid {name!r}: expected one of {', '.join(NAMES)}, or axes such as --layouts CCCT,CCCC")
    return known[name]


def _combinations(axes: Axes, settings: TrainingSettings) -> Iterator[Experiment]:
    own_layout = DEFAULT_LAYOUT if is_peer(settings.variant) else settings.layout
    for seed, variant, layout, recipe in itertools.product(
        axes.seeds or SEEDS,
        axes.variants or (settings.variant,),
        axes.layouts or (own_layout,),
        axes.presets or (settings.preset,),
    ):
        layout = PEER_LAYOUT if is_peer(variant) else layout
        yield Experiment.model_validate({"variant": variant, "layout": layout, "recipe": recipe, "seed": seed})


def has_timm() -> bool:
    """Whether peers can be trained."""
    return importlib.util.find_spec("timm") is not None


# --- settings of an experiment ------------------------------------------------------------------------------------


def experiment_settings(settings: Settings, grid: Grid, experiment: Experiment) -> Settings:
    """The settings an experiment is trained with.

    The budget is the workspace's. So is every training setting in which the workspace differs from its own recipe; all
    others are those of the experiment's recipe. One image size holds for all experiments, so that peers see the same
    pixels: that of the settings, else the usual one of the grid's first network that is not a peer.
    """
    base = settings.training
    changed = {name: getattr(base, name) for name in _changed(base)}
    budget = {name: getattr(base, name) for name in _BUDGET}
    size = _image_size(base, grid)
    # Otherwise the size stays 0, so that `morphcat train` and a grid share their models.
    if not base.image_size and default_image_size(experiment.variant) != size:
        budget["image_size"] = size
    own = {
        "preset": experiment.recipe,
        "variant": experiment.variant,
        "layout": DEFAULT_LAYOUT if is_peer(experiment.variant) else experiment.layout,
        "seed": experiment.seed,
    }
    return settings.model_copy(update={"training": TrainingSettings.model_validate({**changed, **budget, **own})})


def _image_size(base: TrainingSettings, grid: Grid) -> int:
    own = [experiment.variant for experiment in grid.experiments if not is_peer(experiment.variant)]
    return base.image_size or default_image_size(own[0] if own else base.variant)


def compact_json(settings: Settings) -> str:
    """Settings as JSON without default values; `Settings.model_validate_json` gives equal settings again."""
    recipe = {"preset": settings.training.preset}
    changed = settings.training.model_dump(include=set(_changed(settings.training)))
    rest = settings.model_dump(exclude={"training"}, exclude_defaults=True, mode="json")
    return json.dumps({**rest, "training": {**recipe, **changed}}, separators=(",", ":"))


def _changed(settings: TrainingSettings) -> list[str]:
    """Names of the settings in which a training differs from its recipe."""
    usual = TrainingSettings(preset=settings.preset)
    return [name for name in TrainingSettings.model_fields if getattr(settings, name) != getattr(usual, name)]
