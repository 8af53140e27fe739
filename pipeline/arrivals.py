"""Whether a sky tile has arrived: its files are all there, no longer written to, and what their sender sent.

A manifest (`manifest.sha256` in the folder, or `<name>.sha256` beside an HDF5 file or archive, as sha256sum writes
them) declares which files belong together; where there is none, files count as arrived once they have been unchanged
for a while. The survey's own `*.sha256sum` list files that an operator need not have fetched: they give checksums and
declare nothing. Lists of checksums are read as text only and name files of their own folder only.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from catalogs.tile_store import read_stamp
from pipeline.bricks import brick_of_file
from pipeline.errors import BadInput, Reason, parsing
from pipeline.planning import Plan
from pipeline.sky_tiles import FOLDER_KINDS, MANIFEST, SkyTile, TileKind, files_of, kind_of, names_of, role_of

_LINE = re.compile(r"(?P<escaped>\\?)(?P<digest>[0-9a-fA-F]{64})(?: [ *](?P<name>.+))?$")
_MOST_BYTES = 64 << 20  # of a list of checksums: more than half a million files


@dataclass(frozen=True)
class Checksums:
    """A list of checksums: digests (hexadecimal, lower case) by name, and what is wrong with the list, if anything."""

    path: Path
    digests: dict[str, str] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Arrived(Plan):
    """A plan without the tiles that are still arriving; `waiting` says why each is not taken yet, by tile id."""

    waiting: dict[str, str] = field(default_factory=dict)


def arrived(plan: Plan, settle: float, now: float) -> Arrived:
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
            why = waiting_for(tile, names_of(tile) if settle else [], settle, now)
        if why:
            waiting[tile.tile_id] = why
            sources.add(tile.source)
    retired = [path for path in plan.retired if (stamp := read_stamp(path)) is None or stamp.source not in sources]
    return Arrived([tile for tile in plan.todo if tile.tile_id not in waiting], plan.done, retired, waiting)


def waiting_for(tile: SkyTile, names: list[str], settle: float, now: float) -> str:
    """Why a tile can not be taken yet; empty when it can.

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
    """Seconds since a file was changed or moved to its place; None where it is gone.

    A time of modification in the future was copied from a clock that was wrong, and says nothing; the time of change
    is the system's own.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    return now - (max(stat.st_mtime, stat.st_ctime) if stat.st_mtime <= now else stat.st_ctime)


def _manifest_of(tile: SkyTile) -> Checksums:
    """The manifest that declares a tile complete; an empty one where there is none."""
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


def sums_of(folder: Path) -> dict[str, str]:
    """The sha256 (hexadecimal) of every file of a folder that a list of checksums in it names.

    Lists are `*.sha256sum`, `*.sha256` and `manifest.sha256`; where they differ the last of these counts. Lines that
    can not be read are passed over.
    """
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name.endswith((".sha256sum", ".sha256")))
    sums: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (name == MANIFEST, name.endswith(".sha256"))):
        sums.update(checksums(folder / name).digests)
    return sums


def check_sums(files: Iterable[Path]) -> None:
    """Compare each of these files with the sha256 that a list in its folder gives for it, if one does.

    Raises
    ------
    BadInput : a file differs, or can not be read.
    OSError : the system failed.
    """
    known: dict[Path, dict[str, str]] = {}
    for path in files:
        if path.parent not in known:
            known[path.parent] = sums_of(path.parent)
        if path.name in known[path.parent]:
            check_sum(path, known[path.parent][path.name])


def check_sum(path: Path, digest: str) -> None:
    """Compare a file with its sha256 (hexadecimal).

    Raises
    ------
    BadInput : it differs (checksum_differs), or can not be read (unreadable_file).
    OSError : the system failed.
    """
    with parsing(path, "a file"):
        stat = path.stat()
        found = _sha256(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if found != digest.lower():
        raise BadInput(
            Reason.CHECKSUM_DIFFERS,
            f"{path}: sha256 {found}, but its list of checksums says {digest.lower()}; download or copy it again",
        )


@lru_cache(maxsize=256)  # a large file is several tiles
def _sha256(path: Path, size: int, changed: int, placed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(path: Path) -> Checksums:
    """Read a list of checksums as sha256sum writes it; an empty one where there is no such file. Never raises."""
    try:
        stat = path.stat()
        return _read(path, stat.st_size, stat.st_mtime_ns) if path.is_file() else Checksums(path)
    except FileNotFoundError:
        return Checksums(path)
    except OSError as error:
        return Checksums(path, problem=f"can not be read ({error.strerror})")


@lru_cache(maxsize=1024)  # many bricks may share a folder, and each asks for all its lists
def _read(path: Path, size: int, changed: int) -> Checksums:
    if size > _MOST_BYTES:
        return Checksums(path, problem=f"has {size >> 20} MiB, too much for a list of checksums")
    text = path.read_bytes()[:_MOST_BYTES].decode("utf-8", "surrogateescape")
    digests: dict[str, str] = {}
    problem = "" if text.endswith("\n") else "has no end of its last line (is it still being written?)"
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.match(line.removesuffix("\r"))
        if match is None:
            problem = problem or f"is no list as sha256sum writes it (line {number})"
        elif name := _plain_name(match, path):
            digests[name] = match["digest"].lower()
    return Checksums(path, digests, problem)


def _plain_name(match: re.Match[str], path: Path) -> str:
    """The name in a line, empty where it is none of a file in the folder of the list.

    A digest alone in `<name>.sha256` is that of `<name>`.
    """
    name = match["name"] or (path.stem if path.suffix == ".sha256" and path.name != MANIFEST else "")
    if match["escaped"]:  # sha256sum marks a line whose name has a backslash or line end, and writes these as \\ and \n
        name = re.sub(r"\\(.)", lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), name)
    name = name.removeprefix("./")
    return "" if "/" in name or "\0" in name or name in (".", "..") else name
