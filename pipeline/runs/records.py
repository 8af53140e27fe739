"""What each run of a survey was made with and how it went, one file each in `reports/runs/`; releases tell both.

The file is written before the first commit of a run, which may be killed, and completed once its tiles are classified:
until then only the end of the run is not known. Nothing is decided by these files; the committed tiles are the ledger.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from catalogs.atomic import atomic_write
from catalogs.releases.provenance import RunRecord
from catalogs.tiles import read_tile_metadata, tile_path
from pipeline.config.workers import WorkerSettings
from pipeline.config.workspace import Workspace
from pipeline.core.redaction import redact_values
from pipeline.core.versions import git_revision, software_versions
from pipeline.tiles.sky_tile import SkyTile

_log = logging.getLogger(__name__)


@contextmanager
def record_run(
    workspace: Workspace,
    run_id: str,
    tiles: Sequence[SkyTile],
    failed: Collection[str],
    *,
    started: datetime,
    model_id: str,
    device: str,
) -> Iterator[None]:
    """Keep what a run is made with, and after the body how it went; nothing for a run without tiles.

    A run that classifies twice, because it lost its cluster, adds the second time to the first.

    Parameters
    ----------
    tiles : those that the body classifies.
    failed : ids of those that failed, filled in the body.
    """
    if not tiles:
        yield
        return
    path = _path(workspace, run_id)
    record = {**_made_with(workspace, run_id, started, model_id, device), **_counted_before(path)}
    _write(path, record)
    began = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - began
        counts = _committed_by(workspace, run_id, model_id, tiles)
        for name, more in {"seconds": seconds, **counts}.items():
            record[name] = record.get(name, 0) + more
        try:
            _write(path, {**record, "tiles_failed": len(failed)})
        except OSError as error:  # such as a full disk: what was classified is worth more than its record
            _log.warning("%s cannot be written (%s); releases will not tell how that run went", path, error)


def run_records(workspace: Workspace) -> dict[str, RunRecord]:
    """What is kept of the runs of a workspace, by run id."""
    records = {}
    for path in sorted((workspace.reports / "runs").glob("*.json")):
        record = _read(path)
        if record is not None:
            records[path.stem] = record
    return records


def _path(workspace: Workspace, run_id: str) -> Path:
    return workspace.reports / "runs" / f"{run_id}.json"


def _write(path: Path, record: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1))


def _read(path: Path) -> RunRecord | None:
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        _log.warning("%s cannot be read (%s); releases will not tell of that run", path, error)
        return None


def _made_with(workspace: Workspace, run_id: str, started: datetime, model_id: str, device: str) -> dict[str, Any]:
    settings = workspace.settings
    return {
        "run_id": run_id,
        "started": started.isoformat(timespec="seconds"),
        "model_id": model_id,
        **_where(settings.workers),
        "device": device,
        "host": platform.node(),
        "settings": redact_values(settings.model_dump()),
        "settings_digest": settings.digest(),
        "git_revision": git_revision(),
        "versions": software_versions(),
    }


def _where(workers: WorkerSettings) -> dict[str, Any]:
    """Where the units run, and how many workers there are, where the settings decide that."""
    number = {"inline": 1, "local": workers.count, "slurm": workers.count}.get(workers.kind)
    return {"kind": workers.kind, "workers": number}


_ADDED_UP = ("seconds", "tiles_done", "classified", "unclassified", "quarantined", "reused")


def _counted_before(path: Path) -> dict[str, Any]:
    """What the same run has added up so far."""
    record = _read(path) if path.is_file() else None
    counted = record.model_dump(include=set(_ADDED_UP)) if record else {}
    return {name: value for name, value in counted.items() if value is not None}


def _committed_by(workspace: Workspace, run_id: str, model_id: str, tiles: Sequence[SkyTile]) -> dict[str, int]:
    """What the stamps of those tiles say that the run has committed, added up."""
    counts = dict.fromkeys(_ADDED_UP[1:], 0)
    for tile in tiles:
        stamp = read_tile_metadata(tile_path(workspace.catalog, model_id, tile.tile_id))
        if stamp is not None and stamp.run_id == run_id:
            counts["tiles_done"] += 1
            for name in _ADDED_UP[2:]:
                counts[name] += getattr(stamp, name)
    return counts
