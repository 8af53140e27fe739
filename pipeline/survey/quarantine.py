"""What is in quarantine, since when, and how often it was tried: read from the stamps of committed tiles.

The entries themselves stand in the stamps; there is no second record of them.
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
from pipeline.tiles.file_names import is_brick
from pipeline.tiles.sky_tile import SkyTile

EVERY_REASON = frozenset(reason.value for reason in Reason)
_OF_LIST = re.compile(r"(?:.*/\d{4}[pm]\d{3}|positions)@(.+)")


@dataclass(frozen=True)
class RetryPlan:
    """Where the tiles lie that are to be tried again; `passed_over` says which are not, and why, by tile id."""

    tiles: list[str] = field(default_factory=list)
    roots: list[Path] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RetryResult:
    """What became of entries that were tried again; `gone` are inputs that are no longer there."""

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


def listing(
    workspace: Workspace, model_id: str, reasons: Collection[str] = (), tile: str = ""
) -> list[tuple[TileMetadata, QuarantineEntry]]:
    """Entries of a model's tiles with the stamps they stand in, in the order of tile ids.

    `reasons` narrows them down, and `tile`, the id of a tile or the stable name of its source.

    Raises
    ------
    UserError : an unknown reason.
    """
    wanted = reasons_of(reasons)
    return [
        (stamp, entry)
        for _, stamp in committed(workspace.catalog, model_id)
        if tile in ("", stamp.tile_id, stamp.source)
        for entry in stamp.quarantine
        if entry.reason in wanted
    ]


def tiles_with(tiles: Iterable[SkyTile], catalog: Path, model_id: str, reasons: frozenset[str]) -> list[SkyTile]:
    """Those of the tiles whose last commit has an entry of one of these reasons."""
    stamps = ((tile, read_tile_metadata(tile_path(catalog, model_id, tile.tile_id))) for tile in tiles)
    return [tile for tile, stamp in stamps if stamp and any(e.reason in reasons for e in stamp.quarantine)]


def list_of(source: str) -> str:
    """The name of the list of positions that a tile was cut for; empty for a tile that was cut for none."""
    match = _OF_LIST.fullmatch(source)
    return match[1] if match else ""


def plan_retry(workspace: Workspace, model_id: str, entries: list[tuple[TileMetadata, QuarantineEntry]]) -> RetryPlan:
    """Where to look for the tiles of these entries.

    Which brick a position is cut from depends on the bricks that are there: for a tile of a list of positions all
    tiles of that list are looked for.
    """
    home = workspace.catalog.parent
    given = Path(workspace.settings.bricks.catalogue).name
    places: set[Path] = set()
    tiles: list[str] = []
    passed_over: dict[str, str] = {}
    for stamp in {stamp.tile_id: stamp for stamp, _ in entries}.values():
        place, name = home / stamp.origin, list_of(stamp.source)
        if name != given and (name or is_brick(stamp.source.rpartition("/")[2])):
            passed_over[stamp.tile_id] = (
                f'made for the list of positions {name}; give it with --set bricks.catalogue="…/{name}"'
                if name
                else "made for the survey's own objects; try it without bricks.catalogue"
            )
        elif not stamp.origin or not place.exists():
            passed_over[stamp.tile_id] = f"{place} is no longer there; give its folder with --tiles"
        else:
            tiles.append(stamp.tile_id)
            places.add(place)
    if given and any(list_of(stamp.source) for stamp, _ in entries):
        places |= {home / s.origin for _, s in committed(workspace.catalog, model_id) if list_of(s.source) == given}
    return RetryPlan(tiles, sorted(p for p in places if p.exists() and not _is_list(p, given)), passed_over)


def _is_list(place: Path, given: str) -> bool:
    return bool(given) and place.name == given and place.is_file()


def outcome(
    workspace: Workspace, model_id: str, before: list[tuple[TileMetadata, QuarantineEntry]], run_id: str
) -> RetryResult:
    """What became of entries in tiles that a run has tried again: read from the files that are committed now."""
    good = still = tried = 0
    for tile_id in sorted({stamp.tile_id for stamp, _ in before}):
        path = tile_path(workspace.catalog, model_id, tile_id)
        stamp = read_tile_metadata(path)
        if stamp is None or stamp.run_id != run_id:
            continue
        held, rows = {entry.source_name for entry in stamp.quarantine}, _names_in(path)
        # A file that could not be opened at all is one entry; its objects are named after it.
        known = rows | {name.partition("#")[0] for name in rows}
        names = [entry.source_name for s, entry in before if s.tile_id == tile_id]
        tried += len(names)
        still += sum(name in held for name in names)
        good += sum(name not in held and name in known for name in names)
    return RetryResult(tried, good, still, tried - good - still)


def _names_in(path: Path) -> set[str]:
    return set(pq.read_table(path, columns=["source_name"])["source_name"].to_pylist())
