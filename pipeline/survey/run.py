"""The story of a survey run, step by step as plain functions: discover, plan, classify, release, sum up.

The flow calls these in order; they take and return small values and hold no state. What a run did is read back from
the committed files, never from memory of what was started.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

from catalogs.atomic import atomic_write
from catalogs.releases.registry import ReleaseInfo, current_release, is_published
from catalogs.schema import catalogue_columns
from catalogs.tiles import DUPLICATE, OUTSIDE, TileMetadata, read_tile_metadata, tile_path
from models.artifacts.registry import ModelCard, champion, load_card
from pipeline.config.workspace import Workspace
from pipeline.core.errors import NoTiles, UserError
from pipeline.core.progress import track
from pipeline.core.redaction import redact_values
from pipeline.core.times import mjd_of, run_id_of
from pipeline.core.versions import software_versions
from pipeline.drift.monitor import has_report, latest_alarms
from pipeline.execution.environment import requirements
from pipeline.execution.executor import run_tasks
from pipeline.ingest.discovery import discover
from pipeline.ingest.planning import Plan, plan
from pipeline.ingest.readiness import ReadyPlan, ready_plan
from pipeline.runs.records import record_run
from pipeline.runs.run_log import log_only, log_result
from pipeline.survey.model_transition import missing_tiles, source_roots, warnings
from pipeline.survey.publish import build_release
from pipeline.survey.quarantine import tiles_with
from pipeline.survey.summary import Summary
from pipeline.tiles.sky_tile import SkyTile

if TYPE_CHECKING:
    from pipeline.survey.classify import ClassifyJob

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run of the survey: what it is called and with which model it classifies.

    `chosen` says that a person named the model: its catalogue is then published whatever it covers.
    """

    run_id: str
    started: datetime
    card: ModelCard
    chosen: bool = False


def start_run(workspace: Workspace, model_id: str | None) -> Run:
    """Choose the model (the champion unless one is named) and name the run.

    Raises
    ------
    UserError : there is no model yet.
    models.errors.ModelError : no such model.
    catalogs.errors.CatalogError : the model has more classes than a catalogue has room for.
    """
    chosen = model_id or champion(workspace.models)
    if chosen is None:
        raise UserError(f"no model in {workspace.models}: train one with `morphcat --workspace {workspace.root} train`")
    card = load_card(workspace.models, chosen)
    catalogue_columns(card.class_slugs)  # refuses too many classes here, not in every tile
    started = datetime.now(UTC)
    return Run(run_id_of(started), started, card, chosen=bool(model_id))


def find_tiles(workspace: Workspace, roots: Sequence[Path]) -> list[SkyTile]:
    """All sky tiles under the roots, or under the workspace's `incoming` when none is given.

    With a list of positions as the catalogue, the bricks that it asks for.

    Raises
    ------
    NoTiles : there is no input in any of the roots.
    UserError : a root does not exist, or the list of positions cannot be read.
    """
    tiles = tiles_in(workspace, roots)
    if not tiles:
        looked_in = ", ".join(map(str, places(workspace, roots)))
        raise NoTiles(
            f"no sky tiles in {looked_in}: expected bricks, FITS cutouts, archives of them, HDF5 files or folders of "
            "JPEG/PNG pictures with a CSV of file, ra, dec (`morphcat simulate` makes some)"
        )
    return tiles


def tiles_in(workspace: Workspace, roots: Sequence[Path]) -> list[SkyTile]:
    """As `find_tiles`; none is no error."""
    settings = workspace.settings
    tiles = discover(places(workspace, roots), settings.survey.rows, settings.reading).tiles
    if not settings.bricks.catalogue:
        return tiles
    from pipeline.ingest.position_list import for_positions  # pandas and astropy only where there is a list

    catalogue = workspace.root / settings.bricks.catalogue
    return for_positions(tiles, catalogue, workspace.cache / "positions", settings.reading)


def files_passed_over(workspace: Workspace, roots: Sequence[Path]) -> dict[str, int]:
    """How many files in the places of a run are no input by their names, by extension."""
    settings = workspace.settings
    return discover(places(workspace, roots), settings.survey.rows, settings.reading).skipped


def places(workspace: Workspace, roots: Sequence[Path]) -> list[Path]:
    """Where a run looks for sky tiles: the roots, or the workspace's `incoming` when none is given."""
    return list(roots) or [workspace.incoming]


def roots_of(workspace: Workspace, run: Run, roots: Sequence[Path]) -> list[Path]:
    """Where a run looks: the roots; a new champion without any looks wherever the catalogue's sky tiles came from."""
    if roots or run.chosen:
        return list(roots)
    return source_roots(workspace.catalog, workspace.incoming, run.card.model_id)


def missing_of(workspace: Workspace, run: Run, tiles: Iterable[SkyTile]) -> list[str]:
    """Sky tiles that the run's model has to classify before its catalogue is published; none when a person named it."""
    return [] if run.chosen else missing_tiles(workspace.catalog, run.card.model_id, tiles)


def to_try_again(workspace: Workspace, run: Run, tiles: Iterable[SkyTile], again: frozenset[str]) -> list[SkyTile]:
    """Those of the tiles that have an input in quarantine for one of these reasons; UserError when none has."""
    chosen = tiles_with(tiles, workspace.catalog, run.card.model_id, again)
    if not chosen:
        raise UserError(f"none of these sky tiles has an input in quarantine for {', '.join(sorted(again))}")
    return chosen


def make_plan(
    workspace: Workspace, run: Run, tiles: Iterable[SkyTile], again: frozenset[str] = frozenset()
) -> ReadyPlan:
    """Which tiles need work for the model of the run, and which are still arriving.

    `again` are reasons of quarantine for which tiles are tried again, all of them among `tiles`; then no other tile
    is touched, so that none is found to be gone.
    """
    whole = plan(tiles, workspace.catalog, run.card.model_id, run.card.recipe_digest, again)
    if again:
        whole = replace(whole, retired=[])
    todo = ready_plan(whole, workspace.settings.survey.settle_seconds, time())
    counts = (len(todo.todo), len(todo.done), len(todo.waiting))
    _log.info("sky tiles: %d to do, %d done, %d still arriving", *counts)
    return todo


def still_to_do(workspace: Workspace, run: Run, todo: ReadyPlan) -> ReadyPlan:
    """The plan of a run without the tiles that the run itself has committed by now."""
    stamps = (
        (tile, read_tile_metadata(tile_path(workspace.catalog, run.card.model_id, tile.tile_id))) for tile in todo.todo
    )
    return replace(todo, todo=[tile for tile, stamp in stamps if stamp is None or stamp.run_id != run.run_id])


def jobs_of(workspace: Workspace, run: Run, tiles: Iterable[SkyTile]) -> list[ClassifyJob]:
    """What workers need to classify these tiles. Raises ModelError when this version cannot use the model."""
    from models.artifacts.weights import preprocessing_of  # torch only where there is work
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


def classify_tiles(workspace: Workspace, run: Run, todo: Plan) -> dict[str, str]:
    """Classify the planned tiles on the workers; returns the tiles that failed, with their errors.

    Files of tiles that no longer exist are deleted first, so that no object stands in two tiles.
    """
    from pipeline.survey.classify import classify

    settings = workspace.settings
    jobs = jobs_of(workspace, run, todo.todo)
    for path in todo.retired:
        _log.warning("the inputs of sky tile %s are gone, its rows leave the catalogue", path.stem)
        path.unlink(missing_ok=True)
    device = settings.workers.unit_device()
    examples = [Path(tile.path) for tile in (todo.todo[:1] + todo.todo[-1:])]
    standard = requirements(device=device, writes=workspace.catalog, reads=[workspace.models], inputs=examples)
    failed: dict[str, str] = {}
    told = record_run(
        workspace, run.run_id, todo.todo, failed, started=run.started, model_id=run.card.model_id, device=device
    )
    with told, track("classifying sky tiles", len(jobs)) as step:
        for outcome in run_tasks(classify, jobs, settings.workers, standard):
            log_result(outcome, tile=True, objects=outcome.receipt.objects if outcome.receipt else None)
            if outcome.receipt is None:
                failed[outcome.name] = outcome.error
            step(1, f"{outcome.receipt.classified} objects" if outcome.receipt else f"{outcome.name} failed")
    return failed


def release_catalogue(workspace: Workspace, run: Run, tiles: Sequence[SkyTile]) -> ReleaseInfo | None:
    """Publish what is committed; the current release stays when nothing changed, or the run's model covers too little.

    `tiles` are all that the run has found.
    """
    missing = missing_of(workspace, run, tiles)
    if missing:
        _log.warning("held back: %s has not classified %d sky tiles of the release", run.card.model_id, len(missing))
        return current_release(workspace.catalog)
    release = build_release(workspace, run.card.model_id)
    if release:
        _log.info("release %s: %d objects of %d sky tiles", release.release, release.objects, release.tiles)
    return release


def sum_up(
    workspace: Workspace,
    run: Run,
    tiles: Sequence[SkyTile],
    done_before: int,
    failed: dict[str, str],
    release: ReleaseInfo | None,
    before: ReleaseInfo | None,
    others: dict[str, int] | None = None,
    waiting: dict[str, str] | None = None,
) -> Summary:
    """Add up the stamps of all tiles of this run as they are on disk.

    `others` are the files passed over, `waiting` says which tiles are still arriving, and why.
    """
    stamps = _stamps(workspace, run, tiles)
    set_aside: Counter[str] = Counter()
    for stamp in stamps:
        set_aside.update(stamp.set_aside)
    return Summary(
        run_id=run.run_id,
        model_id=run.card.model_id,
        tiles=len(tiles),
        skipped_tiles=done_before,
        objects=sum(s.inputs for s in stamps),
        classified=sum(s.classified for s in stamps),
        unclassified=sum(s.unclassified for s in stamps),
        quarantined=sum(s.quarantined for s in stamps),
        out_of_footprint=sum(s.out_of_footprint for s in stamps),
        duplicates=sum(s.duplicates for s in stamps),
        reasons=_reasons(stamps),
        duplicates_across_tiles=release.duplicates_across_tiles if release else 0,
        simulated_objects=release.simulated_objects if release else 0,
        release=release.release if release else None,
        catalog=str(workspace.catalog),
        failed=failed,
        warnings=warnings(run.card.model_id, release, before, missing_of(workspace, run, tiles)),
        passed_over=others or {},
        waiting=waiting or {},
        set_aside=dict(set_aside),
        remarks={stamp.tile_id: stamp.remarks for stamp in stamps if stamp.remarks},
        reused=sum(s.reused for s in stamps if s.run_id == run.run_id),
        alarm=_alarm([s for s in stamps if s.run_id == run.run_id] or stamps, workspace.settings.survey.alarm),
        drift=latest_alarms(workspace),
    )


def _reasons(stamps: Iterable[TileMetadata]) -> dict[str, int]:
    """How many inputs are in quarantine, by reason."""
    entries = Counter(entry.reason for stamp in stamps for entry in stamp.quarantine)
    return {reason: count for reason, count in entries.items() if reason not in (DUPLICATE, OUTSIDE)}


def _alarm(stamps: Sequence[TileMetadata], most: float) -> str:
    """A sentence when more than this share of the inputs of some tiles is in quarantine, else nothing.

    These are the tiles that a run has classified, so that a bad night is not lost in a large sky; a run that had none
    to classify looks at all of its tiles.
    """
    inputs, quarantined = sum(s.inputs for s in stamps), sum(s.quarantined for s in stamps)
    if quarantined <= most * inputs:
        return ""
    often = ", ".join(f"{count} {reason}" for reason, count in Counter(_reasons(stamps)).most_common(3))
    return (
        f"{quarantined} of {inputs} inputs ({quarantined / inputs:.0%}) are in quarantine, more than "
        f"survey.alarm = {most:g} allows: {often}"
    )


def already_done(workspace: Workspace, run: Run, roots: Sequence[Path]) -> Summary | None:
    """The summary of a run that would change nothing; None when there is work to do. Changes nothing itself."""
    roots = roots_of(workspace, run, roots)
    tiles = find_tiles(workspace, roots)
    todo = make_plan(workspace, run, tiles)
    if todo.todo or todo.retired or not _nothing_to_publish(workspace, run, tiles) or not has_report(workspace):
        return None
    current, others = current_release(workspace.catalog), files_passed_over(workspace, roots)
    return sum_up(workspace, run, tiles, len(todo.done), {}, current, current, others, todo.waiting)


def _nothing_to_publish(workspace: Workspace, run: Run, tiles: Sequence[SkyTile]) -> bool:
    return is_published(workspace.catalog, run.card.model_id) or bool(missing_of(workspace, run, tiles))


def write_report(workspace: Workspace, summary: Summary) -> Path:
    """Keep the summary, with the settings and versions of the run, under `reports/`."""
    for alarm in [summary.alarm, *summary.drift]:
        if alarm:
            log_only(logging.ERROR, alarm)  # at the terminal the command says it
    path = workspace.reports / f"survey-{summary.run_id}.json"
    record = {
        **summary.to_dict(),
        "settings": redact_values(workspace.settings.model_dump()),
        "settings_digest": workspace.settings.digest(),
        "versions": software_versions(),
    }
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(record, indent=1))
    return path


def _stamps(workspace: Workspace, run: Run, tiles: Iterable[SkyTile]) -> list[TileMetadata]:
    """Stamps of the tiles that are committed as these inputs would give."""
    stamps = []
    for tile in tiles:
        stamp = read_tile_metadata(tile_path(workspace.catalog, run.card.model_id, tile.tile_id))
        if stamp is not None and stamp.fingerprint == tile.fingerprint:
            stamps.append(stamp)
    return stamps
