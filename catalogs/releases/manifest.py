"""The sha256 of every file of a release, in the format of `sha256sum`, and whether the files still have them.

`sha256sum -c sidecar/manifest.sha256`, run in the folder of the release, says the same as `verify` about files that
are missing or changed; `verify` also names files that the manifest does not know. What a manifest says is not
trusted: only files found in the folder are opened, whatever paths it lists.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from catalogs.atomic import atomic_write
from catalogs.errors import CatalogError
from catalogs.paths import ReleaseLayout

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")  # sha256sum writes a * before the names of files read as binary


@dataclass(frozen=True, order=True)
class FileMismatch:
    """What is wrong with a file; `path` is relative to the release."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def manifest_path(root: Path) -> Path:
    """Where the manifest of a release lies."""
    return ReleaseLayout(root).provenance / "manifest.sha256"


def write_manifest(root: Path, known: Mapping[str, str] | None = None) -> Path:
    """Write the manifest of every file below `root` but itself, sorted by path; returns its path.

    `known` holds digests (hex, by relative path) that need not be computed: of files taken over from another release.

    Raises
    ------
    CatalogError : a link, or a name that `sha256sum` would have to escape, lies in the folder; a file cannot be read.
    """
    known = known or {}
    files, odd = _files(root)
    if odd:
        raise CatalogError(f"{root}: a release holds plain files with plain names only, not {odd[0]}")
    digests = dict(known) | _digests(root, [name for name in files if name not in known])
    unread = [name for name in files if not digests[name]]
    if unread:
        raise CatalogError(f"{root / unread[0]}: cannot be read back; is the disk failing?")
    path = manifest_path(root)
    with atomic_write(path) as beside:
        beside.write_text("".join(f"{digests[name]}  {name}\n" for name in files), encoding="utf-8")
    return path


def read_manifest(root: Path) -> tuple[dict[str, str], list[FileMismatch]]:
    """Digest (hex) by path, and what is wrong with the manifest itself; what a refused line says is left out."""
    path = manifest_path(root)
    name = path.relative_to(root).as_posix()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return {}, [FileMismatch(name, f"cannot be read ({error})")]
    digests: dict[str, str] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line)
        if found is None:
            problems.append(FileMismatch(name, f"line {number} is no sha256 and path"))
        elif not _is_inside(found[2]) or found[2] in digests:
            problems.append(FileMismatch(name, f"line {number} is refused: path {found[2]!r}"))
        else:
            digests[found[2]] = found[1]
    return digests, problems


def verify_manifest(root: Path) -> list[FileMismatch]:
    """Files of a release that are missing, changed, or not in its manifest, sorted by path; empty when all is well."""
    wanted, problems = read_manifest(root)
    files, odd = _files(root)
    problems += [FileMismatch(name, "no plain file with a plain name: not part of a release") for name in odd]
    problems += [FileMismatch(name, "not in the manifest") for name in files if name not in wanted]
    problems += [FileMismatch(name, "missing") for name in sorted(wanted.keys() - set(files) - set(odd))]
    there = [name for name in files if name in wanted]
    found = _digests(root, there)
    problems += [
        FileMismatch(name, "changed: its sha256 is not that of the manifest" if found[name] else "cannot be read")
        for name in there
        if found[name] != wanted[name]
    ]
    return sorted(problems)


def _is_inside(name: str) -> bool:
    """Whether a path of a manifest is relative, in its plainest form, and stays below the release."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name and name.isprintable()


def _files(root: Path) -> tuple[list[str], list[str]]:
    """Relative paths of the plain files below `root` but the manifest, and of what else lies there, both sorted."""
    plain: list[str] = []
    odd: list[str] = []
    for folder, folders, names in os.walk(root):  # does not follow links
        at = Path(folder)
        for path in (at / name for name in names + folders):
            name = path.relative_to(root).as_posix()
            if path.is_symlink():
                odd.append(name)
            elif not path.is_dir():
                (plain if path.is_file() and name.isprintable() and "\\" not in name else odd).append(name)
    mine = manifest_path(root).relative_to(root).as_posix()
    return sorted(name for name in plain if name != mine), sorted(odd)


def _digests(root: Path, names: Iterable[str]) -> dict[str, str]:
    names = list(names)
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing lets other threads run
        return dict(zip(names, threads.map(lambda name: _digest(root / name), names), strict=True))


def _digest(path: Path) -> str:
    """The sha256 of a file; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
