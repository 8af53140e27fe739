"""A release as single files for tools that open one file: Parquet, FITS and VOTable.

All three are written in one pass over the partition files, chunk by chunk, so that memory does not grow with the
catalogue. FITS and VOTable hold strings of fixed width, in ASCII: a first pass over the string columns finds the
widths.
"""

from __future__ import annotations

import binascii
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalogs.atomic import atomic_write
from catalogs.citation import simulated_warning
from catalogs.errors import CatalogError
from catalogs.export.vo_metadata import file_metadata, votable_header
from catalogs.paths import NAME, ReleaseLayout
from catalogs.schema import arrow_schema, catalogue_columns

if TYPE_CHECKING:
    from astropy.io.fits import Header

VOTABLE_ROWS = 2_000_000  # larger releases have no VOTable: it is read as a whole, and FITS serves the same tools
_ROWS = 3 * 2**15  # of a chunk and of a row group; a multiple of three: base64 of a chunk ends without padding
_LINE = 3 * 2**14  # bytes in a line of base64
_FITS_FORMATS = {
    pa.bool_(): "L",
    pa.int16(): "I",
    pa.int32(): "J",
    pa.int64(): "K",
    pa.float32(): "E",
    pa.float64(): "D",
}
_NOT_PRINTABLE = r"[^\x20-\x7e]"


class _Writer(Protocol):
    def __call__(self, rows: pa.Table, records: np.ndarray) -> None: ...


def write_exports(layout: ReleaseLayout, class_slugs: Sequence[str], info: Mapping[str, str]) -> list[Path]:
    """Write the exports of a release again; the files written.

    The primary catalogue must have its partition files and its partition_info.csv. There is no VOTable of more than
    `VOTABLE_ROWS` rows.

    Raises
    ------
    CatalogError : a partition file is damaged, has other columns, or not as many rows as partition_info.csv says.
    """
    shutil.rmtree(layout.export, ignore_errors=True)
    layout.export.mkdir(parents=True)
    schema = arrow_schema(class_slugs)
    rows = sum(partition.rows for partition in layout.partitions())
    widths = _widths(layout, schema)
    paths = [layout.export / f"{NAME}.parquet", layout.export / f"{NAME}.fits"]
    with ExitStack() as stack:
        writers = [
            stack.enter_context(_parquet(paths[0], schema.with_metadata(file_metadata(class_slugs, info, widths)))),
            stack.enter_context(_fits(paths[1], fits_header(class_slugs, info, widths, rows))),
        ]
        if rows <= VOTABLE_ROWS:
            strings = {name: ("char", str(width)) for name, width in widths.items()}
            paths.append(layout.export / f"{NAME}.vot")
            writers.append(stack.enter_context(_votable(paths[2], votable_header(class_slugs, info, strings, rows))))
        for chunk in _chunks(layout, schema, schema.names):
            records = to_records(chunk, widths)
            for write in writers:
                write(chunk, records)
    return paths


def to_records(table: pa.Table, widths: Mapping[str, int]) -> np.ndarray:
    """The rows as a structured array, big-endian and packed, as FITS and VOTable (BINARY2) have them.

    Booleans become the letters T and F. Strings become ASCII of the given width, padded with NUL; characters that are
    not printable ASCII become escapes (\\xe9), which the widths must have room for.
    """
    kinds = [(field.name, _record_type(field, widths)) for field in table.schema]
    records = np.empty(table.num_rows, dtype=kinds)
    for field in table.schema:
        column = table[field.name].combine_chunks()
        if pa.types.is_boolean(field.type):
            records[field.name] = np.where(column.to_numpy(zero_copy_only=False), b"T", b"F")
        elif pa.types.is_string(field.type):
            padded = pc.ascii_rpad(_ascii(column), width=widths[field.name], padding="\0")
            records[field.name] = np.frombuffer(padded.buffers()[2], f"S{widths[field.name]}", table.num_rows)
        else:
            records[field.name] = column.to_numpy()
    return records


def _record_type(field: pa.Field, widths: Mapping[str, int]) -> np.dtype:
    if pa.types.is_string(field.type):
        return np.dtype(f"S{widths[field.name]}")
    if pa.types.is_boolean(field.type):
        return np.dtype("S1")
    return np.dtype(field.type.to_pandas_dtype()).newbyteorder(">")


def _ascii(column: pa.Array) -> pa.Array:
    """Strings with everything but printable ASCII as escapes."""
    if not pc.any(pc.match_substring_regex(column, _NOT_PRINTABLE)).as_py():
        return column
    return pa.array([_escaped(text) for text in column.to_pylist()], pa.string())


def _escaped(text: str) -> str:
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in text)


def fits_header(class_slugs: Sequence[str], info: Mapping[str, str], widths: Mapping[str, int], rows: int) -> Header:
    """Header of the binary table: TTYPE, TFORM, TUNIT, and, as TOPCAT reads them, TUCD and TCOMM of each column."""
    from astropy.io import fits

    columns = catalogue_columns(class_slugs)
    formats = [_FITS_FORMATS.get(c.type) or f"{widths[c.name]}A" for c in columns]
    described = [fits.Column(c.name, format_, c.unit or None) for c, format_ in zip(columns, formats, strict=True)]
    header: Header = fits.BinTableHDU.from_columns(described, name=NAME).header
    header["NAXIS2"] = rows
    for number, column in enumerate(columns, 1):
        header.set(f"TUCD{number}", column.ucd, after=f"TFORM{number}")
        header.set(f"TCOMM{number}", column.description, after=f"TUCD{number}")
    header["RADESYS"] = "ICRS"
    header["RELEASE"], header["MODEL"] = info["release"], info["model_id"]
    if warning := simulated_warning(info):
        header["COMMENT"] = warning
    return header


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[_Writer]:
    with atomic_write(path) as beside, pq.ParquetWriter(beside, schema, compression="zstd") as file:

        def write(rows: pa.Table, records: np.ndarray) -> None:
            file.write_table(rows.replace_schema_metadata(schema.metadata), row_group_size=_ROWS)

        yield write


@contextmanager
def _fits(path: Path, header: Header) -> Iterator[_Writer]:
    from astropy.io.fits import StreamingHDU

    with atomic_write(path) as beside, StreamingHDU(str(beside), header) as file:

        def write(rows: pa.Table, records: np.ndarray) -> None:
            file.write(records.view(np.uint8))

        yield write


@contextmanager
def _votable(path: Path, header: bytes) -> Iterator[_Writer]:
    """In BINARY2 each record begins with a bit for each column that says whether it is null; none is."""
    before, end, after = header.rpartition(b"</TABLE>")
    with atomic_write(path) as beside, beside.open("wb") as file:
        file.write(before + b'<DATA><BINARY2><STREAM encoding="base64">\n')

        def write(rows: pa.Table, records: np.ndarray) -> None:
            nulls = np.zeros((len(records), (rows.num_columns + 7) // 8), np.uint8)
            values = records.view(np.uint8).reshape(len(records), -1)
            stream = np.hstack([nulls, values]).ravel()
            for start in range(0, len(stream), _LINE):
                file.write(binascii.b2a_base64(stream[start : start + _LINE].data))

        yield write
        file.write(b"</STREAM></BINARY2></DATA>\n" + end + after)


def _widths(layout: ReleaseLayout, schema: pa.Schema) -> dict[str, int]:
    """The longest value of each string column, in characters of ASCII; at least one."""
    widths = {field.name: 1 for field in schema if pa.types.is_string(field.type)}
    for chunk in _chunks(layout, schema, list(widths)):
        for name in widths:
            longest = pc.max(pc.binary_length(_ascii(chunk[name].combine_chunks()))).as_py()
            widths[name] = max(widths[name], longest)
    return widths


def _chunks(layout: ReleaseLayout, schema: pa.Schema, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of all partition files along the sky, `_ROWS` at a time (fewer in the last), without metadata."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    wanted = pa.schema([schema.field(name) for name in columns])
    for batch in _batches(layout, schema, columns):
        waiting.append(batch)
        count += batch.num_rows
        if count >= _ROWS:
            table = pa.Table.from_batches(waiting, wanted)
            for start in range(0, count - _ROWS + 1, _ROWS):
                yield table.slice(start, _ROWS)
            count %= _ROWS
            waiting = table.slice(table.num_rows - count).to_batches() if count else []
    if count:
        yield pa.Table.from_batches(waiting, wanted)


def _batches(layout: ReleaseLayout, schema: pa.Schema, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    along_the_sky = sorted(layout.partitions(), key=lambda p: p.pixel << 2 * (29 - p.order))
    for partition in along_the_sky:
        path = layout.partition_file(partition.order, partition.pixel)
        try:
            with pq.ParquetFile(path) as file:
                if not file.schema_arrow.equals(schema):
                    raise CatalogError(f"{path}: its columns are not those of the release; build the release again")
                if file.metadata.num_rows != partition.rows:
                    raise CatalogError(
                        f"{path}: {file.metadata.num_rows} rows, partition_info.csv says {partition.rows}; "
                        "build the release again"
                    )
                for batch in file.iter_batches(_ROWS, columns=list(columns)):
                    yield batch.replace_schema_metadata(None)
        except (OSError, pa.ArrowException) as error:
            raise CatalogError(f"{path}: damaged ({error}); build the release again") from error
