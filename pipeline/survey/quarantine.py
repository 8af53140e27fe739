"""What is in quarantine, since when, how often it was tried, and where to try it again.

The entries are those in the metadata of committed tiles; there is no second record of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from catalogs.releases.registry import current_release
from catalogs.tiles import QuarantineEntry, TileMetadata, committed, read_tile_metadata, tile_path
from models.artifacts.registry import champion
from pipeline.config.workspace import Workspace
from pipeline.core.errors import Reason, UserError
from pipeline.survey.tile_status import last_commit
from pipeline.tiles.file_names import is_brick
from pipeline.tiles.sky_tile import SkyTile

EVERY_REASON = frozenset(reason.value for reason in Reason)
_CUT_FROM_LIST = re.compile(r"(?:.*/\d{4}[pm]\d{3}|positions)@(.+)")


@dataclass(frozen=True)
class RetryPlan:
    """Where the tiles lie that are to be tried again; `skipped` says which are not, and why, by tile id."""

    tiles: list[str] = field(default_factory=list)
    roots: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RetryResult:
    """How many entries were tried again, and what became of them.

    `good` have a row now, `still` are in quarantine again, and `gone` are inputs that are no longer there.
    """

    tried: int = 0
    good: int = 0
    still: int = 0
    gone: int = 0


def reasons_of(names: Collection[str]) -> frozenset[str]:
    """Reasons by their names, every reason for none; UserError for a name that is none."""
    unknown = sorted(set(names) - EVERY_REASON)
    if unknown:
        raise UserError(f"unknown reason {', '.join(unknown)}; the reasons are {', '.join(sorted(EVERY_REASON))}")
    return frozenset(names) or EVERY_REASON


def surveyed_model(workspace: Workspace) -> str | None:
    """The model of the current release, else the champion; None when there is neither."""
    release = current_release(workspace.catalog)
    return release.model_id if release else champion(workspace.models)


def quarantine_entries(
    workspace: Workspace, model_id: str, reasons: Collection[str] = (), tile: str = ""
) -> list[tuple[TileMetadata, QuarantineEntry]]:
    """Entries of a model's tiles, each with the metadata of its tile, in the order of tile ids.

    `reasons` narrows them down, and so does `tile`, the id of a tile or the stable name of its source.

    Raises
    ------
    UserError : an unknown reason.
    """
    wanted = reasons_of(reasons)
    return [
        (metadata, entry)
        for _, metadata in committed(workspace.catalog, model_id)
        if tile in ("", metadata.tile_id, metadata.source)
        for entry in metadata.quarantine
        if entry.reason in wanted
    ]


def tiles_with(tiles: Iterable[SkyTile], catalog: Path, model_id: str, reasons: frozenset[str]) -> list[SkyTile]:
    """Those of the tiles whose last commit has an entry of one of these reasons."""
    commits = ((tile, last_commit(catalog, model_id, tile)) for tile in tiles)
    return [tile for tile, commit in commits if commit and any(e.reason in reasons for e in commit.quarantine)]


def position_list_of(source: str) -> str:
    """The name of the list of positions that a tile was cut for; empty for a tile that was cut for none."""
    match = _CUT_FROM_LIST.fullmatch(source)
    return match[1] if match else ""


def plan_retry(workspace: Workspace, model_id: str, entries: list[tuple[TileMetadata, QuarantineEntry]]) -> RetryPlan:
    """Where to look for the tiles of these entries.

    Which brick a position is cut from depends on the bricks that exist: to try one tile of a list of positions
    again, all tiles of that list are looked for.
    """
    home = workspace.catalog.parent
    configured_list = Path(workspace.settings.bricks.catalogue).name
    roots: set[Path] = set()
    tiles: list[str] = []
    skipped: dict[str, str] = {}
    for metadata in {metadata.tile_id: metadata for metadata, _ in entries}.values():
        origin, own_list = home / metadata.origin, position_list_of(metadata.source)
        if own_list != configured_list and (own_list or is_brick(metadata.source.rpartition("/")[2])):
            skipped[metadata.tile_id] = (
                f'made for the list of positions {own_list}; give it with --set bricks.catalogue="…/{own_list}"'
                if own_list
                else "made for the survey's own objects; try it without bricks.catalogue"
            )
        elif not metadata.origin or not origin.exists():
            skipped[metadata.tile_id] = f"{origin} is no longer there; give its folder with --tiles"
        else:
            tiles.append(metadata.tile_id)
            roots.add(origin)
    if configured_list and any(position_list_of(metadata.source) for metadata, _ in entries):
        roots |= {
            home / metadata.origin
            for _, metadata in committed(workspace.catalog, model_id)
            if position_list_of(metadata.source) == configured_list
        }
    return RetryPlan(tiles, sorted(p for p in roots if p.exists() and not _is_list(p, configured_list)), skipped)


def _is_list(path: Path, configured_list: str) -> bool:
    return bool(configured_list) and path.name == configured_list and path.is_file()


def retry_result(
    workspace: Workspace, model_id: str, before: list[tuple[TileMetadata, QuarantineEntry]], run_id: str
) -> RetryResult:
    """What became of the entries `before` in tiles that a run has tried again, by what is committed now."""
    good = still = tried = 0
    for tile_id in sorted({metadata.tile_id for metadata, _ in before}):
        path = tile_path(workspace.catalog, model_id, tile_id)
        commit = read_tile_metadata(path)
        if commit is None or commit.run_id != run_id:
            continue
        quarantined = {entry.source_name for entry in commit.quarantine}
        rows = set(pq.read_table(path, columns=["source_name"])["source_name"].to_pylist())
        # A file that could not be opened at all is one entry; its objects are named after it.
        with_row = rows | {name.partition("#")[0] for name in rows}
        names = [entry.source_name for metadata, entry in before if metadata.tile_id == tile_id]
        tried += len(names)
        still += sum(name in quarantined for name in names)
        good += sum(name not in quarantined and name in with_row for name in names)
    return RetryResult(tried, good, still, tried - good - still)
