"""Lists of checksums as sha256sum writes them, and files compared with them.

Lists are read as text only and name files of their own folder only.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pipeline.core.errors import BadInput, Reason
from pipeline.core.parsing import parsing
from pipeline.tiles.file_names import FOLDER_KINDS, MANIFEST
from pipeline.tiles.sky_tile import SkyTile, files_of

_LINE = re.compile(r"(?P<escaped>\\?)(?P<digest>[0-9a-fA-F]{64})(?: [ *](?P<name>.+))?$")
_MOST_BYTES = 64 << 20  # of a list of checksums: more than half a million files


@dataclass(frozen=True)
class Checksums:
    """A list of checksums: digests (hexadecimal, lower case) by name, and what is wrong with the list, if anything."""

    path: Path
    digests: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def sums_of(folder: Path) -> dict[str, str]:
    """The sha256 (hexadecimal) of every file of a folder that a list of checksums in it names.

    Lists are `*.sha256sum`, `*.sha256` and `manifest.sha256`; if they differ the last of these counts. Lines that
    cannot be read are skipped.
    """
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name.endswith((".sha256sum", ".sha256")))
    sums: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (name == MANIFEST, name.endswith(".sha256"))):
        sums.update(checksums(folder / name).digests)
    return sums


def verify(tile: SkyTile, names: list[str]) -> tuple[list[str], dict[str, BadInput]]:
    """Compare the files of a tile with the checksums that lists in their folders give, if there are any.

    Parameters
    ----------
    names : the input files of a folder (`names_of`); empty for other kinds of tiles.

    Returns
    -------
    The names whose checksums agree, or that no list gives; and the error of each of the others.

    Raises
    ------
    BadInput : a file that holds many objects, or one of a brick's own files, differs: nothing of the tile can be used.
    OSError : the system failed.
    """
    if tile.kind not in FOLDER_KINDS:
        check_sums(files_of(tile, names, edges=False))
        return names, {}
    folder = Path(tile.path)
    sums = sums_of(folder)
    differing: dict[str, BadInput] = {}
    for name in names:
        try:
            if name in sums:
                check_sum(folder / name, sums[name])
        except BadInput as bad:
            differing[name] = bad
    return [name for name in names if name not in differing], differing


def check_sums(files: Iterable[Path]) -> None:
    """Compare each of these files with the sha256 that a list in its folder gives for it, if one does.

    Raises
    ------
    BadInput : a file differs, or cannot be read.
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
    BadInput : it differs (checksum_differs), or cannot be read (unreadable_file).
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
    """Read a list of checksums as sha256sum writes it; an empty one if there is no such file. Never raises."""
    try:
        stat = path.stat()
        return _read(path, stat.st_size, stat.st_mtime_ns) if path.is_file() else Checksums(path)
    except FileNotFoundError:
        return Checksums(path)
    except OSError as error:
        return Checksums(path, problem=f"cannot be read ({error.strerror})")


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
    """The name in a line, empty if it is none of a file in the folder of the list.

    A digest alone in `<name>.sha256` is that of `<name>`.
    """
    name = match["name"] or (path.stem if path.suffix == ".sha256" and path.name != MANIFEST else "")
    if match["escaped"]:  # sha256sum marks a line whose name has a backslash or line end, and writes these as \\ and \n
        name = re.sub(r"\\(.)", lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), name)
    name = name.removeprefix("./")
    return "" if "/" in name or "\0" in name or name in (".", "..") else name
