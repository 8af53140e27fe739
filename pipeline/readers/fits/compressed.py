"""Images compressed by tiles (FITS standard 4.0, section 10), checked before astropy unpacks them.

What unpacks the tiles trusts the header and the streams: a block size of zero never ends, a stream of HCOMPRESS writes
as many pixels as it says itself, one of gzip can grow a thousandfold. So all of that is looked at first.
"""

from __future__ import annotations

import io
import math
import zlib

import numpy as np
from astropy.io import fits
from astropy.io.fits.hdu.compressed._compression import (
    CfitsioException,  # has no public name, and Exception as its base
)

from pipeline.core.errors import BadInput, Reason
from pipeline.core.parsing import parsing
from pipeline.readers.fits.headers import (
    FitsSource,
    Hdu,
    TableColumn,
    bitpix_of,
    check_present,
    integer,
    read_into,
    sides_of,
    table_columns,
)

_RICE = ("RICE_1", "RICE_ONE")
_GZIP = ("GZIP_1", "GZIP_2")
_HCOMPRESS = "HCOMPRESS_1"
_HCOMPRESS_MAGIC = 0xDD99
_GROWTH = 1032  # at most, of a deflate stream
_TRUSTED_TILE_BYTES = 16 << 20  # a tile that cannot grow beyond this is not unpacked to see how large it is
_PRIMARY = fits.PrimaryHDU().header.tostring().encode()


def read_compressed(
    source: FitsSource, hdu: Hdu, most_bytes: int, window: tuple[slice, slice] | None = None
) -> tuple[fits.Header, np.ndarray]:
    """Header of the image, without the words of compression, and its pixels with BSCALE and BZERO applied.

    With a window (rows, columns; of an image of two axes) only the tiles that it touches are unpacked.

    Raises
    ------
    BadInput : it declares more than `most_bytes`, is damaged, or is compressed in a way the surveys do not use.
    """
    tiles = _tile_pixels(source, hdu, most_bytes)
    check_present(source, hdu, most_bytes)
    data = np.empty(hdu.size, dtype=np.uint8)
    read_into(source, hdu, data)
    _check_streams(source, hdu, data, tiles)
    content = io.BytesIO(b"".join((_PRIMARY, hdu.raw, data.data, bytes(-hdu.size % 2880))))
    with parsing(source.path, "a compressed image", CfitsioException), fits.open(content, memmap=False) as hdus:
        return hdus[1].header, np.asarray(hdus[1].section[window] if window else hdus[1].data)


def compressed_header(hdu: Hdu) -> fits.Header:
    """Header of a compressed image without the words of compression; the pixels are not looked at."""
    with fits.open(io.BytesIO(_PRIMARY + hdu.raw), memmap=False) as hdus:
        return hdus[1].header


def _tile_pixels(source: FitsSource, hdu: Hdu, most_bytes: int) -> np.ndarray:
    """How many pixels each tile has, int64 (rows of the table,), from the header alone."""
    path, header = source.path, hdu.header
    sides = sides_of(path, header, "Z")
    depth = abs(bitpix_of(path, header, "Z")) // 8
    if not sides or min(sides) < 1:
        raise BadInput(Reason.WRONG_SHAPE, f"{path}: the compressed image of HDU {hdu.index} has sides {sides}")
    if math.prod(sides) * depth > most_bytes:
        raise BadInput(
            Reason.TOO_LARGE,
            f"{path}: the compressed image of HDU {hdu.index} has sides {sides}, more than {most_bytes >> 20} MiB",
        )
    tile = [integer(path, header, f"ZTILE{i + 1}", side if i == 0 else 1) for i, side in enumerate(sides)]
    if any(not 1 <= part <= side for part, side in zip(tile, sides, strict=True)):
        raise BadInput(Reason.UNREADABLE_FILE, f"{path}: tiles {tile} in a compressed image of {sides}")
    rows = sides_of(path, header)[-1]
    if rows != math.prod(-(-side // part) for part, side in zip(tile, sides, strict=True)):
        raise BadInput(Reason.UNREADABLE_FILE, f"{path}: {rows} tiles of {tile} do not make an image of {sides}")
    _check_settings(source, hdu)
    pixels = np.ones(1, dtype=np.int64)
    for part, side in zip(reversed(tile), reversed(sides), strict=True):  # the first axis runs fastest
        starts = np.arange(0, side, part)
        pixels = np.multiply.outer(pixels, np.minimum(part, side - starts)).ravel()
    return pixels


def _check_settings(source: FitsSource, hdu: Hdu) -> None:
    """Refuse compressions that are not used, and settings of Rice that would not end."""
    path, header = source.path, hdu.header
    kind = header.get("ZCMPTYPE")
    if kind not in (*_RICE, *_GZIP, _HCOMPRESS):
        raise BadInput(
            Reason.UNREADABLE_FILE,
            f"{path}: compressed by {kind!r}; expected {', '.join((*_RICE, *_GZIP, _HCOMPRESS))}",
        )
    limits = {"BLOCKSIZE": (8, 16, 32, 64), "BYTEPIX": (1, 2, 4, 8)} if kind in _RICE else {}
    for i in range(1, 100):
        allowed = limits.get(str(header.get(f"ZNAME{i}", "")).strip().upper())
        if allowed and header.get(f"ZVAL{i}") not in allowed:
            raise BadInput(
                Reason.UNREADABLE_FILE,
                f"{path}: {header[f'ZNAME{i}']} = {header.get(f'ZVAL{i}')!r} in a compressed image, expected {allowed}",
            )


def _check_streams(source: FitsSource, hdu: Hdu, data: np.ndarray, pixels: np.ndarray) -> None:
    """Compare the places of the streams with the heap, and what they say of their sizes with the tiles."""
    path, header = source.path, hdu.header
    width, rows = sides_of(path, header)
    heap = integer(path, header, "THEAP", width * rows)
    if not width * rows <= heap <= len(data):
        raise BadInput(Reason.UNREADABLE_FILE, f"{path}: THEAP = {heap} in HDU {hdu.index} of {len(data)} bytes")
    columns = {column.name: column for column in table_columns(source, hdu)}
    if "COMPRESSED_DATA" not in columns:
        raise BadInput(Reason.UNREADABLE_FILE, f"{path}: no column COMPRESSED_DATA in HDU {hdu.index}")
    for name, column in columns.items():
        if not name.endswith("COMPRESSED_DATA"):  # GZIP_ and UN- before it: tiles that were not worth it
            continue
        sizes, starts = _places(source, hdu, data, column)
        if (sizes < 0).any() or (starts < 0).any() or (heap + starts + sizes > len(data)).any():
            raise BadInput(Reason.UNREADABLE_FILE, f"{path}: compressed tiles of HDU {hdu.index} lie outside of it")
        if name == "COMPRESSED_DATA" and header["ZCMPTYPE"] == _HCOMPRESS:
            _check_hcompress(source, data, heap + starts[sizes > 0], pixels[sizes > 0])
        elif name == "GZIP_COMPRESSED_DATA" or (name == "COMPRESSED_DATA" and header["ZCMPTYPE"] in _GZIP):
            _check_gzip(source, data, heap + starts, sizes, pixels)


def _places(source: FitsSource, hdu: Hdu, data: np.ndarray, column: TableColumn) -> tuple[np.ndarray, np.ndarray]:
    """Sizes in bytes and places in the heap of a column of variable length, each int64 (rows,)."""
    width, rows = sides_of(source.path, hdu.header)
    kind = column.dtype
    if column.code not in "PQ" or kind is None:
        raise BadInput(Reason.UNREADABLE_FILE, f"{source.path}: {column.name} is no column of variable length")
    row = np.dtype({"names": ["place"], "formats": [kind], "offsets": [column.offset], "itemsize": width})
    place = data[: width * rows].view(row)["place"].astype(np.int64)
    letter = str(hdu.header[f"TFORM{column.number}"]).strip().lstrip("01")[1:2]
    unit = {"B": 1, "I": 2, "J": 4, "E": 4, "D": 8}.get(letter, 8)
    return np.minimum(place[:, 0], len(data) + 1) * unit, np.minimum(place[:, 1], len(data) + 1)


def _check_hcompress(source: FitsSource, data: np.ndarray, starts: np.ndarray, pixels: np.ndarray) -> None:
    """A stream begins with 0xDD99 and its two sides, big-endian; together they must be the pixels of its tile."""
    heads = data[np.minimum(starts[:, None] + np.arange(10), len(data) - 1)].astype(np.int64)
    weights = 256 ** np.arange(3, -1, -1)
    first, second = heads[:, 2:6] @ weights, heads[:, 6:10] @ weights
    good = (heads[:, 0] * 256 + heads[:, 1] == _HCOMPRESS_MAGIC) & (first <= pixels) & (second <= pixels)
    if not (good & (first * second == pixels)).all():
        raise BadInput(Reason.UNREADABLE_FILE, f"{source.path}: tiles compressed by HCOMPRESS are damaged")


def _check_gzip(
    source: FitsSource, data: np.ndarray, starts: np.ndarray, sizes: np.ndarray, pixels: np.ndarray
) -> None:
    """Unpack the tiles that could become large, to no more than they may be: eight bytes a pixel."""
    for row in np.flatnonzero(sizes * _GROWTH > _TRUSTED_TILE_BYTES):
        limit = int(pixels[row]) * 8
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        unpacker.decompress(data[starts[row] : starts[row] + sizes[row]].tobytes(), limit + 1)
        if not unpacker.eof:
            raise BadInput(
                Reason.TOO_LARGE, f"{source.path}: a compressed tile unpacks to more than its {pixels[row]} pixels"
            )
