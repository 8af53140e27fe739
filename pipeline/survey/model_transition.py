"""The transition to another model: readers keep the old release until the new model has covered its sky.

The current release names the model that made it. Another model must classify every sky tile of that release whose
inputs still exist, wherever they were surveyed from. Knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from catalogs.releases.registry import ReleaseInfo, current_release
from catalogs.tiles import committed, tile_path
from pipeline.tiles.sky_tile import SkyTile


def source_roots(catalog: Path, incoming: Path, model_id: str) -> list[Path]:
    """Where a new model finds the sky tiles of the catalogue: `incoming`, and wherever else the release came from.

    Empty, which means `incoming` alone, where no release is of another model.
    """
    published = _release_of_another_model(catalog, model_id)
    if published is None:
        return []
    tiles = committed(catalog, published.model_id)
    origins = {catalog.parent / metadata.origin for _, metadata in tiles if metadata.origin}
    elsewhere = sorted(path for path in origins if path.exists() and not path.is_relative_to(incoming))
    return [*([incoming] if incoming.is_dir() else []), *elsewhere]


def missing_tiles(catalog: Path, model_id: str, tiles: Iterable[SkyTile]) -> list[str]:
    """Ids of sky tiles of another model's release that this model has not classified.

    `tiles` are all that are known now; those whose inputs are gone do not count.
    """
    published = _release_of_another_model(catalog, model_id)
    if published is None:
        return []
    source_of_tile = {tile.tile_id: tile.source for tile in tiles}
    sources = set(source_of_tile.values())
    missing = []
    for _, metadata in committed(catalog, published.model_id):
        dropped = metadata.source in sources and metadata.tile_id not in source_of_tile  # its source has become smaller
        if dropped or not (catalog.parent / metadata.origin).exists():
            continue
        if not tile_path(catalog, model_id, metadata.tile_id).is_file():
            missing.append(metadata.tile_id)
    return missing


def warnings(
    model_id: str, release: ReleaseInfo | None, before: ReleaseInfo | None, missing: Sequence[str]
) -> list[str]:
    """Warnings about the release after a run, given the one before it and the tiles that a new one still misses."""
    if release is not None and missing:
        examples = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        return [
            f"held back: {model_id} has not classified {len(missing)} sky tiles of release {release.release} "
            f"({release.model_id}): {examples}; readers see it until these are done, or until "
            f"`morphcat release build --model {model_id}`"
        ]
    if release is None or before is None or before.model_id == release.model_id or release.tiles >= before.tiles:
        return []
    return [
        f"release {release.release} ({release.model_id}) covers {release.tiles} sky tiles; {before.release} "
        f"({before.model_id}) covered {before.tiles}: survey the others with this model too"
    ]


def _release_of_another_model(catalog: Path, model_id: str) -> ReleaseInfo | None:
    """The current release, if another model made it."""
    published = current_release(catalog)
    return None if published is None or published.model_id == model_id else published
