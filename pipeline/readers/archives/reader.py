"""Archives (tar, tar.gz, zip) of FITS cutouts, read member by member; nothing is ever unpacked to disk.

Inputs are the members whose names are those of cutouts, in the order of names, and what no archive of cutouts should
hold: links, devices, names that lead out of the archive. These are refused, never followed.
"""

from __future__ import annotations

import io
import shutil
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from pipeline.config.inputs import InputSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.core.object_ids import printable
from pipeline.core.parsing import parsing
from pipeline.readers.archives.tar_stream import TarMember, TarStream, opened_tar
from pipeline.readers.cutouts.reader import read_cutout
from pipeline.readers.stamps import Item, TileNote, quarantine_entry
from pipeline.tiles.file_names import TileKind, kind_of

_MOST_MEMBERS = 1_000_000
_MOST_MEMBER_BYTES = 256 << 20  # an image of 4096 x 4096 pixels in three bands has 192 MiB
_MOST_DIRECTORY_BYTES = 256 << 20  # of a zip: a million names of 200 letters
_GROWTH = 100  # as for tar
_SMALL = 256 << 20
_REST = "(the rest of the archive)"
_KINDS = {"1": "a hard link", "2": "a symbolic link", "3": "a device", "4": "a device", "6": "a named pipe"}
_FOLDER, _SPARSE = "5", "S"
_CORRUPT = ("error", "BadGzipFile")  # what zlib and gzip raise; a file that is cut short gives EOFError


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """An input in an archive: its name, its place among all members, and why it is refused, if it is."""

    name: str
    order: int
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class _Listing:
    """Inputs sorted by name, and how many other members there are, by extension."""

    members: list[ArchiveMember]
    others: Counter[str]


def list_members(path: Path) -> list[ArchiveMember]:
    """The inputs in an archive, sorted by name.

    Raises
    ------
    BadInput : it cannot be read at all, or holds too much.
    OSError : the system failed.
    """
    return _listing_of(path).members


def read_archive(path: Path, start: int, stop: int, source: str, settings: InputSettings) -> Iterator[Item]:
    """One stamp or quarantine entry for each of the inputs `start` to `stop`, in the order in which they are stored.

    The archive is gone through once. A note of what was skipped comes with its first input.

    Raises
    ------
    BadInput : it cannot be read at all, or holds too much.
    OSError : the system failed.
    """
    members = list_members(path)[start:stop]
    if start == 0:
        yield from _note(path)
    wanted = {member.order: member for member in members if not member.reason}
    for member in members:
        if member.reason:
            yield _refuse(path, member, source, BadInput(Reason(member.reason), member.detail))
    contents = (_contents_of_zip if _is_zip(path) else _contents_of_tar)(path, wanted)
    with closing(contents):
        for member, content in contents:
            try:
                place = path / member.name
                yield read_cutout(place, _source_name(source, member), settings, content())
            except BadInput as bad:
                yield _refuse(path, member, source, bad)


Content = Callable[[], io.BytesIO]


def _listing_of(path: Path) -> _Listing:
    with parsing(path, "an archive"):
        status = path.stat()
        return _listing(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2)  # the tiles of an archive are planned and read one after the other
def _listing(path: Path, size: int, changed: int) -> _Listing:
    """What is in the archive that had this size and was last changed at this time."""
    if size == 0:
        raise BadInput(Reason.EMPTY_FILE, f"{path} has no bytes; copy it again")
    members: list[ArchiveMember] = []
    others: Counter[str] = Counter()
    for count, (member, other) in enumerate(_members_of_zip(path) if _is_zip(path) else _members_of_tar(path)):
        if count >= _MOST_MEMBERS:
            raise BadInput(Reason.TOO_LARGE, f"{path} has more than {_MOST_MEMBERS} members; divide it")
        if member is not None:
            members.append(member)
        elif other:
            others[other] += 1
    if not members and not others:
        raise BadInput(Reason.EMPTY_FILE, f"{path} is an archive without members; copy it again")
    members.sort(key=lambda m: (m.name == _REST, m.name, m.order))
    return _Listing(list(_without_doubles(path, members)), others)


def _is_zip(path: Path) -> bool:
    """Told by the first bytes: a tar may end with a zip."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


Found = tuple[ArchiveMember | None, str]
"""An input, or else the extension of another file; neither for a folder."""


def _judged(path: Path, name: str, order: int, size: int, kind: str) -> Found:
    """What a member is by its name, declared size and kind (a type flag of tar)."""
    clean = str(PurePosixPath(name))  # without ./ and //
    if kind == _FOLDER:
        return None, ""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if kind in _KINDS:
        return ArchiveMember(clean, order, Reason.UNSAFE_NAME, f"{path}: {printable(name)} is {_KINDS[kind]}"), ""
    if ".." in parts or name.startswith(("/", "\\")) or name[1:2] == ":":
        return ArchiveMember(
            clean, order, Reason.UNSAFE_NAME, f"{path}: {printable(name)} leads out of the archive"
        ), ""
    if kind_of(parts[-1] if parts else "") is not TileKind.CUTOUTS:
        return None, PurePosixPath(clean).suffix.lower() or "without extension"
    if kind == _SPARSE:
        return ArchiveMember(
            clean, order, Reason.UNREADABLE_FILE, f"{path}: {printable(name)} is stored as a sparse file"
        ), ""
    if size > _MOST_MEMBER_BYTES:
        detail = f"{path}: {printable(name)} has {size} bytes, more than {_MOST_MEMBER_BYTES >> 20} MiB"
        return ArchiveMember(clean, order, Reason.TOO_LARGE, detail), ""
    return ArchiveMember(clean, order), ""


def _without_doubles(path: Path, members: list[ArchiveMember]) -> Iterator[ArchiveMember]:
    """Of members of one name only the first can be told by it; `members` are sorted."""
    last = None
    for member in members:
        if member.name == last and not member.reason:
            detail = f"{path}: {printable(member.name)} is there more than once; only the first is read"
            yield ArchiveMember(member.name, member.order, Reason.DUPLICATE_OBJECT_ID, detail)
        else:
            yield member
        last = member.name


def _members_of_tar(path: Path) -> Iterator[Found]:
    """Of a damaged archive, what comes before the damage, and an entry for the rest.

    Where a gzip'ed one is not merely cut short nobody knows where the damage begins, so that nothing of it is used.
    """
    count = 0
    try:
        with parsing(path, "a tar archive"), opened_tar(path) as stream:
            for count, member in enumerate(stream.members(), start=1):
                yield _judged(path, member.name, count - 1, member.size, member.kind)
    except BadInput as bad:
        if count == 0 or bad.exception in _CORRUPT:
            raise
        yield ArchiveMember(_REST, count, bad.reason, bad.detail), ""


def _contents_of_tar(path: Path, wanted: dict[int, ArchiveMember]) -> Generator[tuple[ArchiveMember, Content]]:
    missing = dict(wanted)
    broken = BadInput(Reason.UNREADABLE_FILE, f"{path}: not there when it was read again; run again")
    try:
        with parsing(path, "a tar archive"), opened_tar(path) as stream:
            for order, found in enumerate(stream.members()):
                if order in missing:
                    yield missing.pop(order), _tar_content(stream, found)
                if not missing:
                    return
    except BadInput as bad:
        broken = bad
    for member in missing.values():
        yield member, _raising(broken)


def _tar_content(stream: TarStream, found: TarMember) -> Content:
    return lambda: stream.content(found)


def _raising(bad: BadInput) -> Content:
    def content() -> io.BytesIO:
        raise bad

    return content


def _members_of_zip(path: Path) -> Iterator[Found]:
    count = _check_directory(path)
    total = 0
    with zipfile.ZipFile(path) as archive:
        if count not in (len(archive.infolist()) & 0xFFFF, 0xFFFF):
            detail = f"{path}: {len(archive.infolist())} members in its directory, {count} by its end; copy it again"
            raise BadInput(Reason.UNREADABLE_FILE, detail)
        for order, info in enumerate(archive.infolist()):
            total += info.file_size if info.file_size <= _MOST_MEMBER_BYTES else 0
            yield _judged(path, info.filename, order, info.file_size, _kind_in_zip(info))
    if total > max(_SMALL, _GROWTH * path.stat().st_size):
        raise BadInput(Reason.TOO_LARGE, f"{path} unpacks to {total >> 20} MiB, more than {_GROWTH} times its size")


def _check_directory(path: Path) -> int:
    """Look at the size of a zip's directory before all of it becomes objects; the number of entries that its end says.

    Of that number the lower 16 bits, all set where it does not fit (PKWARE APPNOTE 6.3, 4.3.14, 4.3.16).
    """
    with path.open("rb") as file:
        length = file.seek(0, io.SEEK_END)
        file.seek(max(0, length - (1 << 16) - 200))
        tail = file.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) < end + 22:
            raise BadInput(Reason.UNREADABLE_FILE, f"{path} is cut short: a zip ends with its directory; copy it again")
        wide = tail.rfind(b"PK\x06\x06", 0, end)
        count, size, start = struct.unpack_from("<H2L", tail, end + 10)
        if 0xFFFFFFFF in (size, start) and wide >= 0:
            size = struct.unpack_from("<Q", tail, wide + 40)[0]
        if size > length:
            raise BadInput(Reason.UNREADABLE_FILE, f"{path}: its directory is larger than the zip; copy it again")
        if size > _MOST_DIRECTORY_BYTES:
            raise BadInput(Reason.TOO_LARGE, f"{path}: a directory of {size} bytes in a zip; divide it")
        file.seek(max(0, length - len(tail) + (wide if wide >= 0 else end) - size))
        if file.read(size).count(b"PK\x01\x02") > _MOST_MEMBERS:
            raise BadInput(Reason.TOO_LARGE, f"{path} has more than {_MOST_MEMBERS} members; divide it")
    return int(count)


def _kind_in_zip(info: zipfile.ZipInfo) -> str:
    """The type flag that tar would have: what Unix says in the upper half of the attributes."""
    mode = info.external_attr >> 16
    if info.is_dir():
        return _FOLDER
    if stat.S_ISLNK(mode):
        return "2"
    return "0" if stat.S_IFMT(mode) in (0, stat.S_IFREG) else "3"


def _contents_of_zip(path: Path, wanted: dict[int, ArchiveMember]) -> Generator[tuple[ArchiveMember, Content]]:
    with parsing(path, "a zip archive"):
        archive = zipfile.ZipFile(path)
    with archive:
        infos = archive.infolist()
        for order in sorted(wanted):
            yield wanted[order], _zip_content(path, archive, infos[order])


def _zip_content(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Content:
    def content() -> io.BytesIO:
        with parsing(path / info.filename, "a member of a zip archive"):
            if info.flag_bits & 1:
                raise BadInput(Reason.UNREADABLE_FILE, f"{path}: {printable(info.filename)} is encrypted; unpack it")
            with archive.open(info) as member:
                head = member.read(2880)
                content = io.BytesIO()
                content.write(head)
                if head.startswith((b"SIMPLE  =", b"\x1f\x8b")):  # else not worth unpacking: the reader will say so
                    shutil.copyfileobj(member, content)
                content.seek(0)
                return content

    return content


def _note(path: Path) -> Iterator[TileNote]:
    others = _listing_of(path).others
    if others:
        kinds = ", ".join(f"{count} {what}" for what, count in sorted(others.items()))
        yield TileNote(remarks=[f"{others.total()} members are no FITS cutouts: {kinds}"])


def _source_name(source: str, member: ArchiveMember) -> str:
    return printable(f"{source}/{member.name}")


def _refuse(path: Path, member: ArchiveMember, source: str, bad: BadInput) -> Item:
    return quarantine_entry(path / member.name, _source_name(source, member), bad)
