"""The flows that train a network and measure it.

The steps are functions of `pipeline.training.train` and `pipeline.evaluation.evaluate`.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.runtime.progress import kept_by_prefect
from flows.runtime.retries import if_transient
from models.artifacts.registry import ModelCard, champion, describe
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.core.errors import UserError
from pipeline.core.times import run_id_of
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.loading import ImageSource, open_source, source_or_benchmark
from pipeline.evaluation import evaluate as measuring
from pipeline.evaluation.evaluate import BenchmarkResult
from pipeline.evaluation.experiments import Grid
from pipeline.evaluation.grid import GridPlan, plan_grid, run_experiments, update_leaderboard
from pipeline.evaluation.leaderboard_report import to_markdown
from pipeline.runs.run_log import logging_to
from pipeline.training import train as training
from pipeline.training.ensembles import ensemble

_log = logging.getLogger(__name__)


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5, retry_condition_fn=if_transient)
def fit(workspace: Workspace, images: ImageSet, split: str | None) -> ModelCard:
    with kept_by_prefect():
        return training.train(workspace, images, split)


@task(cache_policy=NO_CACHE)
def measure(workspace: Workspace, images: ImageSet, model_id: str) -> BenchmarkResult:
    return measuring.benchmark(workspace, images, model_id)


@task(cache_policy=NO_CACHE)
def join(workspace: Workspace, images: ImageSet, members: list[str]) -> ModelCard:
    return ensemble(workspace, images, members)


@flow(name="train")
def train(
    workspace: str,
    source: dict[str, Any] | None = None,
    split: str | None = None,
    members: int = 1,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Train the network of the settings; returns the card of the model as plain values.

    `source` holds the fields of a `pipeline.datasets.loading.ImageSource`; the workspace's own benchmark file when
    none is given. `split` is a file that `morphcat galaxy10 split` wrote; without it one is made from the settings.
    With `members` above 1 so many seeds are trained and joined to an ensemble. An interrupted training goes on from its
    last epoch.
    """
    opened = open_workspace(Path(workspace), overrides or [])
    with logging_to(opened, "train", run_id_of(datetime.now(UTC))):
        images = open_source(opened, source)
        first = opened.settings.training.seed
        cards = [fit(opened.changed(training={"seed": first + k}), images, split) for k in range(members)]
        card = join(opened, images, [each.model_id for each in cards]) if members > 1 else cards[0]
        _log.info("trained %s", card.model_id)
    get_run_logger().info("trained %s", card.model_id)
    create_markdown_artifact(describe(card), key="model-card", description=card.model_id)
    return card.model_dump()


@flow(name="benchmark")
def benchmark(
    workspace: str,
    model: str | None = None,
    source: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Evaluate a model, the champion unless one is named, on the frozen test split of its data set.

    Returns the numbers as plain values.

    Raises
    ------
    UserError : there is no model yet.
    """
    opened = open_workspace(Path(workspace), overrides or [])
    chosen = model or champion(opened.models)
    if chosen is None:
        raise UserError(f"no model in {opened.models} to measure: `morphcat train` makes one")
    result = measure(opened, open_source(opened, source), chosen)
    create_markdown_artifact(measuring.to_markdown(result), key="benchmark", description=chosen)
    return result.to_dict()


class ExperimentsFailed(Exception):
    """Some trainings of a grid could not be finished; the board, as plain values, has the others and says why."""

    def __init__(self, board: dict[str, Any]) -> None:
        super().__init__(f"trainings of the grid that failed: {len(board['failed'])}; run again to retry them")
        self.board = board


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5, retry_condition_fn=if_transient)
def plan_cells(workspace: Workspace, source: ImageSource, grid: Grid, split: Path | None) -> GridPlan:
    return plan_grid(workspace, source, grid, split)


@task(cache_policy=NO_CACHE)
def train_and_measure(workspace: Workspace, plan: GridPlan) -> dict[str, str]:
    with kept_by_prefect():
        return run_experiments(workspace, plan)


@task(cache_policy=NO_CACHE)
def make_board(workspace: Workspace, plan: GridPlan, failed: dict[str, str]) -> dict[str, Any]:
    board = update_leaderboard(workspace, plan, failed)
    create_markdown_artifact(to_markdown(board), key="benchmark-board", description=str(board.folder))
    return board.to_dict()


@flow(name="benchmark-grid")
def benchmark_grid(
    workspace: str,
    grid: dict[str, Any],
    source: dict[str, Any] | None = None,
    split: str | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Train and measure every cell of a grid that is not done, and make its board; returns the board as plain values.

    `grid` holds the fields of a `pipeline.evaluation.experiments.Grid`; `source` and `split` are as for `train`.

    Raises
    ------
    ExperimentsFailed : some cells could not be finished; the rest is on the board.
    """
    opened = open_workspace(Path(workspace), overrides or [])
    named = ImageSource.model_validate(source) if source else None
    cells = plan_cells(
        opened, source_or_benchmark(opened, named), Grid.model_validate(grid), Path(split) if split else None
    )
    get_run_logger().info("%d of %d cells to do", len(cells.to_do), len(cells.experiments))
    board = make_board(opened, cells, train_and_measure(opened, cells))
    if board["failed"]:
        raise ExperimentsFailed(board)
    return board
