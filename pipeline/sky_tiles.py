"""Sky tiles: the unit that arrives, is processed, committed and redone as a whole; which exist and which need work.

In the surveys "tile" means a telescope pointing; here a *sky tile* is a folder of cutouts, a folder of pictures or an
HDF5 file, or a range of rows of one. Names hang on the last two parts of the path, so that a moved or renamed root
above them keeps object ids.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from catalogs.tile_store import committed, read_stamp, tile_path
from pipeline.errors import InputChanged, UserError
from pipeline.identity import printable

_EXTENSIONS = {
    ".fits": "cutouts",
    ".fits.gz": "cutouts",
    ".fits.fz": "cutouts",  # bricks, so far: quarantined with their reason rather than passed over
    ".fit": "cutouts",
    ".jpg": "pictures",
    ".jpeg": "pictures",
    ".png": "pictures",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
}


class TileKind(StrEnum):
    """What a sky tile is made of."""

    CUTOUTS = "cutouts"
    PICTURES = "pictures"
    HDF5 = "hdf5"


@dataclass(frozen=True)
class SkyTile:
    """A sky tile: inputs `start` to `stop` (files in the order of names, or rows) of `path`.

    `source` is the stable name of the folder or file, `index` counts its tiles. `fingerprint` changes when an input
    does. `stop` is −1 where the system failed to tell how many rows a file has.
    """

    kind: TileKind
    path: str
    source: str
    index: int
    start: int
    stop: int
    fingerprint: str

    @property
    def tile_id(self) -> str:
        """A file name: readable, unique for source and kind, stable when the root moves."""
        readable = re.sub(r"[^A-Za-z0-9_.+-]+", "_", self.source).strip("._")[-60:]
        unique = hashlib.sha256(f"{self.kind}:{self.source}".encode()).hexdigest()[:8]
        return f"{readable}-{unique}-{self.index:05d}"


def discover(roots: Iterable[Path], rows: int, *, salt: str = "") -> list[SkyTile]:
    """All sky tiles under the roots, in the order of paths, with at most `rows` inputs each.

    `salt` enters every fingerprint: the settings that change what the readers make of the same files.

    Raises
    ------
    UserError : a root is no folder or file, or two folders would give tiles of the same name.
    """
    tiles: list[SkyTile] = []
    seen: dict[str, str] = {}
    for root in roots:
        if not root.exists():
            raise UserError(f"{root}: no such folder or file; give sky tiles with --tiles DIR")
        for tile in _under(root.resolve(), rows, salt):
            if seen.setdefault(tile.tile_id, tile.path) != tile.path:
                raise UserError(
                    f"{tile.path} and {seen[tile.tile_id]} have the same name, objects could not be told apart: "
                    "rename one of the folders"
                )
            tiles.append(tile)
    unique = {tile.tile_id: tile for tile in tiles}
    return list(unique.values())


def passed_over(roots: Iterable[Path]) -> dict[str, int]:
    """How many files under the roots are no input by their names, by extension; tables (CSV) and hidden ones aside."""
    names = (name for root in roots if root.is_dir() for _, names in _folders(root.resolve()) for name in names)
    others = (Path(name) for name in names if kind_of(name) is None and not name.startswith("."))
    return dict(sorted(Counter(p.suffix.lower() or "none" for p in others if p.suffix.lower() != ".csv").items()))


def inputs_in(folder: Path, kind: TileKind) -> list[str]:
    """Names of the input files of a kind in a folder, sorted. A link to nothing is one: it will be quarantined."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if kind_of(e.name) == kind and (e.is_file() or _leads_nowhere(e)))


def names_of(tile: SkyTile) -> list[str]:
    """Names of the input files of a tile that is a folder, as they are now."""
    return inputs_in(Path(tile.path), tile.kind)[tile.start : tile.stop]


def check_unchanged(tile: SkyTile, names: list[str], salt: str) -> None:
    """Make sure that the inputs of a tile are those it was found with: what is committed must be what was read.

    `names` are those of its files as they are now (`names_of`), none for HDF5.

    Raises
    ------
    InputChanged : files were added, removed or written since.
    """
    path = Path(tile.path)
    files = [path] if tile.kind is TileKind.HDF5 else _folder_files(path, names, tile.kind)
    if _fingerprint(files, f"{tile.start}:{tile.stop}:{salt}") != tile.fingerprint:
        raise InputChanged(f"{path} changed after it was found (is it still being copied?); run again when it is done")


def kind_of(name: str) -> TileKind | None:
    """The kind of tile a file belongs to by its name; None for files that are no input (tables, hidden files)."""
    lower = name.lower()
    if lower.startswith("."):
        return None
    for extension, kind in _EXTENSIONS.items():
        if lower.endswith(extension):
            return TileKind(kind)
    return None


def table_of(folder: Path) -> Path | None:
    """The table of positions that belongs to a folder of pictures: the first CSV in it or in the folder above."""
    for place in (folder, folder.parent):
        tables = sorted(p for p in place.glob("*.csv") if not p.name.startswith("."))
        if tables:
            return tables[0]
    return None


def _under(root: Path, rows: int, salt: str) -> Iterator[SkyTile]:
    if root.is_file():
        if kind_of(root.name) != TileKind.HDF5:
            raise UserError(f"{root}: give a folder of cutouts or pictures, or an HDF5 file")
        yield from _hdf5_tiles(root, rows, salt)
        return
    for folder, names in _folders(root):
        kinds = {kind_of(name) for name in names}
        for kind in (TileKind.CUTOUTS, TileKind.PICTURES):
            if kind in kinds:
                yield from _folder_tiles(folder, kind, rows, salt)
        for name in sorted(n for n in names if kind_of(n) == TileKind.HDF5):
            yield from _hdf5_tiles(folder / name, rows, salt)


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from `root` down with the names in it; links to folders are followed, each folder once."""
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = sorted(s for s in subfolders if not s.startswith(".")) if real not in seen else []
        if real not in seen:
            seen.add(real)
            yield Path(folder), names


def _unreadable(error: OSError) -> None:
    """A folder that can not be listed must not vanish from the run without a word."""
    if not isinstance(error, FileNotFoundError):  # that one was moved away a moment ago
        raise UserError(f"{error.filename}: the folder can not be read ({error.strerror}); give access or move it away")


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not Path(entry.path).exists()


def _source(path: Path) -> str:
    """The last two parts of a path, the stable name of a source."""
    return printable("/".join(path.parts[-2:]))


def _folder_files(folder: Path, names: list[str], kind: TileKind) -> list[Path]:
    """The files that some inputs of a folder are read from: they and, for pictures, the table."""
    table = table_of(folder) if kind is TileKind.PICTURES else None
    return [folder / name for name in names] + ([table] if table else [])


def _folder_tiles(folder: Path, kind: TileKind, rows: int, salt: str) -> Iterator[SkyTile]:
    names = inputs_in(folder, kind)
    for index, start in enumerate(range(0, len(names), rows)):
        stop = min(start + rows, len(names))
        fingerprint = _fingerprint(_folder_files(folder, names[start:stop], kind), f"{start}:{stop}:{salt}")
        yield SkyTile(kind, str(folder), _source(folder), index, start, stop, fingerprint)


def _hdf5_tiles(path: Path, rows: int, salt: str) -> Iterator[SkyTile]:
    from pipeline.readers.hdf5 import count_rows  # h5py only where there is an HDF5 file

    try:
        total = count_rows(path)  # 0 when it can not be told: one tile, which will say why
    except OSError:  # one file that the system can not read now must not cost the run: its tile will fail
        yield SkyTile(TileKind.HDF5, str(path), _source(path), 0, 0, -1, _fingerprint([path], f"0:-1:{salt}"))
        return
    for index, start in enumerate(range(0, max(total, 1), rows)):
        stop = min(start + rows, total)
        fingerprint = _fingerprint([path], f"{start}:{stop}:{salt}")
        yield SkyTile(TileKind.HDF5, str(path), _source(path), index, start, stop, fingerprint)


def _fingerprint(files: Iterable[Path], rest: str) -> str:
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


@dataclass(frozen=True)
class Plan:
    """What a run has to do: tiles to classify, tiles that are done, files of tiles that no longer exist."""

    todo: list[SkyTile]
    done: list[SkyTile]
    retired: list[Path]


def plan(tiles: Iterable[SkyTile], catalog: Path, model_id: str, recipe_digest: str) -> Plan:
    """Compare tiles with what is committed: whatever matches is done, all else is to do.

    A source that has become smaller leaves tiles behind which no longer exist; their files are named as retired.

    Raises
    ------
    UserError : a committed tile of this name came from another place that is still there.
    """
    tiles = list(tiles)
    todo: list[SkyTile] = []
    done: list[SkyTile] = []
    for tile in tiles:
        stamp = read_stamp(tile_path(catalog, model_id, tile.tile_id))
        if stamp is not None:
            _check_origin(tile, catalog, stamp.origin)
        fits = stamp is not None and stamp.matches(
            fingerprint=tile.fingerprint, model_id=model_id, recipe_digest=recipe_digest
        )
        (done if fits else todo).append(tile)
    sources = {t.source for t in tiles} - {t.source for t in tiles if t.stop < 0}
    current = {t.tile_id for t in tiles}
    retired = [path for path, s in committed(catalog, model_id) if s.source in sources and s.tile_id not in current]
    return Plan(todo, done, retired)


def origin_of(tile: SkyTile, catalog: Path) -> str:
    """Where a tile's source lies: relative to the folder that holds the catalogue when it lies below it."""
    path, home = Path(tile.path), catalog.parent.resolve()
    return printable(str(path.relative_to(home) if path.is_relative_to(home) else path))


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
