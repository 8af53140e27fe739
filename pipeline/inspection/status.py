"""How a workspace stands, by its files: what ran, what waits, what readers see, and what a person should look at.

Reads only; knows nothing of Prefect. Everything it says can be told again from the files.
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
from pipeline.ingest.readiness import ReadyPlan
from pipeline.promotion.retraining_trigger import count_changed_labels, label_set, learned_labels, reports
from pipeline.runs.locks import LockHolder, holder, retraining_lock, survey_lock
from pipeline.survey.run import Run, make_plan, missing_of, roots_of, start_run, tiles_in

_RUNS = 5
_SHARE_FREE = 0.05  # of a disk: below it somebody should make room


@dataclass(frozen=True)
class Status:
    """How a workspace stands; plain values but for `survey` and `retraining`, who do so now.

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
    """Look at everything once.

    Raises
    ------
    catalogs.errors.CatalogError, models.errors.ModelError : what should be looked at is damaged.
    """
    release, runs = current_release(workspace.catalog), _runs(workspace)
    retrainings = reports(workspace)[::-1][:_RUNS]
    run = start_run(workspace, None) if champion(workspace.models) else None
    tiles, missing = _tiles(workspace, run) if run else (None, [])
    disk, surveying = _disk(workspace.root), holder(survey_lock(workspace.catalog))
    late = [] if surveying else _held_back(run, release, missing)
    alarms = [*_of_runs(runs), *late, *latest_alarms(workspace), *_of_disk(disk)]
    return Status(
        workspace=str(workspace.root),
        champion=_champion(workspace),
        release=_of_release(release),
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


def _of_release(release: ReleaseInfo | None) -> dict[str, Any] | None:
    names = {"release", "created", "model_id", "objects", "quarantined", "simulated_objects"}
    return release.model_dump(include=names) if release else None


def _tiles(workspace: Workspace, run: Run) -> tuple[dict[str, int], list[str]]:
    """Counts of sky tiles, and those that hold a new champion's release back."""
    roots = roots_of(workspace, run, [])
    found = tiles_in(workspace, roots) if roots or workspace.incoming.is_dir() else []
    plan: ReadyPlan = make_plan(workspace, run, found)
    counts = {"found": len(found), "done": len(plan.done), "to_do": len(plan.todo), "arriving": len(plan.waiting)}
    return counts, missing_of(workspace, run, found)


def _labels(workspace: Workspace) -> dict[str, Any]:
    now, name = label_set(workspace), champion(workspace.models)
    learned = learned_labels(load_card(workspace.models, name))[0] if name else ""
    return {
        "version": now.version,
        "labels": now.labels,
        "not_learned": count_changed_labels(workspace, now.version, learned),
    }


def _runs(workspace: Workspace) -> list[dict[str, Any]]:
    """The last reports of surveys, newest first."""
    names = ("run_id", "model_id", "tiles", "skipped_tiles", "objects", "classified", "quarantined", "release", "alarm")
    paths = sorted(workspace.reports.glob("survey-*.json"), reverse=True)[:_RUNS]  # run ids begin with their time
    told = [(path, _read(path)) for path in paths]
    return [{**{name: run.get(name) for name in names}, "failed": len(run.get("failed", {}))} for _, run in told]


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, nothing else needs it") from error


def _of_runs(runs: list[dict[str, Any]]) -> list[str]:
    """What the last survey had to complain of."""
    said = []
    for run in runs[:1]:
        if run["failed"]:
            said.append(f"{run['failed']} sky tiles failed in survey {run['run_id']}; the next one tries them again")
        if run["alarm"]:
            said.append(str(run["alarm"]))
    return said


def _held_back(run: Run | None, release: ReleaseInfo | None, missing: list[str]) -> list[str]:
    if run is None or release is None or not missing:
        return []
    return [
        f"readers still see {release.model_id}: the champion {run.card.model_id} has not classified {len(missing)} of "
        "its sky tiles; the next survey goes on"
    ]


def _disk(root: Path) -> dict[str, float]:
    usage = shutil.disk_usage(root if root.exists() else root.parent)
    return {"free_gb": round(usage.free / 1e9, 1), "total_gb": round(usage.total / 1e9, 1)}


def _of_disk(disk: dict[str, float]) -> list[str]:
    if disk["free_gb"] >= _SHARE_FREE * disk["total_gb"]:
        return []
    return [f"only {disk['free_gb']} GB of {disk['total_gb']} GB are free where the workspace lies"]
