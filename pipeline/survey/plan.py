"""The plan of a survey run: with which model, where to look for sky tiles, and which of them need work.

Plans without loading torch, because most runs of a service find nothing to do. Writes nothing but the tables that are
cut from a list of positions, in the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import time

from catalogs.schema import catalogue_columns
from models.artifacts.registry import ModelCard, champion, load_card
from pipeline.config.workspace import Workspace
from pipeline.core.errors import NoTiles, UserError
from pipeline.core.times import run_id_of
from pipeline.ingest.discovery import Discovery, discover
from pipeline.ingest.readiness import ReadyPlan
from pipeline.survey.model_transition import missing_tiles, source_roots
from pipeline.survey.quarantine import tiles_with
from pipeline.survey.tile_status import TileStatuses, last_commit
from pipeline.tiles.sky_tile import SkyTile

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run of the survey: its name and the model with which it classifies.

    `chosen` is true when a person named the model: its catalogue is then published whatever it covers.
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
    catalogue_columns(card.class_slugs)  # refuses too many classes once, not in every tile
    started = datetime.now(UTC)
    return Run(run_id_of(started), started, card, chosen=bool(model_id))


def input_roots(workspace: Workspace, roots: Sequence[Path]) -> list[Path]:
    """Where to look for sky tiles: the roots, or the workspace's `incoming` when none is given."""
    return list(roots) or [workspace.incoming]


def survey_roots(workspace: Workspace, run: Run, roots: Sequence[Path]) -> list[Path]:
    """The roots of a run; for a new champion without any, wherever the sky tiles of the catalogue came from."""
    if roots or run.chosen:
        return list(roots)
    return source_roots(workspace.catalog, workspace.incoming, run.card.model_id)


def find_inputs(workspace: Workspace, roots: Sequence[Path]) -> Discovery:
    """Everything under the roots, or under the workspace's `incoming` when none is given, in one walk.

    With a list of positions as the catalogue, the tiles are the bricks that it asks for.

    Raises
    ------
    NoTiles : there is no sky tile in any of the roots.
    UserError : a root does not exist, or the list of positions cannot be read.
    """
    found = _discover(workspace, roots)
    if not found.tiles:
        searched = ", ".join(map(str, input_roots(workspace, roots)))
        raise NoTiles(
            f"no sky tiles in {searched}: expected bricks, FITS cutouts, archives of them, HDF5 files or folders of "
            "JPEG/PNG pictures with a CSV of file, ra, dec (`morphcat simulate` makes some)"
        )
    return found


def tiles_in(workspace: Workspace, roots: Sequence[Path]) -> list[SkyTile]:
    """The sky tiles of `find_inputs`, but finding none is no error."""
    return _discover(workspace, roots).tiles


def _discover(workspace: Workspace, roots: Sequence[Path]) -> Discovery:
    settings = workspace.settings
    found = discover(input_roots(workspace, roots), settings.survey.rows, settings.reading)
    if not settings.bricks.catalogue:
        return found
    from pipeline.ingest.position_list import for_positions  # pandas and astropy only if there is a list

    catalogue = workspace.root / settings.bricks.catalogue
    tiles = for_positions(found.tiles, catalogue, workspace.cache / "positions", settings.reading)
    return replace(found, tiles=tiles)


def tiles_to_retry(workspace: Workspace, run: Run, tiles: Iterable[SkyTile], again: frozenset[str]) -> list[SkyTile]:
    """Those of the tiles that have an input in quarantine for one of these reasons; UserError when none has."""
    chosen = tiles_with(tiles, workspace.catalog, run.card.model_id, again)
    if not chosen:
        raise UserError(f"none of these sky tiles has an input in quarantine for {', '.join(sorted(again))}")
    return chosen


def make_plan(
    workspace: Workspace, run: Run, tiles: Sequence[SkyTile], again: frozenset[str] = frozenset()
) -> ReadyPlan:
    """Which tiles need work for the model of the run, and which are still arriving.

    `again` are reasons of quarantine for which tiles are tried again, all of them among `tiles`.
    """
    plan = TileStatuses(workspace, run.card, tiles, time(), again).plan
    counts = (len(plan.todo), len(plan.done), len(plan.waiting))
    _log.info("sky tiles: %d to do, %d done, %d still arriving", *counts)
    return plan


def remaining_plan(workspace: Workspace, run: Run, plan: ReadyPlan) -> ReadyPlan:
    """The plan of a run without the tiles that the run itself has committed by now."""
    commits = ((tile, last_commit(workspace.catalog, run.card.model_id, tile)) for tile in plan.todo)
    return replace(plan, todo=[tile for tile, commit in commits if commit is None or commit.run_id != run.run_id])


def missing_for_release(workspace: Workspace, run: Run, tiles: Iterable[SkyTile]) -> list[str]:
    """Ids of sky tiles that the run's model has to classify before its catalogue is published.

    There are none when a person named the model.
    """
    return [] if run.chosen else missing_tiles(workspace.catalog, run.card.model_id, tiles)
