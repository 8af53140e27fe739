"""The members of a tar archive, read once from front to back in bounded memory.

Only headers are interpreted here; nothing is written to disk and no link is followed. The standard library reads
extended headers of any declared size into memory, and keeps a record of every member; with archives that are not
trusted neither will do. Format: POSIX.1-2017, pax; long names also as GNU tar writes them.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.core.errors import BadInput, Reason
from pipeline.core.parsing import parsing

_BLOCK = 512
_MOST_EXTENDED_BYTES = 64 << 10  # of a header with a long name
_GROWTH = 100  # FITS images shrink to a third; what unpacks to more than this is no archive of them
_SMALL = 256 << 20  # is read whatever it grew from


@dataclass(frozen=True)
class TarMember:
    """A member: name, kind (the type flag of its header) and declared size in bytes."""

    name: str
    kind: str
    size: int


class TarStream:
    """An archive that is read forward: `members` stops at each, `content` reads the one it stopped at."""

    def __init__(self, path: Path, file: BinaryIO, length: int, most_bytes: int) -> None:
        """`length` of the archive in bytes is −1 where it is unpacked as it is read, to no more than `most_bytes`."""
        self.path = path
        self._file = file
        self._length = length
        self._most_bytes = most_bytes
        self._place = 0

    def members(self) -> Iterator[TarMember]:
        """The members in the order of the archive.

        Raises
        ------
        BadInput : what follows cannot be read.
        """
        following: dict[str, str] = {}  # what extended headers say of the next member
        while True:
            block = self._read(_BLOCK)
            if not block.strip(b"\0"):
                if self._more_follows():
                    detail = f"{self.path}: zeros, then more, before byte {self._place}; copy it again"
                    raise BadInput(Reason.UNREADABLE_FILE, detail)
                return
            member = self._header(block)
            start, padded = self._place, -(-member.size // _BLOCK) * _BLOCK
            if member.kind in "LKxg":
                following |= self._extended(member)
            else:
                size = following.pop("size", "")
                if size:
                    member = TarMember(member.name, member.kind, self._size_of(size))
                    padded = -(-member.size // _BLOCK) * _BLOCK
                yield TarMember(following.pop("path", member.name), member.kind, member.size)
                following.clear()
                if member.kind in "123456":
                    padded = 0  # links, devices and folders have no data, whatever size they give
            self._go_to(start + padded)

    def content(self, member: TarMember) -> io.BytesIO:
        """The bytes of the member that `members` stopped at. Raises BadInput where they are damaged or cut short."""
        with parsing(self.path, "a tar archive"):
            return io.BytesIO(self._read(member.size))

    def _header(self, block: bytes) -> TarMember:
        unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        try:
            if int(block[148:156].strip(b"\0 ") or b"0", 8) != unsigned:
                raise ValueError("checksum")
            size = int.from_bytes(block[125:136]) if block[124] & 0x80 else int(block[124:136].strip(b"\0 ") or b"0", 8)
        except ValueError as error:
            place = self._place
            self._more_follows()  # where it is gzip'ed, its checksum tells whether what came before can be trusted
            raise BadInput(Reason.UNREADABLE_FILE, f"{self.path}: no header of tar at byte {place}") from error
        name = _text(block[:100])
        if block[257:263] == b"ustar\0" and block[345:500].strip(b"\0"):
            name = f"{_text(block[345:500])}/{name}"
        return TarMember(name, chr(block[156]).replace("\0", "0"), size)

    def _extended(self, member: TarMember) -> dict[str, str]:
        """Name and size of the next member; what else there is, or what holds for all, is skipped."""
        if member.size > _MOST_EXTENDED_BYTES:
            raise BadInput(Reason.TOO_LARGE, f"{self.path}: a header of {member.size} bytes at byte {self._place}")
        data = self._read(member.size)
        if member.kind == "L":
            return {"path": _text(data)}
        found: dict[str, str] = {}
        while member.kind == "x" and data:
            length, _, rest = data.partition(b" ")
            end = int(length) if length.isdigit() and len(length) < 6 else 0
            if not len(length) < end <= len(data):
                raise BadInput(Reason.UNREADABLE_FILE, f"{self.path}: a damaged pax header before byte {self._place}")
            key, _, value = rest[: end - len(length) - 1].partition(b"=")
            if key in (b"path", b"size"):
                found[key.decode()] = _text(value.removesuffix(b"\n"))
            data = data[end:]
        return found

    def _size_of(self, digits: str) -> int:
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            raise BadInput(Reason.UNREADABLE_FILE, f"{self.path}: a member of size {digits[:40]!r}")
        return int(digits)

    def _more_follows(self) -> bool:
        """Whether there is more than zeros. What is gzip'ed is read to its end, where its checksum is."""
        more = False
        while not (more and self._length >= 0) and (block := self._file.read(1 << 20)):
            self._place += len(block)
            more |= bool(block.strip(b"\0"))
            if self._length < 0 and self._place > self._most_bytes:
                raise BadInput(Reason.TOO_LARGE, f"{self.path} unpacks to more than {self._most_bytes >> 20} MiB")
        return more

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        self._place += len(data)
        if len(data) < count:
            raise BadInput(Reason.UNREADABLE_FILE, f"{self.path} is cut short at byte {self._place}; copy it again")
        return data

    def _go_to(self, place: int) -> None:
        if self._length < 0 and place > self._most_bytes:
            raise BadInput(
                Reason.TOO_LARGE,
                f"{self.path}: the member at byte {self._place} reaches beyond {self._most_bytes >> 20} MiB, "
                f"{_GROWTH} times the size of the archive",
            )
        if not 0 <= self._length < place:
            self._place = self._file.seek(place)
        if self._place < place:
            raise BadInput(Reason.UNREADABLE_FILE, f"{self.path} is cut short at byte {self._place}; copy it again")


@contextmanager
def opened_tar(path: Path) -> Iterator[TarStream]:
    """Open a tar archive, plain or gzip'ed."""
    with path.open("rb") as file:
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield TarStream(path, cast(BinaryIO, unpacked), -1, max(_SMALL, _GROWTH * length))
        else:
            yield TarStream(path, file, length, length)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
