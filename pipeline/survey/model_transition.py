"""When another model takes over the catalogue: readers keep the old release until the new model has covered its sky.

The release in force names the model that made it. Another model is to classify every sky tile of that release whose
inputs are still there, wherever people surveyed it from. Knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from catalogs.releases.registry import ReleaseInfo, current_release
from catalogs.tiles import committed, tile_path
from pipeline.tiles.sky_tile import SkyTile


def source_roots(catalog: Path, incoming: Path, model_id: str) -> list[Path]:
    """Where a model that takes over finds the sky tiles: `incoming`, and all else that the release came from.

    Empty, which means `incoming` alone, where there is nothing to take over.
    """
    published = _of_another_model(catalog, model_id)
    if published is None:
        return []
    origins = {catalog.parent / stamp.origin for _, stamp in committed(catalog, published.model_id) if stamp.origin}
    elsewhere = sorted(path for path in origins if path.exists() and not path.is_relative_to(incoming))
    return [*([incoming] if incoming.is_dir() else []), *elsewhere]


def missing_tiles(catalog: Path, model_id: str, tiles: Iterable[SkyTile]) -> list[str]:
    """Ids of sky tiles of another model's release that this model has not classified.

    `tiles` are all that are known now; those whose inputs are gone do not count.
    """
    published = _of_another_model(catalog, model_id)
    if published is None:
        return []
    found = {tile.tile_id: tile.source for tile in tiles}
    sources = set(found.values())
    missing = []
    for _, stamp in committed(catalog, published.model_id):
        smaller = stamp.source in sources and stamp.tile_id not in found
        if smaller or not (catalog.parent / stamp.origin).exists():
            continue
        if not tile_path(catalog, model_id, stamp.tile_id).is_file():
            missing.append(stamp.tile_id)
    return missing


def warnings(
    model_id: str, release: ReleaseInfo | None, before: ReleaseInfo | None, missing: Sequence[str]
) -> list[str]:
    """What is to be said of the release after a run, given the one before it and the tiles that hold a new one back."""
    if release is not None and missing:
        some = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        return [
            f"held back: {model_id} has not classified {len(missing)} sky tiles of release {release.release} "
            f"({release.model_id}): {some}; readers see it until these are done, or until "
            f"`morphcat release build --model {model_id}`"
        ]
    if release is None or before is None or before.model_id == release.model_id or release.tiles >= before.tiles:
        return []
    return [
        f"release {release.release} ({release.model_id}) covers {release.tiles} sky tiles; {before.release} "
        f"({before.model_id}) covered {before.tiles}: survey the others with this model too"
    ]


def _of_another_model(catalog: Path, model_id: str) -> ReleaseInfo | None:
    published = current_release(catalog)
    return None if published is None or published.model_id == model_id else published
