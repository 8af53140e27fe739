"""Sky tiles: the unit that arrives, is processed, committed and redone as a whole.

In the surveys "tile" means a telescope pointing; here a *sky tile* is a survey brick, a folder of cutouts, a folder of
pictures, an archive (tar, zip) of cutouts or an HDF5 file, or a range of rows of one of the last four. Names depend on
the last two parts of the path only, so that object ids survive when a root above them is moved or renamed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import BadInput, InputChanged
from pipeline.core.object_ids import printable
from pipeline.tiles.brick_files import brick_files, neighbour_files
from pipeline.tiles.file_names import FOLDER_KINDS, TileKind, inputs_in


@dataclass(frozen=True)
class SkyTile:
    """A sky tile: inputs `start` to `stop` (files or archive members in the order of names, or rows) of `path`.

    `source` is the stable name of the folder or file, `index` counts its tiles. `fingerprint` changes when an input
    does. `stop` is −1 if it cannot be told how many inputs there are. A brick is named by `brick`, lies in the
    folder `path`, and takes its objects from `tables`.
    """

    kind: TileKind
    path: str
    source: str
    index: int
    start: int
    stop: int
    fingerprint: str
    brick: str = ""
    tables: tuple[str, ...] = ()

    @property
    def tile_id(self) -> str:
        """A file name: readable, unique for source and kind, stable when the root moves."""
        readable = re.sub(r"[^A-Za-z0-9_.+-]+", "_", self.source).strip("._")[-60:]
        unique = hashlib.sha256(f"{self.kind}:{self.source}".encode()).hexdigest()[:8]
        return f"{readable}-{unique}-{self.index:05d}"


def origin_of(tile: SkyTile, catalog: Path) -> str:
    """Where a tile's source lies: relative to the folder that holds the catalogue when it lies below it."""
    path, home = Path(tile.path), catalog.parent.resolve()
    return printable(str(path.relative_to(home) if path.is_relative_to(home) else path))


def names_of(tile: SkyTile) -> list[str]:
    """Names of the input files of a tile that is a folder, as they are now; none for the other kinds."""
    if tile.kind not in FOLDER_KINDS:
        return []
    return inputs_in(Path(tile.path), tile.kind)[tile.start : tile.stop]


def table_of(folder: Path) -> Path | None:
    """The table of positions that belongs to a folder of pictures: the first CSV in it or in the folder above."""
    for parent in (folder, folder.parent):
        tables = sorted(p for p in parent.glob("*.csv") if not p.name.startswith("."))
        if tables:
            return tables[0]
    return None


def source_of(path: Path) -> str:
    """The last two parts of a path, the stable name of a source."""
    return printable("/".join(path.parts[-2:]))


def files_of(tile: SkyTile, names: list[str], *, edges: bool = True) -> list[Path]:
    """Every file that a tile is read from; `names` are those of `names_of`.

    For pictures the table is among them; for a brick its objects and, with `edges`, the images of its neighbours.
    """
    path = Path(tile.path)
    if tile.kind is TileKind.BRICK:
        around = neighbour_files(path, tile.brick) if edges else []
        return [*brick_files(path, tile.brick), *map(Path, tile.tables), *around]
    if tile.kind is TileKind.POSITIONS:
        return [Path(table) for table in tile.tables]
    if tile.kind not in FOLDER_KINDS:
        return [path]
    table = table_of(path) if tile.kind is TileKind.PICTURES else None
    return [path / name for name in names] + ([table] if table else [])


@contextmanager
def unchanged(tile: SkyTile, names: list[str], salt: str, *, edges: bool = True) -> Iterator[None]:
    """Make sure that a tile is read from the inputs it was found with, and that they stay the same meanwhile.

    Where reading ends with BadInput, the files must at least not have been touched: that error may be of a file that
    was being replaced.

    Parameters
    ----------
    names : those of its files as they are now (`names_of`).
    salt : digest of the settings of the readers, part of the fingerprint.

    Raises
    ------
    InputChanged : files were added, removed or written since the tile was found, or touched while they were read.
    """
    files = files_of(tile, names, edges=edges)
    before = [_touched(path) for path in files]
    _check_fingerprint(tile, files, salt)
    bad: BadInput | None = None
    try:
        yield
    except BadInput as error:
        bad = error
    if [_touched(path) for path in files] != before:
        raise InputChanged(f"{tile.path}: files were moved or written while they were read; run again") from bad
    if bad is not None:
        raise bad
    _check_fingerprint(tile, files_of(tile, names, edges=edges), salt)


def _touched(path: Path) -> tuple[int, int] | None:
    """When a file was last touched in any way, and which file it is: ns and inode; None if there is none.

    The system itself sets this time, so that a file that was moved away for an instant, or copied back with its old
    time of change, does not look as before.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ctime_ns, stat.st_ino


def _check_fingerprint(tile: SkyTile, files: list[Path], salt: str) -> None:
    if fingerprint(files, f"{tile.start}:{tile.stop}:{salt}") != tile.fingerprint:
        raise InputChanged(
            f"{tile.path} changed after it was found (is it still being copied?); run again when it is done"
        )


def fingerprint(files: Iterable[Path], rest: str) -> str:
    """Sixteen hexadecimal digits over names, sizes, times of change and readability of the files, and the rest."""
    digest = hashlib.sha256(rest.encode())
    for path in files:
        try:
            stat = path.stat()
            digest.update(os.fsencode(f"|{path.name}:{stat.st_size}:{stat.st_mtime_ns}"))
            if not os.access(path, os.R_OK):  # a change of rights does not change the time
                digest.update(b":unreadable")
        except OSError:
            digest.update(os.fsencode(f"|{path.name}:gone"))
    return digest.hexdigest()[:16]
