"""What a FITS file declares: its HDUs, where they lie, and how large they say they are.

A header is a claim. Sizes are compared with limits, and with the file's own size if known, before any memory
is taken. Nothing here knows what is in the pixels or columns. Layout: FITS standard 4.0, sections 3, 4 and 7.3.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError

from pipeline.core.errors import BadInput, Reason
from pipeline.core.parsing import parsing

_BLOCK = 2880
_CARD = 80
_MOST_HEADER_BYTES = 1 << 20  # 13,000 cards; a coadd that names every exposure it is made of has some hundreds
_MOST_HDUS = 1000
_MOST_UNPACKED_BYTES = 8 << 30  # of a gzip'ed file that are gone through: a few kilobytes can become terabytes
_BITPIX = (8, 16, 32, 64, -32, -64)
_TFORM = re.compile(r"\s*(\d{0,9})([LXBIJKAEDCMPQ])")
_WIDTHS = {"L": 1, "B": 1, "I": 2, "J": 4, "K": 8, "A": 1, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16}
_FORMATS = {"L": "S1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}


@dataclass(frozen=True)
class FitsSource:
    """An open file: `path` for messages, `length` in bytes, or −1 where it is unpacked as it is read."""

    path: Path
    file: BinaryIO
    length: int


@dataclass(frozen=True)
class Hdu:
    """One HDU: its header (parsed, and as bytes), where its data start in the file and how many bytes they are."""

    index: int
    header: fits.Header
    raw: bytes
    start: int
    size: int


@dataclass(frozen=True)
class TableColumn:
    """A column of a binary table: place in the row and width in bytes, `code` and `repeat` of its TFORM."""

    name: str
    number: int
    code: str
    repeat: int
    offset: int
    width: int

    @property
    def dtype(self) -> np.dtype | None:
        """How numpy reads it, big-endian; a place in the heap as two integers; None for bits and complex numbers."""
        if self.code == "A":
            return np.dtype(f"S{self.repeat}") if self.repeat else None
        if self.code in "PQ":
            return np.dtype((">i4" if self.code == "P" else ">i8", 2)) if self.repeat else None
        if self.code not in _FORMATS or not self.repeat:
            return None
        return np.dtype(_FORMATS[self.code]) if self.repeat == 1 else np.dtype((_FORMATS[self.code], self.repeat))


@contextmanager
def opened_fits(path: Path, content: BinaryIO | None = None) -> Iterator[FitsSource]:
    """Open a FITS file, or `content` that is called `path` in messages; what is gzip'ed is unpacked as it is read.

    Whatever fails inside because the content is damaged becomes BadInput.

    Raises
    ------
    BadInput : the file is empty, is not there or cannot be parsed.
    OSError : the system failed.
    """
    with parsing(path, "FITS", VerifyError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged headers; the checks say it in our words
        with content or path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            if length == 0:
                raise BadInput(Reason.EMPTY_FILE, f"{path} has no bytes; download it again")
            magic = file.read(2)
            file.seek(0)
            if magic == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield FitsSource(path, cast(BinaryIO, unpacked), -1)
                    _read_to_end(path, unpacked)
            else:
                yield FitsSource(path, file, length)


def hdus_of(source: FitsSource) -> Iterator[Hdu]:
    """The HDUs in the order of the file, each read when it is asked for; what follows the last one is skipped.

    Raises
    ------
    BadInput : a header is cut short, is none or declares what no header can; too many HDUs.
    """
    place = 0
    for index in range(_MOST_HDUS):
        raw = _header_bytes(source, place, index)
        if not raw:
            return
        header = fits.Header.fromstring(raw)
        hdu = Hdu(index, header, raw, place + len(raw), _data_bytes(source.path, header, index))
        yield hdu
        place = hdu.start + -(-hdu.size // _BLOCK) * _BLOCK
        if source.length < 0 and place > _MOST_UNPACKED_BYTES:
            raise BadInput(Reason.TOO_LARGE, f"{source.path} unpacks to more than {_MOST_UNPACKED_BYTES >> 30} GiB")
    raise BadInput(Reason.TOO_LARGE, f"{source.path} has more than {_MOST_HDUS} HDUs")


def integer(path: Path, header: fits.Header, key: str, default: int | None = None) -> int:
    """A whole number of a header, `default` where the keyword is missing.

    Raises
    ------
    BadInput : it is missing without a default, or is no whole number.
    """
    value = header.get(key, default)
    if type(value) is not int:
        raise BadInput(Reason.UNREADABLE_FILE, f"{path}: {key} = {value!r} in a FITS header, expected a whole number")
    return value


def sides_of(path: Path, header: fits.Header, prefix: str = "") -> tuple[int, ...]:
    """NAXIS1, NAXIS2, …; those of the image in a compressed one with the prefix Z. Raises BadInput as `integer` does.

    None of them is negative.
    """
    axes = integer(path, header, f"{prefix}NAXIS")
    if not 0 <= axes <= 999:
        raise BadInput(Reason.UNREADABLE_FILE, f"{path}: {prefix}NAXIS = {axes} in a FITS header, expected 0 to 999")
    sides = tuple(integer(path, header, f"{prefix}NAXIS{i + 1}") for i in range(axes))
    if any(side < 0 for side in sides):
        raise BadInput(Reason.UNREADABLE_FILE, f"{path}: negative axes {sides} in a FITS header")
    return sides


def bitpix_of(path: Path, header: fits.Header, prefix: str = "") -> int:
    """BITPIX, or ZBITPIX with the prefix Z. Raises BadInput where it is none that exists."""
    bitpix = integer(path, header, f"{prefix}BITPIX")
    if bitpix not in _BITPIX:
        raise BadInput(Reason.UNREADABLE_FILE, f"{path}: {prefix}BITPIX = {bitpix}, expected one of {_BITPIX}")
    return bitpix


def is_image(hdu: Hdu) -> bool:
    """Whether the HDU is an image, compressed or not."""
    return hdu.index == 0 or is_compressed(hdu) or str(hdu.header.get("XTENSION", "")).strip() == "IMAGE"


def is_compressed(hdu: Hdu) -> bool:
    """Whether the HDU is a table that holds a compressed image."""
    return hdu.header.get("ZIMAGE") is True


def is_table(hdu: Hdu) -> bool:
    """Whether the HDU is a binary table of rows, not a compressed image."""
    return str(hdu.header.get("XTENSION", "")).strip() == "BINTABLE" and not is_compressed(hdu)


def image_sides(source: FitsSource, hdu: Hdu) -> tuple[int, ...]:
    """Sides of the image in an HDU, x first, as declared; checks nothing but that they are numbers."""
    return sides_of(source.path, hdu.header, "Z" if is_compressed(hdu) else "")


def check_present(source: FitsSource, hdu: Hdu, most_bytes: int) -> None:
    """Make sure that data of a size within the limit can be there.

    Raises
    ------
    BadInput : they are declared larger than `most_bytes`, or than the file.
    """
    if hdu.size > most_bytes:
        raise BadInput(
            Reason.TOO_LARGE,
            f"{source.path}: HDU {hdu.index} declares {hdu.size} bytes, more than {most_bytes >> 20} MiB",
        )
    if 0 <= source.length < hdu.start + hdu.size:
        raise _cut_short(source, hdu, source.length - hdu.start)


def read_into(source: FitsSource, hdu: Hdu, buffer: np.ndarray, offset: int = 0) -> None:
    """Fill a contiguous array with the bytes of an HDU's data from `offset` on. Raises BadInput if there are less."""
    view = buffer.reshape(-1).view(np.uint8).data
    source.file.seek(hdu.start + offset)
    done = 0
    while done < len(view):
        count = source.file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise _cut_short(source, hdu, offset + done)
        done += count


def table_columns(source: FitsSource, hdu: Hdu) -> list[TableColumn]:
    """The columns of a binary table, or of the table that holds a compressed image.

    Raises
    ------
    BadInput : formats that do not exist or do not add up to the width of a row.
    """
    path, header = source.path, hdu.header
    sides = sides_of(path, header)
    fields = integer(path, header, "TFIELDS")
    if len(sides) != 2 or not 0 <= fields <= 999:
        raise BadInput(Reason.UNREADABLE_FILE, f"{path}: HDU {hdu.index} is no table: axes {sides}, {fields} columns")
    columns: list[TableColumn] = []
    offset = 0
    for number in range(1, fields + 1):
        form = str(header.get(f"TFORM{number}", ""))
        match = _TFORM.match(form)
        if match is None:
            raise BadInput(Reason.UNREADABLE_FILE, f"{path}: TFORM{number} = {form!r} is no format of a column")
        repeat, code = int(match[1] or 1), match[2]
        width = -(-repeat // 8) if code == "X" else repeat * _WIDTHS[code]
        name = str(header.get(f"TTYPE{number}", "")).strip()
        columns.append(TableColumn(name, number, code, repeat, offset, width))
        offset += width
    if offset != sides[0]:
        raise BadInput(
            Reason.UNREADABLE_FILE,
            f"{path}: the columns of HDU {hdu.index} are {offset} bytes wide, its rows {sides[0]}",
        )
    return columns


def _read_to_end(path: Path, unpacked: gzip.GzipFile) -> None:
    """Go on to the end of a gzip'ed file, where its checksum is: before, damage may have gone unnoticed."""
    while unpacked.read(1 << 20):
        if unpacked.tell() > _MOST_UNPACKED_BYTES:
            raise BadInput(Reason.TOO_LARGE, f"{path} unpacks to more than {_MOST_UNPACKED_BYTES >> 30} GiB")


def _header_bytes(source: FitsSource, place: int, index: int) -> bytes:
    """The blocks of a header with its END card; nothing where the file ends, or something else follows."""
    if 0 <= source.length <= place:
        return b""
    source.file.seek(place)
    blocks: list[bytes] = []
    while len(blocks) * _BLOCK < _MOST_HEADER_BYTES:
        block = source.file.read(_BLOCK)
        if not blocks and not block.startswith(b"XTENSION" if index else b"SIMPLE  ="):
            if index:
                return b""
            raise BadInput(Reason.UNREADABLE_FILE, f"{source.path} is no FITS file; download it again")
        if len(block) < _BLOCK:
            break
        blocks.append(block)
        if any(block.startswith(b"END     ", card) for card in range(0, _BLOCK, _CARD)):
            return b"".join(blocks)
    raise BadInput(
        Reason.UNREADABLE_FILE, f"{source.path}: the header of HDU {index} has no end; download the file again"
    )


def _data_bytes(path: Path, header: fits.Header, index: int) -> int:
    """Size of the data that a header declares, without padding."""
    sides = sides_of(path, header)
    bitpix = bitpix_of(path, header)
    parameters, groups = integer(path, header, "PCOUNT", 0), integer(path, header, "GCOUNT", 1)
    if parameters < 0 or groups < 0:
        raise BadInput(Reason.UNREADABLE_FILE, f"{path}: PCOUNT {parameters}, GCOUNT {groups} in HDU {index}")
    return abs(bitpix) // 8 * groups * (parameters + math.prod(sides)) if sides else 0


def _cut_short(source: FitsSource, hdu: Hdu, found: int) -> BadInput:
    return BadInput(
        Reason.UNREADABLE_FILE,
        f"{source.path} is cut short: HDU {hdu.index} declares {hdu.size} bytes of data, "
        f"{max(found, 0)} are there; download it again",
    )
