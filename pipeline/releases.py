"""Releases of a workspace: pixels mapped over the workers, and what each run was made with.

What a release is and how it is built stands in catalogs.publish; here is where its units run and how far they are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence

from catalogs.errors import CatalogError
from catalogs.files import written_whole
from catalogs.leaves import LeafJob
from catalogs.publish import Receipt, RunUnits, publish
from catalogs.release import ReleaseInfo
from catalogs.sidecars import RunRecord
from pipeline.progress import track
from pipeline.settings import Workspace
from pipeline.versions import git_revision, software_versions
from pipeline.workers import Outcome, WorkerSettings, run_units

_log = logging.getLogger(__name__)

FEW_ROWS = 1_000_000  # done in this process in the time that a cluster takes to start


def build_release(workspace: Workspace, model_id: str) -> ReleaseInfo | None:
    """Publish what is committed of a model, as `catalogs.publish.publish` does, with the workspace's settings."""
    settings = workspace.settings
    return publish(
        workspace.catalog,
        model_id,
        max_rows=settings.release.max_rows,
        exports=settings.release.exports,
        runs=run_records(workspace),
        run_units=on_workers(settings.workers),
    )


def on_workers(settings: WorkerSettings, few_rows: int = FEW_ROWS) -> RunUnits:
    """Runs units of a release where the settings say, in this process for few rows, and shows how far they are."""
    inline = settings.model_copy(update={"kind": "inline"})

    def run(what: str, function: Callable[[LeafJob], Receipt], jobs: Sequence[LeafJob]) -> Iterator[Receipt]:
        with track(what, len(jobs)) as step:
            where = settings if sum(job.rows for job in jobs) > few_rows else inline
            for outcome in run_units(function, jobs, where):
                if outcome.receipt is None:
                    raise _failure(outcome)
                step(1, outcome.name)
                yield outcome.receipt

    return run


def _failure(outcome: Outcome[Receipt]) -> Exception:
    """What failed a unit: in words when it is something that a person can put right, else with its traceback."""
    _, raised, words = outcome.error.rpartition(f"{CatalogError.__module__}.{CatalogError.__name__}: ")
    if raised:
        return CatalogError(" ".join(words.split()))
    return RuntimeError(f"{outcome.name}: {outcome.error}")


def record_run(workspace: Workspace, run_id: str) -> None:
    """Keep what a run is made with under `reports/runs/`, before it commits its first tile: it may be killed."""
    record = {
        "run_id": run_id,
        "settings": workspace.settings.model_dump(),
        "settings_digest": workspace.settings.digest(),
        "git_revision": git_revision(),
        "versions": software_versions(),
    }
    with written_whole(workspace.reports / "runs" / f"{run_id}.json") as beside:
        beside.write_text(json.dumps(record, indent=1))


def run_records(workspace: Workspace) -> dict[str, RunRecord]:
    """What the runs of a workspace were made with, by run id, as far as it was kept."""
    records = {}
    for path in sorted((workspace.reports / "runs").glob("*.json")):
        try:
            kept = json.loads(path.read_text())
            records[path.stem] = RunRecord(kept["settings_digest"], kept["git_revision"], kept["versions"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s can not be read (%s); the release will not tell what that run was made with", path, error)
    return records
