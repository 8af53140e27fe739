"""A run of the survey, step by step as plain functions: after the plan, classify the tiles and publish a release.

The flow calls `plan`, this module and `summary` in that order; every step takes and returns small values and holds no
state. What a run did is read back from the committed files, never from memory of what was started.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from catalogs.releases.registry import ReleaseInfo, current_release, is_published
from pipeline.config.workspace import Workspace
from pipeline.core.progress import track
from pipeline.core.times import mjd_of
from pipeline.drift.monitor import has_report
from pipeline.execution.environment import requirements
from pipeline.execution.executor import run_tasks
from pipeline.ingest.planning import Plan
from pipeline.runs.records import record_run
from pipeline.runs.run_log import log_result
from pipeline.survey.plan import Run, find_inputs, make_plan, missing_for_release, survey_roots
from pipeline.survey.publish import build_release
from pipeline.survey.summary import Summary, make_summary
from pipeline.tiles.sky_tile import SkyTile

if TYPE_CHECKING:
    from pipeline.survey.classify import ClassifyJob

_log = logging.getLogger(__name__)


def classify_jobs(workspace: Workspace, run: Run, tiles: Iterable[SkyTile]) -> list[ClassifyJob]:
    """What workers need to classify these tiles. Raises ModelError when this version cannot use the model."""
    # They load torch, which a run without work does not need.
    from models.artifacts.weights import preprocessing_of
    from pipeline.survey.classify import ClassifyJob

    preprocessing_of(run.card)  # one error, not one for each tile
    settings = workspace.settings
    return [
        ClassifyJob(
            tile=tile,
            models=str(workspace.models),
            model_id=run.card.model_id,
            catalog=str(workspace.catalog),
            run_id=run.run_id,
            mjd=mjd_of(run.started),
            device=settings.workers.unit_device(),
            batch=settings.survey.batch,
            reading=settings.reading,
        )
        for tile in tiles
    ]


def classify_tiles(workspace: Workspace, run: Run, plan: Plan) -> dict[str, str]:
    """Classify the planned tiles on the workers; returns the tiles that failed, with their errors.

    Files of tiles that no longer exist are deleted first, so that no object stands in two tiles.
    """
    from pipeline.survey.classify import classify  # loads torch

    workers = workspace.settings.workers
    jobs = classify_jobs(workspace, run, plan.todo)
    for path in plan.retired:
        _log.warning("the inputs of sky tile %s are gone, its rows leave the catalogue", path.stem)
        path.unlink(missing_ok=True)
    device = workers.unit_device()
    examples = [Path(tile.path) for tile in (plan.todo[:1] + plan.todo[-1:])]
    needed = requirements(device=device, writes=workspace.catalog, reads=[workspace.models], inputs=examples)
    failed: dict[str, str] = {}
    record = record_run(
        workspace, run.run_id, plan.todo, failed, started=run.started, model_id=run.card.model_id, device=device
    )
    with record, track("classifying sky tiles", len(jobs)) as step:
        for result in run_tasks(classify, jobs, workers, needed):
            log_result(result, tile=True, objects=result.receipt.objects if result.receipt else None)
            if result.receipt is None:
                failed[result.name] = result.error
            step(1, f"{result.receipt.classified} objects" if result.receipt else f"{result.name} failed")
    return failed


def release_catalogue(workspace: Workspace, run: Run, tiles: Sequence[SkyTile]) -> ReleaseInfo | None:
    """Publish what is committed; the current release stays when nothing changed, or the run's model covers too little.

    `tiles` are all that the run has found.
    """
    missing = missing_for_release(workspace, run, tiles)
    if missing:
        _log.warning("held back: %s has not classified %d sky tiles of the release", run.card.model_id, len(missing))
        return current_release(workspace.catalog)
    release = build_release(workspace, run.card.model_id)
    if release:
        _log.info("release %s: %d objects of %d sky tiles", release.release, release.objects, release.tiles)
    return release


def already_done(workspace: Workspace, run: Run, roots: Sequence[Path]) -> Summary | None:
    """The summary of a run that would change nothing; None when there is work to do. Changes nothing itself."""
    found = find_inputs(workspace, survey_roots(workspace, run, roots))
    plan = make_plan(workspace, run, found.tiles)
    published = is_published(workspace.catalog, run.card.model_id) or missing_for_release(workspace, run, found.tiles)
    if plan.todo or plan.retired or not published or not has_report(workspace):
        return None
    current = current_release(workspace.catalog)
    return make_summary(workspace, run, found.tiles, len(plan.done), {}, current, current, found.skipped, plan.waiting)
