"""Which sky tiles need work: what was found against what is committed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from catalogs.tiles import TileMetadata, committed, read_tile_metadata, tile_path
from pipeline.core.errors import UserError
from pipeline.tiles.sky_tile import SkyTile, origin_of


@dataclass(frozen=True)
class Plan:
    """What a run has to do: tiles to classify, tiles that are done, files of tiles that no longer exist."""

    todo: list[SkyTile]
    done: list[SkyTile]
    retired: list[Path]


def plan(
    tiles: Iterable[SkyTile], catalog: Path, model_id: str, recipe_digest: str, again: frozenset[str] = frozenset()
) -> Plan:
    """Compare tiles with what is committed: whatever matches is done, all else is to do.

    `again` are reasons of quarantine: tiles with such an entry are done once more. A source that has become smaller
    leaves tiles behind which no longer exist; their files are named as retired.

    Raises
    ------
    UserError : a committed tile of this name came from another place that is still there.
    """
    tiles = list(tiles)
    todo: list[SkyTile] = []
    done: list[SkyTile] = []
    for tile in tiles:
        metadata = read_tile_metadata(tile_path(catalog, model_id, tile.tile_id))
        if metadata is not None:
            _check_origin(tile, catalog, metadata.origin)
        is_done = metadata is not None and _is_done(metadata, tile, model_id, recipe_digest, again)
        (done if is_done else todo).append(tile)
    sources = {t.source for t in tiles} - {t.source for t in tiles if t.stop < 0 and not t.brick}
    current = {t.tile_id for t in tiles}
    retired = [path for path, s in committed(catalog, model_id) if s.source in sources and s.tile_id not in current]
    return Plan(todo, done, retired)


def _is_done(metadata: TileMetadata, tile: SkyTile, model_id: str, recipe_digest: str, again: frozenset[str]) -> bool:
    matches = metadata.matches(fingerprint=tile.fingerprint, model_id=model_id, recipe_digest=recipe_digest)
    return matches and again.isdisjoint(entry.reason for entry in metadata.quarantine)


def _check_origin(tile: SkyTile, catalog: Path, committed_from: str) -> None:
    """Refuse to let one source overwrite another of the same name; one that was moved is the same."""
    if committed_from in ("", origin_of(tile, catalog)):
        return
    other = catalog.parent / committed_from
    if other.exists():
        raise UserError(
            f"{tile.path} has the same name as {other}, which is in the catalogue: their objects could not be told "
            "apart. Rename one of the folders, or move the old one away if the new one replaces it"
        )
