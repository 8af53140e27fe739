"""The state of a workspace, by its files: what ran, what waits, what readers see, and what a person should look at.

Reads only, and knows nothing of Prefect.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from catalogs.releases.registry import ReleaseInfo, current_release
from models.artifacts.registry import champion, history, load_card
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.drift.monitor import latest_alarms
from pipeline.promotion.retraining_trigger import count_changed_labels, label_set, learned_labels, reports
from pipeline.runs.locks import LockHolder, holder, retraining_lock, survey_lock
from pipeline.survey.plan import Run, make_plan, missing_for_release, start_run, survey_roots, tiles_in

_LAST_RUNS = 5
_MIN_FREE = 0.05  # of a disk: below it somebody should make room


@dataclass(frozen=True)
class Status:
    """The state of a workspace; plain values but for `survey` and `retraining`, the runs that are under way.

    `tiles` counts sky tiles that are found, done, to do and still arriving; None without a model. `labels` has version,
    number, and how many differ from what the champion learned from. `runs` and `retrainings` are reports, newest first.
    `alarms` are sentences.
    """

    workspace: str
    champion: dict[str, Any] | None
    release: dict[str, Any] | None
    tiles: dict[str, int] | None
    labels: dict[str, Any]
    runs: list[dict[str, Any]]
    retrainings: list[dict[str, Any]]
    survey: LockHolder | None
    retraining: LockHolder | None
    disk: dict[str, float]
    alarms: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a script."""
        return asdict(self)


def status(workspace: Workspace) -> Status:
    """Read the state of everything once.

    Raises
    ------
    catalogs.errors.CatalogError, models.errors.ModelError, UserError : a file that should be read is damaged.
    """
    release, runs = current_release(workspace.catalog), _runs(workspace)
    retrainings = reports(workspace)[::-1][:_LAST_RUNS]
    run = start_run(workspace, None) if champion(workspace.models) else None
    tiles, missing = _tiles(workspace, run) if run else (None, [])
    disk, surveying = _disk(workspace.root), holder(survey_lock(workspace.catalog))
    alarms = _run_alarms(runs)
    if run and release and missing and not surveying:
        alarms.append(
            f"readers still see {release.model_id}: the champion {run.card.model_id} has not classified {len(missing)} "
            "of its sky tiles; the next survey goes on"
        )
    alarms += latest_alarms(workspace)
    if disk["free_gb"] < _MIN_FREE * disk["total_gb"]:
        alarms.append(f"only {disk['free_gb']} GB of {disk['total_gb']} GB are free on the disk of the workspace")
    return Status(
        workspace=str(workspace.root),
        champion=_champion(workspace),
        release=_release(release),
        tiles=tiles,
        labels=_labels(workspace),
        runs=runs,
        retrainings=retrainings,
        survey=surveying,
        retraining=holder(retraining_lock(workspace.models)),
        disk=disk,
        alarms=alarms,
    )


def _champion(workspace: Workspace) -> dict[str, Any] | None:
    name = champion(workspace.models)
    if name is None:
        return None
    changes = [change for change in history(workspace.models) if change.to == name]
    return {"model_id": name, "since": changes[-1].utc if changes else "", "by": changes[-1].by if changes else ""}


def _release(release: ReleaseInfo | None) -> dict[str, Any] | None:
    names = {"release", "created", "model_id", "objects", "quarantined", "simulated_objects"}
    return release.model_dump(include=names) if release else None


def _tiles(workspace: Workspace, run: Run) -> tuple[dict[str, int], list[str]]:
    """Counts of sky tiles, and the ids of those that a new champion must classify before its release."""
    roots = survey_roots(workspace, run, [])
    found = tiles_in(workspace, roots) if roots or workspace.incoming.is_dir() else []
    plan = make_plan(workspace, run, found)
    counts = {"found": len(found), "done": len(plan.done), "to_do": len(plan.todo), "arriving": len(plan.waiting)}
    return counts, missing_for_release(workspace, run, found)


def _labels(workspace: Workspace) -> dict[str, Any]:
    current, name = label_set(workspace), champion(workspace.models)
    learned = learned_labels(load_card(workspace.models, name))[0] if name else ""
    not_learned = count_changed_labels(workspace, current.version, learned)
    return {"version": current.version, "labels": current.labels, "not_learned": not_learned}


def _runs(workspace: Workspace) -> list[dict[str, Any]]:
    """The last reports of surveys, newest first."""
    names = ("run_id", "model_id", "tiles", "skipped_tiles", "objects", "classified", "quarantined", "release", "alarm")
    paths = sorted(workspace.reports.glob("survey-*.json"), reverse=True)[:_LAST_RUNS]  # run ids begin with their time
    surveys = [_read_report(path) for path in paths]
    return [{**{name: run.get(name) for name in names}, "failed": len(run.get("failed", {}))} for run in surveys]


def _read_report(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, nothing else needs it") from error


def _run_alarms(runs: list[dict[str, Any]]) -> list[str]:
    """The alarms of the last survey."""
    alarms = []
    for run in runs[:1]:
        if run["failed"]:
            alarms.append(f"{run['failed']} sky tiles failed in survey {run['run_id']}; the next one tries them again")
        if run["alarm"]:
            alarms.append(str(run["alarm"]))
    return alarms


def _disk(root: Path) -> dict[str, float]:
    usage = shutil.disk_usage(root if root.exists() else root.parent)
    return {"free_gb": round(usage.free / 1e9, 1), "total_gb": round(usage.total / 1e9, 1)}
