"""The benchmark grid: experiments planned, run as tasks, and collected on the leaderboard.

An experiment is a task of `pipeline.execution.executor`: it trains its network where it is not trained yet, predicts
the test split and writes one file of predictions, whose existence marks it as done. Models of a grid never become
champion.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from models.networks.factory import is_peer
from pipeline.config.settings import Settings
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.core.progress import track
from pipeline.datasets.loading import ImageSource, open_images
from pipeline.datasets.splits import read_split
from pipeline.evaluation.evaluate import PredictedSplit, predict_test_split
from pipeline.evaluation.experiments import Experiment, Grid, compact_json, experiment_settings, has_timm
from pipeline.evaluation.grid_record import ExperimentState, GridRecord, leaderboard_folder, predictions_file
from pipeline.evaluation.leaderboard import Leaderboard, read_leaderboard
from pipeline.evaluation.leaderboard_report import write_leaderboard
from pipeline.execution.executor import run_tasks
from pipeline.runs.run_log import log_result
from pipeline.training.plan import plan_training, split_of
from pipeline.training.train import is_published, train

log = logging.getLogger(__name__)

_NO_TIMM = "needs timm, which is not installed: pip install 'morphcat[peers]'"


def run_grid(workspace: Workspace, source: ImageSource, grid: Grid, split_file: Path | None = None) -> Leaderboard:
    """Plan a grid, run what is not done, and update the leaderboard; returns it also when experiments failed.

    Raises what `plan_grid` raises.
    """
    plan = plan_grid(workspace, source, grid, split_file)
    return update_leaderboard(workspace, plan, run_experiments(workspace, plan))


# --- plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExperimentJob:
    """One experiment as plain values: under 1 KB.

    settings, source : JSON of `Settings` without default values, and of `ImageSource`.
    split_file : a split from elsewhere, or empty.
    image_set, split, model_id : what the experiment was planned with; it refuses anything else.
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


@dataclass(frozen=True)
class PlannedExperiment:
    """An experiment with its job; without a job it is skipped, for the `reason`. `done` : nothing is left to do."""

    experiment: Experiment
    job: ExperimentJob | None
    done: bool = False
    reason: str = ""

    @property
    def state(self) -> str:
        """ "done", "to do" or "skipped"."""
        return "done" if self.done else "to do" if self.job else "skipped"


@dataclass(frozen=True)
class GridPlan:
    """What a grid will do. `folder` is that of its leaderboard, `heading` its record without experiments."""

    folder: Path
    heading: GridRecord
    experiments: tuple[PlannedExperiment, ...]

    @property
    def to_do(self) -> list[ExperimentJob]:
        """The jobs of what is neither done nor skipped."""
        return [planned.job for planned in self.experiments if planned.job and not planned.done]


def plan_grid(workspace: Workspace, source: ImageSource, grid: Grid, split_file: Path | None = None) -> GridPlan:
    """Find out which experiments of a grid are done; prepares the pixels if necessary, and trains nothing.

    Raises
    ------
    UserError : the images cannot be used, there is no test split, or settings exclude each other.
    ModelError : an unknown network.
    """
    workers = workspace.settings.workers
    if workers.kind != "inline" and workers.train_processes > 1:
        raise UserError(
            f"workers.train_processes = {workers.train_processes} with workers.kind = {workers.kind!r}: experiments "
            "that run at the same time cannot have several processes each; set workers.kind=inline to train one "
            "experiment at a time with several processes, or workers.train_processes=1"
        )
    images = open_images(source, workspace.settings.input)
    split_path = str(split_file.absolute()) if split_file else ""
    parts = read_split(split_file, images) if split_file else split_of(workspace.settings.training, images)
    if len(parts.test) == 0:
        raise UserError(f"{images.source}: no test split (training.test_fraction = 0) to measure experiments on")
    folder = leaderboard_folder(workspace, images.digest, parts.digest)

    def planned(experiment: Experiment) -> PlannedExperiment:
        if is_peer(experiment.variant) and not has_timm():
            return PlannedExperiment(experiment, None, reason=_NO_TIMM)
        settings = experiment_settings(workspace.settings, grid, experiment)
        own_workspace = workspace.model_copy(update={"settings": settings})
        training_plan = plan_training(own_workspace, images, split_path or None)
        job = ExperimentJob(
            name=experiment.name,
            root=str(workspace.root),
            settings=compact_json(settings),
            source=source.model_dump_json(exclude_defaults=True),
            split_file=split_path,
            image_set=images.digest,
            split=parts.digest,
            model_id=training_plan.model_id,
        )
        return PlannedExperiment(experiment, job, _is_done(workspace, folder, job))

    heading = GridRecord(
        grid=grid.name,
        image_set=images.digest,
        split=parts.digest,
        source=Path(images.source).name,
        kind=images.kind,
        simulated=images.simulated,
        images=len(images),
        test_images=len(parts.test),
        experiments=(),
    )
    return GridPlan(folder, heading, tuple(planned(experiment) for experiment in grid.experiments))


def _is_done(workspace: Workspace, folder: Path, job: ExperimentJob) -> bool:
    """Whether the model of a job and its predictions exist and can be read; a damaged file is made again."""
    path = predictions_file(folder, job.model_id)
    if not (is_published(workspace, job.model_id) and path.is_file()):
        return False
    try:
        run = PredictedSplit.load(path)
    except UserError as error:
        log.info("%s", error)
        return False
    return (run.model_id, run.image_set, run.split) == (job.model_id, job.image_set, job.split)


# --- run ----------------------------------------------------------------------------------------------------------


def run_experiments(workspace: Workspace, plan: GridPlan) -> dict[str, str]:
    """Run what is not done; returns the errors of the experiments that failed, by name."""
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


def run_experiment(job: ExperimentJob) -> str:
    """What a worker does: train where needed, predict the test split, write the predictions; returns the model's id.

    Raises
    ------
    UserError : the images or the split are no longer those of the plan, or the training cannot go on.
    ModelError : the network cannot be built.
    """
    workspace = job.workspace
    images = open_images(ImageSource.model_validate_json(job.source), workspace.settings.input)
    training_plan = plan_training(workspace, images, job.split_file or None)
    for what, found, planned in (
        ("images", images.digest, job.image_set),
        ("split", training_plan.parts.digest, job.split),
        ("model", training_plan.model_id, job.model_id),
    ):
        if found != planned:
            raise UserError(
                f"{images.source}: the {what} changed since the grid was planned ({planned}, now {found}); experiments "
                "on different ones cannot share a leaderboard: run the benchmark again"
            )
    card = train(workspace, images, job.split_file or None, may_lead=False)
    run = predict_test_split(workspace, images, card.model_id)
    run.save(predictions_file(leaderboard_folder(workspace, job.image_set, job.split), card.model_id))
    return card.model_id


# --- leaderboard --------------------------------------------------------------------------------------------------


def update_leaderboard(workspace: Workspace, plan: GridPlan, failed: dict[str, str]) -> Leaderboard:
    """Record how a grid ended, and write the leaderboard of everything measured on its images and split.

    failed : errors by name of the experiment, as `run_experiments` returns them.
    """
    states = tuple(_state(planned, failed) for planned in plan.experiments)
    plan.heading.model_copy(update={"experiments": states}).save(plan.folder)
    board = read_leaderboard(plan.folder, workspace.models)
    write_leaderboard(board, plan.folder)
    return board


def _state(planned: PlannedExperiment, failed: dict[str, str]) -> ExperimentState:
    error = failed.get(planned.experiment.name, "").strip()
    return ExperimentState(
        name=planned.experiment.name,
        model_id=planned.job.model_id if planned.job else "",
        state="failed" if error else "done" if planned.job else "skipped",
        reason=error.splitlines()[-1] if error else planned.reason,
    )
