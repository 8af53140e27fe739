"""What a workspace holds: rows, quarantine, champion; how two of them differ; what readers see in the meantime."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from catalogs.errors import CatalogError
from catalogs.releases.registry import current_release, layout_of
from catalogs.tiles import read_tile_metadata
from catalogs.validation.audit import audit, verify
from models.artifacts.registry import champion
from pipeline.config.workspace import Workspace

OF_THE_RUN = ["run_id", "mjd_predicted"]  # the only columns that say when a row was made
_ENTRY = ["tile_id", "file", "source_name", "reason", "exception", "detail"]  # of the quarantine, without times
_PLACE = re.compile(r"[^\s']*/incoming/")  # where a workspace lay when the input was read


@dataclass(frozen=True)
class Outcome:
    """What a survey gave in the end: rows by object id, entries of the quarantine, the champion, findings of the audit.

    Paths in the quarantine are told without the place of the workspace.
    """

    rows: pd.DataFrame
    quarantine: list[tuple[str, ...]]
    champion: str | None
    findings: list[str]


@dataclass(frozen=True)
class Sight:
    """What lies in a workspace at a moment: committed tiles, the release that readers see, and what is wrong with them.

    `building` is the hidden folder of a release in the making, `unseen` counts whole releases but the current one.
    """

    tiles: int
    release: str | None
    building: bool
    unseen: int
    wrong: list[str]

    def __str__(self) -> str:
        parts = [f"{self.tiles} tiles", f"release {self.release or '–'}"]
        parts += ["one in the making"] if self.building else []
        return ", ".join([*parts, *([f"{self.unseen} not current"] if self.unseen else []), *self.wrong])


def outcome_of(workspace: Workspace) -> Outcome:
    """Read the current release, and audit it against the committed tiles."""
    release = current_release(workspace.catalog)
    if release is None:
        return Outcome(pd.DataFrame(), [], champion(workspace.models), ["there is no release"])
    layout = layout_of(workspace.catalog, release.release)
    files = [pq.ParquetFile(layout.partition_file(p.order, p.pixel)).read().to_pandas() for p in layout.partitions()]
    rows = pd.concat(files).drop(columns=OF_THE_RUN).sort_values("object_id", ignore_index=True)
    entries = pq.read_table(layout.provenance / "quarantine.parquet", columns=_ENTRY).to_pylist()
    told = sorted(tuple(_PLACE.sub("incoming/", entry[name]) for name in _ENTRY) for entry in entries)
    checks = audit(workspace.catalog).checks
    findings = [f"{check.name}: {', '.join(check.examples)}" for check in checks if check.status == "wrong"]
    return Outcome(rows, told, champion(workspace.models), findings)


def differences(found: Outcome, truth: Outcome) -> list[str]:
    """How an outcome differs from the undisturbed one, value by value (NaN is NaN); empty when it is the very same."""
    said = list(found.findings)
    if found.quarantine != truth.quarantine:
        said += [f"quarantine, {len(set(found.quarantine) ^ set(truth.quarantine))} entries differ"]
    if found.champion != truth.champion:
        said += [f"champion {found.champion}, not {truth.champion}"]
    if list(found.rows.columns) != list(truth.rows.columns) or list(found.rows.dtypes) != list(truth.rows.dtypes):
        return [*said, "other columns"]
    ids, wanted = found.rows["object_id"].to_numpy(), truth.rows["object_id"].to_numpy()
    if not np.array_equal(ids, wanted):
        missing, more = np.setdiff1d(wanted, ids), np.setdiff1d(ids, wanted)
        return [*said, f"{len(ids)} rows, not {len(wanted)}: {len(missing)} missing, {len(more)} more"]
    for name in truth.rows.columns:
        same = (found.rows[name] == truth.rows[name]) | (found.rows[name].isna() & truth.rows[name].isna())
        if not same.all():
            said.append(f"{name} differs in {(~same).sum()} rows")
    return said


def sight_of(workspace: Workspace) -> Sight:
    """Look at a workspace as it was left, whole or not; changes nothing."""
    catalog = workspace.catalog
    committed = [path for path in (catalog / "tiles").rglob("*.parquet") if not path.name.startswith(".")]
    wrong = [f"{path.name} is no committed tile" for path in committed if read_tile_metadata(path) is None]
    names = [path.name for path in (catalog / "releases").glob("[!.]*")]
    release = None
    try:
        release = current_release(catalog)
    except CatalogError as error:
        wrong.append(str(error))
    if release is not None:
        wrong += [f"release {release.release}: {problem}" for problem in verify(layout_of(catalog, release.release))]
    building = (catalog / "releases" / ".building").is_dir()
    return Sight(
        len(committed), release.release if release else None, building, len(names) - (release is not None), wrong
    )


def left_over(workspace: Workspace) -> list[Path]:
    """Hidden files and folders in the catalogue that are no locks: what kills left behind."""
    return [path for path in workspace.catalog.rglob(".*") if path.suffix != ".lock"]
