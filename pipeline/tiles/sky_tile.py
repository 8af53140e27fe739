"""Sky tiles: the unit that arrives, is processed, committed and redone as a whole.

In the surveys "tile" means a telescope pointing; here a *sky tile* is a survey brick, a folder of cutouts, a folder of
pictures, an archive (tar, zip) of cutouts or an HDF5 file, or a range of rows of one of the last four. Names hang on
the last two parts of the path, so that a moved or renamed root above them keeps object ids.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.core.errors import InputChanged
from pipeline.core.object_ids import printable
from pipeline.tiles.brick_files import brick_files, brick_of_file, neighbour_files

_EXTENSIONS = {
    ".fits": "cutouts",
    ".fits.gz": "cutouts",
    ".fits.fz": "cutouts",
    ".fit": "cutouts",
    ".jpg": "pictures",
    ".jpeg": "pictures",
    ".png": "pictures",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".tar": "archive",
    ".tar.gz": "archive",
    ".tgz": "archive",
    ".zip": "archive",
}
# Files of the survey that hold no image of the sky to cut from.
_CATALOGUE = re.compile(r"(tractor-\d{4}[pm]\d{3}|sweep-\d{3}[pm]\d{3}-\d{3}[pm]\d{3}[\w.-]*)\.fits(\.gz|\.fz)?$")
_SURVEY_TABLE = re.compile(r"(survey-bricks|survey-ccds|ccds-annotated|blobs-\d{4}[pm]\d{3})[\w.-]*\.fits(\.gz|\.fz)?$")
_PREVIEW = re.compile(r"[A-Za-z0-9]+-\d{4}[pm]\d{3}-[\w-]+\.(jpe?g|png)$")  # of a whole brick, for people
MANIFEST = "manifest.sha256"


class TileKind(StrEnum):
    """What a sky tile is made of. `positions` holds what a list of positions asks for where there is no brick."""

    BRICK = "brick"
    CUTOUTS = "cutouts"
    PICTURES = "pictures"
    ARCHIVE = "archive"
    HDF5 = "hdf5"
    POSITIONS = "positions"


FOLDER_KINDS = (TileKind.CUTOUTS, TileKind.PICTURES)


@dataclass(frozen=True)
class SkyTile:
    """A sky tile: inputs `start` to `stop` (files or archive members in the order of names, or rows) of `path`.

    `source` is the stable name of the folder or file, `index` counts its tiles. `fingerprint` changes when an input
    does. `stop` is −1 where it cannot be told how many inputs there are. A brick is named by `brick`, lies in the
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


def kind_of(name: str) -> TileKind | None:
    """The kind of tile a file belongs to by its name; None for files that are no input (tables, hidden files)."""
    lower = name.lower()
    if lower.startswith(".") or role_of(name):
        return None
    if brick_of_file(name):
        return TileKind.BRICK
    for extension, kind in _EXTENSIONS.items():
        if lower.endswith(extension):
            return TileKind(kind)
    return None


def role_of(name: str) -> str:
    """What a file that is no input is by its name: catalogue, survey table, preview, manifest; empty for all others."""
    if _CATALOGUE.match(name):
        return "catalogue"
    if _SURVEY_TABLE.match(name):
        return "survey table"
    if _PREVIEW.match(name):
        return "preview"
    return "manifest" if name.endswith((".sha256", ".sha256sum")) else ""


def inputs_in(folder: Path, kind: TileKind) -> list[str]:
    """Names of the input files of a kind in a folder, sorted. A link to nothing is one: it will be quarantined."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if kind_of(e.name) == kind and (_is_file(e.path) or _leads_nowhere(e))]
    return sorted(names)


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
    for place in (folder, folder.parent):
        tables = sorted(p for p in place.glob("*.csv") if not p.name.startswith("."))
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


def check_unchanged(tile: SkyTile, names: list[str], salt: str, *, edges: bool = True) -> None:
    """Make sure that the inputs of a tile are those it was found with: what is committed must be what was read.

    `names` are those of its files as they are now (`names_of`).

    Raises
    ------
    InputChanged : files were added, removed or written since.
    """
    files = files_of(tile, names, edges=edges)
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


def touched(files: Iterable[Path]) -> list[tuple[int, int] | None]:
    """When each file was last touched in any way, and which file it is: ns and inode; None where there is none.

    The system itself sets this time, so that a file that was moved away for an instant, or copied back with its old
    time of change, does not look as before.
    """
    return [_touched(path) for path in files]


def _touched(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ctime_ns, stat.st_ino


def _is_file(path: str) -> bool:
    return Path(path).is_file()  # False for a link to itself, where DirEntry.is_file raises


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not Path(entry.path).exists()
