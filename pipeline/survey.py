"""The story of a survey run, step by step as plain functions: discover, plan, classify, release, sum up.

The flow calls these in order; they take and return small values and hold no state. What a run did is read back from
the committed files, never from memory of what was started.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from catalogs.files import written_whole
from catalogs.release import ReleaseInfo, current_release, is_published, publish
from catalogs.schema import catalogue_columns
from catalogs.tile_store import TileStamp, read_stamp, tile_path
from models.registry import ModelCard, champion, load_card
from pipeline.errors import UserError
from pipeline.progress import track
from pipeline.settings import Workspace
from pipeline.sky_tiles import Plan, SkyTile, discover, passed_over, plan
from pipeline.versions import software_versions
from pipeline.workers import run_units

_log = logging.getLogger(__name__)

_UNIX_EPOCH_MJD = 40587.0


@dataclass(frozen=True)
class Run:
    """One run of the survey: what it is called and with which model it classifies."""

    run_id: str
    started: datetime
    card: ModelCard


@dataclass(frozen=True)
class Summary:
    """What a run found and did; objects = classified + unclassified + quarantined over all tiles that are committed.

    `skipped_tiles` were done before this run; `failed` names tiles that could not be finished and why; `passed_over`
    counts files that are no input by their names, by extension.
    """

    run_id: str
    model_id: str
    tiles: int
    skipped_tiles: int
    objects: int
    classified: int
    unclassified: int
    quarantined: int
    reasons: dict[str, int]
    duplicates: int
    simulated_objects: int
    release: str | None
    catalog: str
    failed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)

    @property
    def nothing_to_do(self) -> bool:
        """Whether every tile was done before."""
        return self.skipped_tiles == self.tiles and not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report or a script."""
        return {**asdict(self), "nothing_to_do": self.nothing_to_do}

    def to_markdown(self) -> str:
        """The totals for people."""
        rows = ["tiles", "skipped_tiles", "objects", "classified", "unclassified", "quarantined", "duplicates"]
        lines = [
            f"# Survey {self.run_id}",
            "",
            f"Model {self.model_id}, release {self.release}.",
            "",
            "| what | number |",
        ]
        lines += ["|---|---|", *(f"| {row} | {getattr(self, row)} |" for row in rows)]
        lines += [f"| quarantined: {reason} | {count} |" for reason, count in sorted(self.reasons.items())]
        lines += [f"| passed over, no input: {ending} | {count} |" for ending, count in self.passed_over.items()]
        if self.simulated_objects:
            lines += ["", f"**{self.simulated_objects} objects of the release are simulated.**"]
        if self.failed:
            lines += ["", "## Failed sky tiles", ""]
            lines += [f"* `{tile}`: {error.strip().splitlines()[-1]}" for tile, error in sorted(self.failed.items())]
        return "\n".join(lines) + "\n"


def begin(workspace: Workspace, model_id: str | None) -> Run:
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
    run_id = f"{started:%Y%m%dT%H%M%S}-{uuid4().hex[:6]}"
    return Run(run_id, started, card)


def find_tiles(workspace: Workspace, roots: Sequence[Path]) -> list[SkyTile]:
    """All sky tiles under the roots, or under the workspace's `incoming` when none is given.

    Raises
    ------
    UserError : a root does not exist, or there is no input in any of them.
    """
    places = _places(workspace, roots)
    settings = workspace.settings
    tiles = discover(places, settings.survey.rows, salt=settings.input.salt)
    if not tiles:
        raise UserError(
            f"no sky tiles in {', '.join(map(str, places))}: expected FITS cutouts, HDF5 files or folders of JPEG/PNG "
            "pictures with a CSV of file, ra, dec (`morphcat simulate` makes some)"
        )
    return tiles


def files_passed_over(workspace: Workspace, roots: Sequence[Path]) -> dict[str, int]:
    """How many files in the places of a run are no input by their names, by extension."""
    return passed_over(_places(workspace, roots))


def _places(workspace: Workspace, roots: Sequence[Path]) -> list[Path]:
    return list(roots) or [workspace.incoming]


def make_plan(workspace: Workspace, run: Run, tiles: Iterable[SkyTile]) -> Plan:
    """Which tiles need work for the model of the run."""
    return plan(tiles, workspace.catalog, run.card.model_id, run.card.recipe_digest)


def classify_tiles(workspace: Workspace, run: Run, todo: Plan) -> dict[str, str]:
    """Classify the planned tiles on the workers; returns the tiles that failed, with their errors.

    Files of tiles that no longer exist are deleted first, so that no object stands in two tiles.
    """
    from models.predictor import chosen_device  # torch only where there is work
    from models.weights import recipe_of
    from pipeline.classify import ClassifyJob, classify

    recipe_of(run.card)  # a model that this version can not use is one error, not one for each tile
    settings = workspace.settings
    for path in todo.retired:
        _log.warning("the inputs of sky tile %s are gone, its rows leave the catalogue", path.stem)
        path.unlink(missing_ok=True)
    device = chosen_device(settings.workers.device)
    jobs = [
        ClassifyJob(
            tile=tile,
            models=str(workspace.models),
            model_id=run.card.model_id,
            catalog=str(workspace.catalog),
            run_id=run.run_id,
            mjd=_UNIX_EPOCH_MJD + run.started.timestamp() / 86400,
            device=device,
            batch=settings.survey.batch,
            input=settings.input,
        )
        for tile in todo.todo
    ]
    failed: dict[str, str] = {}
    with track("classifying sky tiles", len(jobs)) as step:
        for outcome in run_units(classify, jobs, settings.workers):
            if outcome.receipt is None:
                failed[outcome.name] = outcome.error
            step(1, f"{outcome.receipt.classified} objects" if outcome.receipt else f"{outcome.name} failed")
    return failed


def release_catalogue(workspace: Workspace, run: Run) -> ReleaseInfo | None:
    """Publish what is committed; the current release stays when nothing changed."""
    return publish(workspace.catalog, run.card.model_id)


def sum_up(
    workspace: Workspace,
    run: Run,
    tiles: Sequence[SkyTile],
    done_before: int,
    failed: dict[str, str],
    release: ReleaseInfo | None,
    before: ReleaseInfo | None,
    others: dict[str, int] | None = None,
) -> Summary:
    """Add up the stamps of all tiles of this run as they are on disk; `others` are the files passed over."""
    stamps = _stamps(workspace, run, tiles)
    reasons: dict[str, int] = {}
    for entry in (q for stamp in stamps for q in stamp.quarantine):
        reasons[entry.reason] = reasons.get(entry.reason, 0) + 1
    return Summary(
        run_id=run.run_id,
        model_id=run.card.model_id,
        tiles=len(tiles),
        skipped_tiles=done_before,
        objects=sum(s.inputs for s in stamps),
        classified=sum(s.classified for s in stamps),
        unclassified=sum(s.unclassified for s in stamps),
        quarantined=sum(len(s.quarantine) for s in stamps),
        reasons=reasons,
        duplicates=release.duplicates if release else 0,
        simulated_objects=release.simulated_objects if release else 0,
        release=release.release if release else None,
        catalog=str(workspace.catalog),
        failed=failed,
        warnings=_warnings(release, before),
        passed_over=others or {},
    )


def already_done(workspace: Workspace, run: Run, roots: Sequence[Path]) -> Summary | None:
    """The summary of a run that would change nothing; None when there is work to do. Changes nothing itself."""
    tiles = find_tiles(workspace, roots)
    todo = make_plan(workspace, run, tiles)
    if todo.todo or todo.retired or not is_published(workspace.catalog, run.card.model_id):
        return None
    current = current_release(workspace.catalog)
    return sum_up(workspace, run, tiles, len(tiles), {}, current, current, files_passed_over(workspace, roots))


def write_report(workspace: Workspace, summary: Summary) -> Path:
    """Keep the summary, with the settings and versions of the run, under `reports/`."""
    path = workspace.reports / f"survey-{summary.run_id}.json"
    record = {
        **summary.to_dict(),
        "settings": workspace.settings.model_dump(),
        "settings_digest": workspace.settings.digest(),
        "versions": software_versions(),
    }
    with written_whole(path) as beside:
        beside.write_text(json.dumps(record, indent=1))
    return path


def _stamps(workspace: Workspace, run: Run, tiles: Iterable[SkyTile]) -> list[TileStamp]:
    """Stamps of the tiles that are committed as these inputs would give."""
    stamps = []
    for tile in tiles:
        stamp = read_stamp(tile_path(workspace.catalog, run.card.model_id, tile.tile_id))
        if stamp is not None and stamp.fingerprint == tile.fingerprint:
            stamps.append(stamp)
    return stamps


def _warnings(release: ReleaseInfo | None, before: ReleaseInfo | None) -> list[str]:
    if release is None or before is None or before.model_id == release.model_id:
        return []
    if release.tiles >= before.tiles:
        return []
    return [
        f"release {release.release} ({release.model_id}) covers {release.tiles} sky tiles; {before.release} "
        f"({before.model_id}) covered {before.tiles}: survey the others with this model too"
    ]
