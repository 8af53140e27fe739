"""Which sky tiles there are: a walk through the places where sky arrives."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.config.inputs import ReadingSettings
from pipeline.core.errors import BadInput, UserError
from pipeline.tiles.brick_files import bricks_in, source_of_brick, tables_of_brick
from pipeline.tiles.sky_tile import (
    FOLDER_KINDS,
    SkyTile,
    TileKind,
    files_of,
    fingerprint,
    inputs_in,
    kind_of,
    role_of,
    source_of,
)

_AS_IT_COMES = ReadingSettings()


def discover(roots: Iterable[Path], rows: int, reading: ReadingSettings = _AS_IT_COMES) -> list[SkyTile]:
    """All sky tiles under the roots, in the order of paths, with at most `rows` inputs each (a brick is always one).

    The settings of reading enter every fingerprint: they change what the readers make of the same files.

    Raises
    ------
    UserError : a root is no folder or file, or two folders would give tiles of the same name.
    """
    tiles: list[SkyTile] = []
    seen: dict[str, str] = {}
    for root in roots:
        if not root.exists():
            raise UserError(f"{root}: no such folder or file; give sky tiles with --tiles DIR")
        for tile in _under(root.resolve(), rows, reading):
            if seen.setdefault(tile.tile_id, tile.path) != tile.path:
                raise UserError(
                    f"{tile.path} and {seen[tile.tile_id]} have the same name, objects could not be told apart: "
                    "rename one of the folders"
                )
            tiles.append(tile)
    unique = {tile.tile_id: tile for tile in tiles}
    return list(unique.values())


def skipped_files(roots: Iterable[Path]) -> dict[str, int]:
    """How many files under the roots are no input by their names: by what they are, or by extension.

    Tables (CSV) that go with pictures, catalogues that go with bricks, manifests and hidden files are left out.
    """
    names = (name for root in roots if root.is_dir() for _, names in walked(root.resolve()) for name in names)
    others = Counter(
        role_of(name) or Path(name).suffix.lower() or "none"
        for name in names
        if kind_of(name) is None and not name.startswith(".")
    )
    return {what: count for what, count in sorted(others.items()) if what not in (".csv", "manifest", "catalogue")}


def brick_tile(folder: Path, brick: str, reading: ReadingSettings, table: Path | None = None) -> SkyTile:
    """The tile of a brick in a folder, with the survey's catalogue of it, or with a table of positions instead."""
    tables = (table,) if table else tables_of_brick(folder, brick)
    source = source_of_brick(folder, brick) + (f"@{Path(reading.bricks.catalogue).name}" if table else "")
    kind = TileKind.BRICK
    tile = SkyTile(kind, str(folder), source, 0, 0, -1, "", brick, tuple(str(t.resolve()) for t in tables))
    return with_fingerprint(tile, [], reading)


def with_fingerprint(tile: SkyTile, names: list[str], reading: ReadingSettings) -> SkyTile:
    """The tile with the fingerprint of its files as they are now; `names` are those of a folder's inputs."""
    bricks = tile.kind in (TileKind.BRICK, TileKind.POSITIONS)
    files = files_of(tile, names, edges=reading.bricks.complete_edges)
    return replace(tile, fingerprint=fingerprint(files, f"{tile.start}:{tile.stop}:{reading.salt(bricks=bricks)}"))


def _under(root: Path, rows: int, reading: ReadingSettings) -> Iterator[SkyTile]:
    if root.is_file():
        if kind_of(root.name) not in (TileKind.HDF5, TileKind.ARCHIVE):
            raise UserError(
                f"{root}: give a folder of bricks, cutouts or pictures, an archive of cutouts or an HDF5 file"
            )
        yield from _file_tiles(root, rows, reading)
        return
    for folder, names in walked(root):
        kinds = {kind_of(name) for name in names}
        for kind in FOLDER_KINDS:
            if kind in kinds:
                yield from _folder_tiles(folder, kind, rows, reading)
        for brick in bricks_in(names):
            yield brick_tile(folder, brick, reading)
        for name in sorted(n for n in names if kind_of(n) in (TileKind.HDF5, TileKind.ARCHIVE)):
            yield from _file_tiles(folder / name, rows, reading)


def walked(root: Path, seen: set[str] | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from `root` down with the names in it; links to folders are followed, each folder once.

    `seen` are real paths of folders that were walked before; those found are added.
    """
    seen = set() if seen is None else seen
    for folder, subfolders, names in os.walk(root, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = sorted(s for s in subfolders if not s.startswith(".")) if real not in seen else []
        if real not in seen:
            seen.add(real)
            yield Path(folder), names


def _unreadable(error: OSError) -> None:
    """A folder that cannot be listed must not vanish from the run without a word."""
    if not isinstance(error, FileNotFoundError):  # that one was moved away a moment ago
        raise UserError(f"{error.filename}: the folder cannot be read ({error.strerror}); give access or move it away")


def _folder_tiles(folder: Path, kind: TileKind, rows: int, reading: ReadingSettings) -> Iterator[SkyTile]:
    names = inputs_in(folder, kind)
    for index, start in enumerate(range(0, len(names), rows)):
        stop = min(start + rows, len(names))
        tile = SkyTile(kind, str(folder), source_of(folder), index, start, stop, "")
        yield with_fingerprint(tile, names[start:stop], reading)


def _file_tiles(path: Path, rows: int, reading: ReadingSettings) -> Iterator[SkyTile]:
    """Tiles of a file that holds many inputs. One that the system cannot read now must not cost the run: it fails."""
    kind = TileKind(kind_of(path.name) or "")
    try:
        total = _count_inputs(path, kind)  # 0 when it cannot be told: one tile, which will say why
    except OSError:
        yield with_fingerprint(SkyTile(kind, str(path), source_of(path), 0, 0, -1, ""), [], reading)
        return
    for index, start in enumerate(range(0, max(total, 1), rows)):
        tile = SkyTile(kind, str(path), source_of(path), index, start, min(start + rows, total), "")
        yield with_fingerprint(tile, [], reading)


def _count_inputs(path: Path, kind: TileKind) -> int:
    """Images of an HDF5 file or cutouts in an archive; 0 when the content does not tell. OSError: the system failed."""
    if kind is TileKind.HDF5:
        from pipeline.readers.hdf5 import count_rows  # h5py only where there is an HDF5 file

        return count_rows(path)
    from pipeline.readers.archives.reader import list_members

    try:
        return len(list_members(path))
    except BadInput:
        return 0
