"""Which sky tiles there are: one walk through the folders where they arrive."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config.inputs import ReadingSettings
from pipeline.core.errors import BadInput, UserError
from pipeline.tiles.brick_files import source_of_brick, tables_of_brick
from pipeline.tiles.file_names import FOLDER_KINDS, TileKind, bricks_in, inputs_in, kind_of, role_of
from pipeline.tiles.sky_tile import SkyTile, files_of, fingerprint, source_of

_DEFAULTS = ReadingSettings()
_BELONGS_TO_INPUTS = (".csv", "manifest", "catalogue")


@dataclass(frozen=True)
class Discovery:
    """What a walk of the roots found.

    `tiles` are in the order of paths. `skipped` counts the files that are no input by their names, by what they are or
    by extension; tables (CSV) of pictures, catalogues of bricks, manifests and hidden files are not among them.
    """

    tiles: list[SkyTile]
    skipped: dict[str, int]


def discover(roots: Iterable[Path], rows: int, reading: ReadingSettings = _DEFAULTS) -> Discovery:
    """Walk through the roots once: all sky tiles, with at most `rows` inputs each (a brick is always one).

    The settings of reading enter every fingerprint: they change what the readers make of the same files.

    Raises
    ------
    UserError : a root is no folder or file, or two folders would give tiles of the same name.
    """
    tiles: dict[str, SkyTile] = {}
    skipped: Counter[str] = Counter()
    for root in roots:
        for folder, names in _inputs_under(root):
            skipped.update(_what_is_skipped(names))
            for tile in _tiles_of(folder, names, rows, reading):
                same = tiles.setdefault(tile.tile_id, tile)
                if same.path != tile.path:
                    raise UserError(
                        f"{tile.path} and {same.path} have the same name, objects could not be told apart: "
                        "rename one of the folders"
                    )
    return Discovery(list(tiles.values()), dict(sorted(skipped.items())))


def _inputs_under(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder under a root with the names in it; of a root that is a file, its folder with its own name."""
    if not root.exists():
        raise UserError(f"{root}: no such folder or file; give sky tiles with --tiles DIR")
    root = root.resolve()
    if not root.is_file():
        yield from walked(root)
    elif kind_of(root.name) in (TileKind.HDF5, TileKind.ARCHIVE):
        yield root.parent, [root.name]
    else:
        raise UserError(f"{root}: give a folder of bricks, cutouts or pictures, an archive of cutouts or an HDF5 file")


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


def _what_is_skipped(names: list[str]) -> list[str]:
    """For each name in a folder that is no input: what it is, or its extension."""
    others = (name for name in names if kind_of(name) is None and not name.startswith("."))
    what = (role_of(name) or Path(name).suffix.lower() or "none" for name in others)
    return [each for each in what if each not in _BELONGS_TO_INPUTS]


def _tiles_of(folder: Path, names: list[str], rows: int, reading: ReadingSettings) -> Iterator[SkyTile]:
    """The sky tiles of one folder: of its cutouts and pictures, its bricks, and each file that holds many inputs."""
    kinds = {kind_of(name) for name in names}
    for kind in FOLDER_KINDS:
        if kind in kinds:
            yield from _folder_tiles(folder, kind, rows, reading)
    for brick in bricks_in(names):
        yield brick_tile(folder, brick, reading)
    for name in sorted(name for name in names if kind_of(name) in (TileKind.HDF5, TileKind.ARCHIVE)):
        yield from _file_tiles(folder / name, rows, reading)


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
