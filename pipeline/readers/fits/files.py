"""Images and columns of FITS files that are not trusted: native byte order, bounded memory, errors as messages.

Knows nothing of surveys. What a header declares is checked in `fits_layout`, compressed images in `fits_compressed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits

from pipeline.core.errors import BadInput, Reason
from pipeline.readers.fits.compressed import compressed_header, read_compressed
from pipeline.readers.fits.headers import (
    FitsSource,
    Hdu,
    TableColumn,
    bitpix_of,
    check_present,
    hdus_of,
    image_sides,
    is_compressed,
    is_image,
    is_table,
    opened_fits,
    read_into,
    sides_of,
    table_columns,
)

MOST_IMAGE_BYTES = 512 << 20  # 11,000 pixels a side of a float image; a brick has 3,600
_MOST_ROWS = 50_000_000
_MOST_COLUMN_BYTES = 8 << 30  # of all columns asked for
_MOST_TABLE_BYTES = 1 << 42
_CHUNK_BYTES = 32 << 20
Window = tuple[slice, slice]
"""Rows and columns of an image, within it."""

_PIXELS = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


def plane(path: Path, hdu: str = "", window: Window | None = None) -> tuple[fits.Header, np.ndarray]:
    """Header and pixels (H, W) of the HDU of that name or number, or of the first one that has two axes.

    Pixels are float32, or integers where the file has integers. With a window only its pixels are unpacked and given;
    the header is that of the whole image.

    Raises
    ------
    BadInput : the file is damaged, declares too much, or has no such image.
    OSError : the system failed.
    """
    with opened_fits(path) as source:
        header, pixels = read_image(source, _chosen_plane(source, hdu), window=window)
        return _parsed(header), pixels


def plane_header(path: Path, hdu: str = "") -> tuple[fits.Header, tuple[int, int]]:
    """Header and declared shape (H, W) of the image that `plane` reads; its pixels are not looked at.

    Raises
    ------
    BadInput : the file is damaged or has no such image.
    OSError : the system failed.
    """
    with opened_fits(path) as source:
        chosen = _chosen_plane(source, hdu)
        width, height = image_sides(source, chosen)
        header = compressed_header(chosen) if is_compressed(chosen) else chosen.header
        return _parsed(header), (height, width)


def read_columns(
    path: Path, names: Iterable[str], hdu: str = "", rows: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Columns of the table of that name or number, or of the first table, by lower-case name.

    Names are looked up without regard to case; those that the table does not have are left out. Numbers come in
    native byte order with TSCAL and TZERO applied, (N,) or (N, repeat) whatever TDIM says; logicals as bool; text
    stripped. Bits and complex numbers are left out. With `rows` (int64, increasing) only these are read.

    Raises
    ------
    BadInput : the file is damaged, declares too much, or has no such table.
    OSError : the system failed.
    """
    with opened_fits(path) as source:
        for found in hdus_of(source):
            if _is_named(found, hdu) if hdu else is_table(found):
                if not is_table(found) or found.header.get("ZTABLE") is True:
                    raise BadInput(
                        Reason.UNREADABLE_FILE,
                        f"{path}: HDU {found.index} is no plain binary table; unpack a compressed one with funpack",
                    )
                return _columns(source, found, {name.lower() for name in names}, rows)
    raise BadInput(Reason.MISSING_DATASET, f"{path}: no {f'HDU {hdu}' if hdu else 'binary table'}")


def read_image(
    source: FitsSource, hdu: Hdu, most_bytes: int = MOST_IMAGE_BYTES, window: Window | None = None
) -> tuple[fits.Header, np.ndarray]:
    """Header and pixels of an image, compressed or not: float32, or integers where there are integers.

    Raises
    ------
    BadInput : it declares more than `most_bytes`, or is damaged or cut short.
    """
    if is_compressed(hdu):
        header, pixels = read_compressed(source, hdu, most_bytes, window)
        return header, _narrow(pixels)
    sides = sides_of(source.path, hdu.header)
    if not is_image(hdu) or not sides or min(sides) < 1:
        raise BadInput(Reason.WRONG_SHAPE, f"{source.path}: HDU {hdu.index} holds no image")
    check_present(source, hdu, most_bytes)
    pixels = np.empty(sides[::-1], dtype=_PIXELS[bitpix_of(source.path, hdu.header)])
    read_into(source, hdu, pixels)
    return hdu.header, _scaled(pixels if window is None else pixels[window].copy(), hdu.header)


def _parsed(header: fits.Header) -> fits.Header:
    """The header with every card parsed: astropy would find one that cannot be only where it is used."""
    list(header.values())
    return header


def _chosen_plane(source: FitsSource, wanted: str) -> Hdu:
    """The HDU of that name or number, or the first one with two axes."""
    for hdu in hdus_of(source):
        if not (_is_named(hdu, wanted) if wanted else is_image(hdu)):
            continue
        sides = image_sides(source, hdu) if is_image(hdu) else ()
        if len(sides) == 2:
            return hdu
        if wanted:
            raise BadInput(
                Reason.WRONG_SHAPE, f"{source.path}: HDU {wanted} has axes {sides}, expected an image of two"
            )
    raise BadInput(
        Reason.WRONG_SHAPE, f"{source.path}: no {f'HDU {wanted}' if wanted else 'HDU with an image of two axes'}"
    )


def _is_named(hdu: Hdu, wanted: str) -> bool:
    if wanted.isdigit():
        return hdu.index == int(wanted)
    return str(hdu.header.get("EXTNAME", "")).strip().lower() == wanted.lower()


def _scaled(pixels: np.ndarray, header: fits.Header) -> np.ndarray:
    """BSCALE and BZERO applied, BLANK as NaN if integers turn into floats. May change `pixels` in place."""
    pixels = _native_order(pixels)
    scaled = _rescaled(pixels, float(header.get("BSCALE", 1)), float(header.get("BZERO", 0)))
    if pixels.dtype.kind in "iu" and scaled.dtype.kind == "f" and "BLANK" in header:
        scaled[pixels == header["BLANK"]] = np.nan
    return _narrow(scaled)


def _narrow(pixels: np.ndarray) -> np.ndarray:
    """Native byte order, floats as float32: beyond its range they become infinite. May change `pixels` in place."""
    if pixels.dtype.kind == "f" and pixels.dtype.itemsize != 4:
        with np.errstate(over="ignore"):
            return pixels.astype(np.float32)
    return _native_order(pixels)


def _columns(source: FitsSource, hdu: Hdu, names: set[str], chosen: np.ndarray | None) -> dict[str, np.ndarray]:
    """The wanted columns, read in pieces of whole rows: memory is that of the columns, not of the table."""
    width, rows = sides_of(source.path, hdu.header)
    wanted = [c for c in table_columns(source, hdu) if c.name.lower() in names and c.dtype is not None]
    if rows > _MOST_ROWS or rows * sum(column.width for column in wanted) > _MOST_COLUMN_BYTES:
        raise BadInput(Reason.TOO_LARGE, f"{source.path}: HDU {hdu.index} declares {rows} rows of {width} bytes")
    check_present(source, hdu, _MOST_TABLE_BYTES)
    if not wanted:
        return {}
    row = np.dtype(
        {
            "names": [str(c.number) for c in wanted],
            "formats": [c.dtype for c in wanted],
            "offsets": [c.offset for c in wanted],
            "itemsize": width,
        }
    )
    count = rows if chosen is None else len(chosen)
    columns = {c: np.empty((count, *np.empty(0, c.dtype).shape[1:]), np.empty(0, c.dtype).dtype) for c in wanted}
    step = max(1, _CHUNK_BYTES // width)
    buffer = np.empty(min(step, rows), dtype=row)
    done = 0
    for first, last in _runs(rows, chosen, step):
        piece = buffer[: last - first]
        read_into(source, hdu, piece, first * width)
        for column, values in columns.items():
            values[done : done + len(piece)] = piece[str(column.number)]
        done += len(piece)
    return {column.name.lower(): _values(source, hdu, column, values) for column, values in columns.items()}


def _runs(rows: int, chosen: np.ndarray | None, step: int) -> Iterator[tuple[int, int]]:
    """Rows to read one after the other, at most `step` at a time: first and one past the last."""
    ends = [(0, rows)]
    if chosen is not None:
        runs = np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1)
        ends = [(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
    for first, last in ends:
        for start in range(first, last, step):
            yield start, min(start + step, last)


def _values(source: FitsSource, hdu: Hdu, column: TableColumn, values: np.ndarray) -> np.ndarray:
    """A column as it is meant: text, bool, or numbers in native order with TSCAL and TZERO."""
    if column.code == "A":
        return np.char.strip(np.char.decode(values, "latin-1"))
    if column.code == "L":
        return values == b"T"
    if column.code in "PQ":
        raise BadInput(Reason.UNREADABLE_FILE, f"{source.path}: column {column.name} is of variable length")
    scale = float(hdu.header.get(f"TSCAL{column.number}", 1))
    zero = float(hdu.header.get(f"TZERO{column.number}", 0))
    return _rescaled(_native_order(values), scale, zero)


def _rescaled(values: np.ndarray, scale: float, zero: float) -> np.ndarray:
    """`values` × `scale` + `zero`; integers stay integers where only a whole number is added."""
    if (scale, zero) == (1, 0):
        return values
    if values.dtype.kind in "iu" and scale == 1 and zero.is_integer() and abs(zero) < 1 << 53:
        return values.astype(np.int64) + int(zero)
    return values * scale + zero


def _native_order(values: np.ndarray) -> np.ndarray:
    """Native byte order. May change `values` in place."""
    if values.dtype.isnative:
        return values
    return values.byteswap(inplace=values.flags.writeable).view(values.dtype.newbyteorder("="))
