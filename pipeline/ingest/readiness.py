"""Whether a sky tile has arrived: its files are all there, no longer written to, and what their sender sent.

A manifest (`manifest.sha256` in the folder, or `<name>.sha256` beside an HDF5 file or archive, as sha256sum writes
them) declares which files belong together; if there is none, files count as arrived once they have been unchanged
for a while. The survey's own `*.sha256sum` list files that an operator need not have fetched: they give checksums and
declare nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from catalogs.tiles import read_tile_metadata
from pipeline.ingest.planning import Plan
from pipeline.tiles.checksums import Checksums, checksums
from pipeline.tiles.file_names import FOLDER_KINDS, MANIFEST, TileKind, brick_of_file, kind_of, role_of
from pipeline.tiles.sky_tile import SkyTile, files_of, names_of


@dataclass(frozen=True)
class ReadyPlan(Plan):
    """A plan without the tiles that are still arriving; `waiting` says why each is not taken yet, by tile id."""

    waiting: dict[str, str] = field(default_factory=dict)


def ready_plan(plan: Plan, settle: float, now: float) -> ReadyPlan:
    """Leave out of a plan what is still arriving; `settle` in seconds, `now` in seconds since 1970.

    Of a folder or file that is several tiles, those behind a waiting one wait with it, because inputs may still move
    from one to the next. Nothing that is committed of a source is given up while a part of it waits.
    """
    waiting: dict[str, str] = {}
    sources: set[str] = set()
    for tile in sorted(plan.todo, key=lambda tile: tile.index):
        if tile.source in sources:
            why = f"an earlier part of {tile.source} is still arriving"
        else:
            why = not_ready_reason(tile, names_of(tile) if settle else [], settle, now)
        if why:
            waiting[tile.tile_id] = why
            sources.add(tile.source)
    retired = [
        path
        for path in plan.retired
        if (metadata := read_tile_metadata(path)) is None or metadata.source not in sources
    ]
    return ReadyPlan([tile for tile in plan.todo if tile.tile_id not in waiting], plan.done, retired, waiting)


def not_ready_reason(tile: SkyTile, names: list[str], settle: float, now: float) -> str:
    """Why a tile cannot be taken yet; empty when it can.

    Parameters
    ----------
    names : the input files of the tile, as `names_of` gives them; not looked at when `settle` is 0.
    settle : seconds for which files that no manifest lists must be unchanged; 0 takes them at once.
    now : seconds since 1970.
    """
    manifest = _manifest_of(tile)
    if manifest.problem:
        return f"{manifest.path.name} {manifest.problem}; complete it, or take it away"
    mine = [name for name in manifest.digests if _belongs(tile, name)]
    missing = sum(not os.path.lexists(manifest.path.parent / name) for name in mine)
    if missing:
        return f"{missing} of {len(mine)} files of {manifest.path.name} are not there yet"
    if settle == 0:
        return ""
    of_list = tile.kind is TileKind.POSITIONS or f"{tile.brick}@" in tile.source
    made_by_us = tile.tables if of_list else ()  # tables cut from a list of positions
    unlisted = (
        path
        for path in files_of(tile, names, edges=False)
        if path.name not in manifest.digests and str(path) not in made_by_us
    )
    youngest = min((age for age in (_age(path, now) for path in unlisted) if age is not None), default=settle)
    return f"changed {max(youngest, 0):.0f} s ago; taken when unchanged for {settle:g} s" if youngest < settle else ""


def _age(path: Path, now: float) -> float | None:
    """Seconds since a file was changed or moved to its place; None if it is gone.

    A time of modification in the future was copied from a clock that was wrong, and says nothing; the time of change
    is the system's own.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    return now - (max(stat.st_mtime, stat.st_ctime) if stat.st_mtime <= now else stat.st_ctime)


def _manifest_of(tile: SkyTile) -> Checksums:
    """The manifest that declares a tile complete; an empty one if there is none."""
    path = Path(tile.path)
    if tile.kind in FOLDER_KINDS or tile.kind is TileKind.BRICK:
        return checksums(path / MANIFEST)
    own = checksums(path.with_name(f"{path.name}.sha256"))
    return own if own.digests or own.problem else checksums(path.with_name(MANIFEST))


def _belongs(tile: SkyTile, name: str) -> bool:
    """Whether a file that a manifest lists is one that the tile needs."""
    match tile.kind:
        case TileKind.BRICK:
            catalogue = role_of(name) == "catalogue" and (tile.brick in name or name.startswith("sweep-"))
            return catalogue or brick_of_file(name) == tile.brick
        case TileKind.PICTURES:
            return kind_of(name) is TileKind.PICTURES or name.endswith(".csv")
        case TileKind.CUTOUTS:
            return kind_of(name) is TileKind.CUTOUTS
        case _:
            return name == Path(tile.path).name
