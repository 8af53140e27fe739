"""The survey flow: discover → plan → classify → release → drift → summary.

Prefect schedules the steps and shows them; the work is done by functions of `pipeline.survey`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from catalogs.releases.registry import ReleaseInfo, current_release, layout_of
from flows.runtime.progress import kept_by_prefect
from flows.runtime.retries import if_transient
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.core.errors import NoTiles
from pipeline.drift.monitor import write_drift
from pipeline.ingest.discovery import Discovery
from pipeline.ingest.readiness import ReadyPlan
from pipeline.runs.locks import AlreadyRunning, exclusive, survey_lock
from pipeline.runs.run_log import log_path, logging_to
from pipeline.survey.plan import (
    Run,
    find_inputs,
    make_plan,
    remaining_plan,
    start_run,
    survey_roots,
    tiles_to_retry,
)
from pipeline.survey.quarantine import reasons_of
from pipeline.survey.run import already_done, classify_tiles, release_catalogue
from pipeline.survey.summary import Summary, make_summary, write_report
from pipeline.tiles.sky_tile import SkyTile

_MOST_FAILED = 1000  # rows of the table that Prefect's server keeps; the report on disk has all


class TilesFailed(Exception):
    """Some sky tiles could not be finished; everything else was. `summary` says which and why."""

    def __init__(self, summary: Summary) -> None:
        super().__init__(f"{len(summary.failed)} of {summary.tiles} sky tiles failed; run again to retry them")
        self.summary = summary


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2, retry_condition_fn=if_transient)
def discover(workspace: Workspace, roots: list[Path]) -> Discovery:
    return find_inputs(workspace, roots)


@task(cache_policy=NO_CACHE)
def plan(workspace: Workspace, run: Run, tiles: list[SkyTile], again: frozenset[str]) -> ReadyPlan:
    return make_plan(workspace, run, tiles, again)


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5, retry_condition_fn=if_transient)
def classify(workspace: Workspace, run: Run, todo: ReadyPlan) -> dict[str, str]:
    if runtime.task_run.run_count > 1:  # the cluster was lost: what is committed by now need not be done again
        todo = remaining_plan(workspace, run, todo)
    with kept_by_prefect():
        return classify_tiles(workspace, run, todo)


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5, retry_condition_fn=if_transient)
def release(workspace: Workspace, run: Run, tiles: list[SkyTile]) -> ReleaseInfo | None:
    return release_catalogue(workspace, run, tiles)


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5, retry_condition_fn=if_transient)
def drift(workspace: Workspace, release: str) -> None:
    report = write_drift(workspace, release)
    if report:
        create_markdown_artifact(report.to_markdown(), key="drift", description=f"drift of release {release}")


@task(cache_policy=NO_CACHE)
def summarise(workspace: Workspace, summary: Summary) -> None:
    report = write_report(workspace, summary)
    create_markdown_artifact(summary.to_markdown(), key="survey-totals", description="totals of this run")
    failed = [{"tile": tile, "error": error} for tile, error in summary.error_lines()[:_MOST_FAILED]]
    description = f"{len(summary.failed)} sky tiles failed in {summary.run_id}"
    create_table_artifact(failed, key="failed-tiles", description=description)
    files = {"report": report, "log": log_path(workspace, "survey", summary.run_id)}
    if summary.release:
        files["release"] = layout_of(workspace.catalog, summary.release).root
    links = "".join(f"* {what}: [{path}]({path.as_uri()})\n" for what, path in files.items())
    create_markdown_artifact(links, key="survey-files", description=f"where the files of {summary.run_id} lie")


@flow(name="survey")
def survey(
    workspace: str,
    tiles: list[str] | None = None,
    model: str | None = None,
    overrides: list[str] | None = None,
    again: list[str] | None = None,
    wait: float = 0.0,
    scheduled: bool = False,
) -> dict[str, Any]:
    """Classify every new or changed sky tile of a workspace and publish the catalogue.

    Parameters
    ----------
    workspace : folder of the workspace.
    tiles : roots to look for sky tiles in; the workspace's `incoming` when left out, and, if the champion is not yet
        the model of the catalogue, all other folders that the catalogue came from.
    model : id of the model; the champion when left out.
    overrides : settings as `section.key=value`.
    again : reasons of quarantine; only sky tiles with such inputs are done, once more.
    wait : seconds to wait for another survey of the workspace to end.
    scheduled : nobody waits for this run: if another survey is under way, or there are no tiles at all, it ends as
        "Skipped" instead of failing, and as "Nothing to do" without a report if all is done.

    Returns
    -------
    The totals (`pipeline.survey.summary.Summary`) as plain values; nothing for a run that ends without them.

    Raises
    ------
    TilesFailed : some tiles could not be finished; the rest is committed and released.
    pipeline.runs.locks.AlreadyRunning : another survey of this workspace is under way.
    """
    opened = open_workspace(Path(workspace), overrides or [])
    run = start_run(opened, model)
    try:
        if scheduled and already_done(opened, run, [Path(root) for root in tiles or []]):
            message = "every sky tile that has arrived is done"
            return Completed(name="Nothing to do", message=message)  # type: ignore[return-value]  # the run's state
        with (
            exclusive(survey_lock(opened.catalog), run.run_id, "survey", wait=wait),
            logging_to(opened, "survey", run.run_id),
        ):
            return _survey(opened, run, [Path(root) for root in tiles or []], again or [])
    except (AlreadyRunning, NoTiles) as nothing:
        if not scheduled:
            raise
        return Completed(name="Skipped", message=str(nothing))  # type: ignore[return-value]


def _survey(workspace: Workspace, run: Run, roots: list[Path], again: list[str]) -> dict[str, Any]:
    """The steps of a survey, by one process at a time."""
    logger = get_run_logger()
    reasons = reasons_of(again) if again else frozenset()
    found = discover(workspace, survey_roots(workspace, run, roots))
    tiles = tiles_to_retry(workspace, run, found.tiles, reasons) if reasons else found.tiles
    todo = plan(workspace, run, tiles, reasons)
    counts = (len(tiles), len(todo.todo), len(todo.done), len(todo.waiting))
    logger.info("%d sky tiles: %d to do, %d done, %d still arriving", *counts)
    before = current_release(workspace.catalog)
    failed = classify(workspace, run, todo)
    info = release(workspace, run, tiles)
    if info:
        drift(workspace, info.release)
    summary = make_summary(workspace, run, tiles, len(todo.done), failed, info, before, found.skipped, todo.waiting)
    summarise(workspace, summary)
    if summary.alarm:
        logger.error(summary.alarm)
    if failed:
        raise TilesFailed(summary)
    return summary.to_dict()
