"""The benchmark grid: every combination of networks, layouts, recipes and seeds, trained and measured alike.

All cells of a grid share images, split, epochs, images a step and image size; what a recipe does beyond that is what is
compared. A cell is a unit of `pipeline.execution.executor`: it trains what is not trained yet, predicts the test split
and leaves one file of predictions, by which it is known to be done. Models of a grid never become champion. Cells run
seed by seed, so that a grid which is cut short has compared everything once. The board is made of what the cells left
(`pipeline.evaluation.leaderboard`).
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from models.networks.factory import DEFAULT_LAYOUT, PEER_LAYOUT, check_variant, default_image_size, is_peer
from pipeline.config.settings import Settings
from pipeline.config.training import PRESETS, TrainingSettings
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.core.progress import track
from pipeline.datasets.loading import ImageSource, open_images
from pipeline.datasets.splits import read_split
from pipeline.evaluation.evaluate import PredictedSplit, predict_test_split
from pipeline.evaluation.leaderboard import (
    ExperimentState,
    GridRecord,
    Leaderboard,
    leaderboard_folder,
    predictions_file,
    read_leaderboard,
)
from pipeline.evaluation.leaderboard_report import write_leaderboard
from pipeline.execution.executor import run_tasks
from pipeline.runs.run_log import log_result
from pipeline.training.plan import plan, split_of
from pipeline.training.train import is_published, train

log = logging.getLogger(__name__)

LAYOUTS = ("CCCT", "CCTT", "CTTT", "CCCC")  # the ablation of the paper
SEEDS = (0, 1, 2)
NAMES = ("ablation", "recipes", "peers", "full")

# Peers of about the size of our CPU variants (2.6 and 0.46 million parameters), and those for the paper's variants.
_SMALL_PEERS = {
    "cpu_small": ("timm/convnext_atto", "timm/resnet10t"),
    "cpu_tiny": ("timm/mobilenetv3_small_050",),
}
_PEERS = ("timm/coatnet_0_rw_224", "timm/convnext_nano", "timm/resnet50")
_NO_TIMM = "needs timm, which is not installed: pip install 'morphcat[peers]'"
# The budget: the same for every cell, whatever its recipe would choose.
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
    recipes: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


class Grid(BaseModel):
    """Distinct cells in the order in which they run. The first says what the others are compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    cells: tuple[Experiment, ...] = Field(min_length=1)


def make_grid(name: str, settings: TrainingSettings, axes: Axes | None = None) -> Grid:
    """The grid of a name ("ablation", "recipes", "peers", "full", or "" for the axes alone), around `settings`.

    An axis that is given replaces that of the name. Axes that a name leaves open are those of `settings`; three seeds.

    Raises
    ------
    UserError : an unknown name, or an axis with something on it that cannot be a cell.
    ModelError : an unknown network.
    """
    axes = axes or Axes()
    for variant in axes.variants:
        if not is_peer(variant) or _has_timm():
            check_variant(variant)
    try:
        cells = [cell for given in _named(name, settings) for cell in _combined(_replaced(given, axes), settings)]
        return Grid(name=name or "axes", cells=tuple(dict.fromkeys(cells)))
    except ValidationError as error:
        problems = "; ".join(f"{e['loc'][-1]} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise UserError(f"this cannot be a cell of a grid: {problems}") from error


def _named(name: str, settings: TrainingSettings) -> list[Axes]:
    recipes = tuple(dict.fromkeys((settings.preset, "galaxy", "plain")))
    own = settings.variant
    ablation = Axes(layouts=LAYOUTS)
    peers = Axes(variants=(own, *_SMALL_PEERS.get(own, _PEERS)))
    known = {
        "": [Axes()],
        "ablation": [ablation],
        "recipes": [Axes(recipes=recipes)],
        "peers": [peers],
        "full": [ablation, Axes(recipes=recipes), peers],
    }
    if name not in known:
        raise UserError(f"no grid {name!r}: expected one of {', '.join(NAMES)}, or axes such as --layouts CCCT,CCCC")
    return known[name]


def _replaced(named: Axes, given: Axes) -> Axes:
    chosen = {axis: values for axis, values in given if values}
    return named.model_copy(update=chosen)


def _combined(axes: Axes, settings: TrainingSettings) -> Iterator[Experiment]:
    own_layout = DEFAULT_LAYOUT if is_peer(settings.variant) else settings.layout
    for seed, variant, layout, recipe in itertools.product(
        axes.seeds or SEEDS,
        axes.variants or (settings.variant,),
        axes.layouts or (own_layout,),
        axes.recipes or (settings.preset,),
    ):
        yield Experiment.model_validate(
            {
                "variant": variant,
                "layout": PEER_LAYOUT if is_peer(variant) else layout,
                "recipe": recipe,
                "seed": seed,
            }
        )


# --- settings of a cell -------------------------------------------------------------------------------------------


def experiment_settings(settings: Settings, grid: Grid, cell: Experiment) -> Settings:
    """The settings a cell is trained with.

    The budget is the workspace's. So is every training setting in which the workspace differs from its own recipe; all
    others are those of the cell's recipe. One image size holds for all cells, so that peers see the same pixels: that
    of the settings, else the usual one of the grid's first network that is not a peer.
    """
    base = settings.training
    changed = {name: getattr(base, name) for name in _changed(base)}
    kept = {name: getattr(base, name) for name in _BUDGET}
    size = _image_size(base, grid)
    if not base.image_size and default_image_size(cell.variant) != size:
        kept["image_size"] = size  # else it stays 0, so that `morphcat train` and a grid share their models
    own = {
        "preset": cell.recipe,
        "variant": cell.variant,
        "layout": DEFAULT_LAYOUT if is_peer(cell.variant) else cell.layout,
        "seed": cell.seed,
    }
    return settings.model_copy(update={"training": TrainingSettings.model_validate({**changed, **kept, **own})})


def _image_size(base: TrainingSettings, grid: Grid) -> int:
    own = [cell.variant for cell in grid.cells if not is_peer(cell.variant)]
    return base.image_size or default_image_size(own[0] if own else base.variant)


def _changed(settings: TrainingSettings) -> list[str]:
    """Names of the settings in which a training differs from its recipe."""
    usual = TrainingSettings(preset=settings.preset)
    return [name for name in TrainingSettings.model_fields if getattr(settings, name) != getattr(usual, name)]


def _compact(settings: Settings) -> str:
    """Settings as JSON, without what is as usual; `Settings.model_validate_json` gives the very same again."""
    recipe = {"preset": settings.training.preset}
    changed = settings.training.model_dump(include=set(_changed(settings.training)))
    rest = settings.model_dump(exclude={"training"}, exclude_defaults=True, mode="json")
    return json.dumps({**rest, "training": {**recipe, **changed}}, separators=(",", ":"))


# --- the unit -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExperimentJob:
    """One cell as plain values: under 1 KB.

    settings, source : JSON of `Settings` without what is as usual, and of `ImageSource`.
    split_file : a split from elsewhere, or empty.
    image_set, split, model_id : what the cell was planned with; it refuses anything else.
    """

    name: str
    root: str
    settings: str
    source: str
    split_file: str
    image_set: str
    split: str
    model_id: str

    @property
    def workspace(self) -> Workspace:
        return Workspace(root=Path(self.root), settings=Settings.model_validate_json(self.settings))


def run_experiment(job: ExperimentJob) -> str:
    """Train a cell where it is not trained yet, predict its test split and keep that; returns the id of its model.

    Raises
    ------
    UserError : the images or the split are no longer those of the plan, or the training cannot go on.
    ModelError : the network cannot be built.
    """
    workspace = job.workspace
    images = open_images(ImageSource.model_validate_json(job.source), workspace.settings.input)
    training_plan = plan(workspace, images, job.split_file or None)
    for what, found, planned in (
        ("images", images.digest, job.image_set),
        ("split", training_plan.parts.digest, job.split),
        ("model", training_plan.model_id, job.model_id),
    ):
        if found != planned:
            raise UserError(
                f"{images.source}: the {what} changed since the grid was planned ({planned}, now {found}); cells of "
                "different ones cannot stand on one board: run the benchmark again"
            )
    card = train(workspace, images, job.split_file or None, may_lead=False)
    run = predict_test_split(workspace, images, card.model_id)
    run.save(predictions_file(leaderboard_folder(workspace, job.image_set, job.split), card.model_id))
    return card.model_id


# --- the story ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedExperiment:
    """A cell with its job; without one it is skipped, for the reason given. `done` says that nothing is left to do."""

    cell: Experiment
    job: ExperimentJob | None
    done: bool = False
    reason: str = ""

    @property
    def state(self) -> str:
        """In a word."""
        return "done" if self.done else "to do" if self.job else "skipped"


@dataclass(frozen=True)
class GridPlan:
    """What a grid would do, cell by cell, and the folder of its board; `heading` says what it is measured on."""

    folder: Path
    heading: GridRecord
    cells: tuple[PlannedExperiment, ...]

    @property
    def to_do(self) -> list[ExperimentJob]:
        """The jobs of what is neither done nor skipped."""
        return [planned.job for planned in self.cells if planned.job and not planned.done]


def plan_grid(workspace: Workspace, source: ImageSource, grid: Grid, split_file: Path | None = None) -> GridPlan:
    """Find out which cells of a grid are done; makes the pixels ready where they are not, and trains nothing.

    Raises
    ------
    UserError : the images cannot be used, there is no test split, or settings that cannot be.
    ModelError : an unknown network.
    """
    if workspace.settings.workers.kind != "inline" and workspace.settings.workers.train_processes > 1:
        raise UserError(
            f"workers.train_processes = {workspace.settings.workers.train_processes} with workers.kind = "
            f"{workspace.settings.workers.kind!r}: cells that run beside each other cannot be gangs themselves; "
            "set workers.kind=inline to train one cell at a time with a gang, or workers.train_processes=1"
        )
    images = open_images(source, workspace.settings.input)
    split_path = str(split_file.absolute()) if split_file else ""
    parts = read_split(split_file, images) if split_file else split_of(workspace.settings.training, images)
    if len(parts.test) == 0:
        raise UserError(f"{images.source}: no test split (training.test_fraction = 0), nothing to measure cells on")
    folder = leaderboard_folder(workspace, images.digest, parts.digest)

    def planned(cell: Experiment) -> PlannedExperiment:
        if is_peer(cell.variant) and not _has_timm():
            return PlannedExperiment(cell, None, reason=_NO_TIMM)
        settings = experiment_settings(workspace.settings, grid, cell)
        place = workspace.model_copy(update={"settings": settings})
        model_id = plan(place, images, split_path or None).model_id
        job = ExperimentJob(
            name=cell.name,
            root=str(workspace.root),
            settings=_compact(settings),
            source=source.model_dump_json(exclude_defaults=True),
            split_file=split_path,
            image_set=images.digest,
            split=parts.digest,
            model_id=model_id,
        )
        return PlannedExperiment(cell, job, _is_done(workspace, folder, job))

    heading = GridRecord(
        grid=grid.name,
        image_set=images.digest,
        split=parts.digest,
        source=Path(images.source).name,
        kind=images.kind,
        simulated=images.simulated,
        images=len(images),
        test_images=len(parts.test),
        cells=(),
    )
    return GridPlan(folder, heading, tuple(planned(cell) for cell in grid.cells))


def _is_done(workspace: Workspace, folder: Path, job: ExperimentJob) -> bool:
    """Whether the model of a cell and its predictions are there and can be read; a damaged file is made anew."""
    path = predictions_file(folder, job.model_id)
    if not (is_published(workspace, job.model_id) and path.is_file()):
        return False
    try:
        run = PredictedSplit.load(path)
    except UserError as error:
        log.info("%s", error)
        return False
    return (run.model_id, run.image_set, run.split) == (job.model_id, job.image_set, job.split)


def run_experiments(workspace: Workspace, plan: GridPlan) -> dict[str, str]:
    """Run what is not done; returns the errors of the cells that failed, by name of the cell."""
    failed: dict[str, str] = {}
    workers = workspace.settings.workers.model_copy(update={"unit_seconds": 0})  # a training may take its time
    with track(f"grid {plan.heading.grid}", len(plan.to_do)) as step:
        for outcome in run_tasks(run_experiment, plan.to_do, workers):
            log_result(outcome)
            if outcome.receipt is None:
                failed[outcome.name] = outcome.error
                log.warning("%s failed: %s", outcome.name, outcome.error)
            step(1, f"{outcome.name}: {'failed' if outcome.receipt is None else 'done'}")
    return failed


def write_leaderboard_of(workspace: Workspace, plan: GridPlan, failed: dict[str, str]) -> Leaderboard:
    """Make the board of everything measured on these images and this split, and write it."""
    states = tuple(_state(planned, failed) for planned in plan.cells)
    plan.heading.model_copy(update={"cells": states}).save(plan.folder)
    board = read_leaderboard(plan.folder, workspace.models)
    write_leaderboard(board, plan.folder)
    return board


def _state(planned: PlannedExperiment, failed: dict[str, str]) -> ExperimentState:
    cell = planned.cell
    error = failed.get(cell.name, "").strip()
    return ExperimentState(
        name=cell.name,
        model_id=planned.job.model_id if planned.job else "",
        state="failed" if error else "done" if planned.job else "skipped",
        reason=error.splitlines()[-1] if error else planned.reason,
    )


def run_grid(workspace: Workspace, source: ImageSource, grid: Grid, split_file: Path | None = None) -> Leaderboard:
    """Plan a grid, run what is not done, and make the board; returns it also when cells failed.

    Raises what `plan_grid` raises.
    """
    plan = plan_grid(workspace, source, grid, split_file)
    return write_leaderboard_of(workspace, plan, run_experiments(workspace, plan))


def _has_timm() -> bool:
    return importlib.util.find_spec("timm") is not None
