"""Releases: immutable, numbered, published by replacing one line.

A release holds the rows of all committed tiles of one model as a HATS collection, and its provenance tables. Readers
open what `CURRENT` names and never see half a release or a mixture of models. Nothing is published when nothing
changed. How a release is built stands in catalogs.releases.build.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from catalogs.atomic import atomic_write
from catalogs.errors import CatalogError
from catalogs.paths import ReleaseLayout
from catalogs.tiles import TileMetadata, committed

_log = logging.getLogger(__name__)

FORMAT = "hats-1"  # of a release; another one makes every release again
_HISTORY, _LOCK = "history.jsonl", ".publish.lock"


class ReleaseInfo(BaseModel):
    """What a release says of itself. `content` is a digest of the tiles it was made from.

    The inputs of its tiles are objects + quarantined + out of footprint + duplicates. Of the duplicates, those
    `duplicates_across_tiles` have a row in a tile, and an object of another tile stands for them. `previous` is the
    release that readers saw before, empty for the first; `partitions` counts the partition files.
    """

    model_config = ConfigDict(frozen=True)

    release: str
    created: str
    model_id: str
    content: str
    tiles: int
    objects: int
    classified: int
    unclassified: int
    quarantined: int
    out_of_footprint: int = 0
    duplicates: int
    duplicates_across_tiles: int = 0
    simulated_objects: int
    class_slugs: list[str] = []
    partitions: int = 0
    max_rows: int = 0
    previous: str = ""

    def words(self) -> dict[str, str]:
        """Every field as text, for files that describe the release."""
        return {
            name: " ".join(value) if isinstance(value, list) else str(value)
            for name, value in self.model_dump().items()
        }


class ReleaseLocked(CatalogError):
    """Another process publishes in the same catalogue."""


def is_published(catalog: Path, model_id: str) -> bool:
    """Whether nothing is to be published of a model: readers see what is committed, or turned back from just that."""
    content = content_digest(metadata for _, metadata in committed(catalog, model_id))
    return is_release_of(catalog, current_release(catalog), content)


def is_release_of(catalog: Path, current: ReleaseInfo | None, content: str) -> bool:
    """Whether readers see this content, or a rollback was from a release of this content to what they see."""
    if current is None or current.content == content:
        return current is not None
    steps = history(catalog)
    if not steps or steps[-1]["to"] != current.release:
        return False
    return any(info.release == steps[-1]["from"] and info.content == content for info in readable_releases(catalog))


def content_digest(tile_metadata: Iterable[TileMetadata]) -> str:
    """Sixteen hexadecimal digits over the metadata of tiles, in the order of their ids, and the format of releases."""
    digest = hashlib.sha256(FORMAT.encode())
    for metadata in tile_metadata:
        digest.update(metadata.model_dump_json().encode())
    return digest.hexdigest()[:16]


def layout_of(catalog: Path, release: str) -> ReleaseLayout:
    """Where the parts of a release lie, whether it is there or not."""
    return ReleaseLayout(catalog / "releases" / release)


def current_release(catalog: Path) -> ReleaseInfo | None:
    """The release that readers see; None before the first. Raises CatalogError when `CURRENT` names none."""
    name = current_name(catalog)
    return None if name is None else read_release(catalog, name)


def current_name(catalog: Path) -> str | None:
    """What `CURRENT` says, whether there is such a release or not; None before the first."""
    pointer = catalog / "CURRENT"
    return pointer.read_text().strip() if pointer.is_file() else None


def read_release(catalog: Path, name: str) -> ReleaseInfo:
    """What a release says of itself. Raises CatalogError when there is no such release, or it is damaged."""
    path = layout_of(catalog, name).info
    if not _is_name(name) or not path.is_file():
        known = ", ".join(release_names(catalog)) or "none"
        raise CatalogError(f"no release {name!r} in {catalog} (there are: {known})")
    try:
        info = ReleaseInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CatalogError(f"{path}: damaged ({error}); name an older release, or publish again") from error
    if info.release != name:
        raise CatalogError(f"{path}: it says that it is release {info.release!r}; a release cannot be renamed")
    return info


def release_names(catalog: Path) -> list[str]:
    """Names of all releases, oldest first."""
    found = (path.parent.name for path in (catalog / "releases").glob("[!.]*/release.json"))
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")])


def readable_releases(catalog: Path) -> list[ReleaseInfo]:
    """Every release that can be read, oldest first; of others there is a warning."""
    found = []
    for name in release_names(catalog):
        try:
            found.append(read_release(catalog, name))
        except CatalogError as error:
            _log.warning("%s", error)
    return found


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; files that releases share count in each."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _is_name(name: str) -> bool:
    """A name is one part of a path, so that none leads out of the catalogue."""
    return re.fullmatch(r"[^./\\][^/\\]*", name) is not None


def next_release_name(catalog: Path) -> str:
    """Year, month and a number that counts up in each month."""
    month = datetime.now(UTC).strftime("%Y.%m")
    names = (re.fullmatch(rf"{re.escape(month)}\.(\d+)", p.name) for p in (catalog / "releases").glob(f"{month}.*"))
    return f"{month}.{max((int(name[1]) for name in names if name), default=-1) + 1}"


def set_current(catalog: Path, release: str) -> None:
    """Let readers see this release from now on."""
    with atomic_write(catalog / "CURRENT") as pointer:
        pointer.write_text(release + "\n")


def rollback(catalog: Path, to: str, reason: str) -> ReleaseInfo:
    """Let readers see another release again, and keep in `history.jsonl` when, from which, and why.

    When it is interrupted and called again, the step may stand there twice.

    Raises
    ------
    CatalogError : there is no such release. The one that readers see may be damaged.
    ReleaseLocked : a publish would undo it.
    """
    with publish_lock(catalog):
        current, wanted = current_name(catalog), read_release(catalog, to)
        if current == wanted.release:
            return wanted
        now = datetime.now(UTC).isoformat(timespec="seconds")
        step = {"utc": now, "from": current or "", "to": wanted.release, "reason": reason}
        path = catalog / _HISTORY
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        with atomic_write(path) as beside:  # before the pointer: the next publish undoes a rollback that is not kept
            beside.write_text(before + json.dumps(step) + "\n", encoding="utf-8")
        set_current(catalog, wanted.release)
    return wanted


def history(catalog: Path) -> list[dict[str, str]]:
    """Every rollback, oldest first: utc, from, to, reason."""
    path = catalog / _HISTORY
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


@contextmanager
def publish_lock(catalog: Path) -> Iterator[None]:
    """Only one process at a time comes in here; the system lets go of the lock when the process dies.

    Raises
    ------
    ReleaseLocked : another one is in.
    """
    catalog.mkdir(parents=True, exist_ok=True)
    with (catalog / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ReleaseLocked(
                f"another process is publishing in {catalog}; its release will be there when it is done"
            ) from error
        yield
