"""The answer to a query as text or as a file, in the formats that astronomers read."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from flows.cli.display import print_csv, print_json, print_table, rows_of
from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from astropy.table import Table

    from catalogs.schema import Column

TEXT = ("table", "csv", "json")
FORMATS = (*TEXT, "parquet", "fits", "votable")
_ENDINGS = {
    ".txt": "table",
    ".csv": "csv",
    ".json": "json",
    ".parquet": "parquet",
    ".fits": "fits",
    ".vot": "votable",
    ".xml": "votable",
}


def format_of(asked: str | None, out: Path | None) -> str:
    """The format that is asked for, else what the ending of the file says, else a table for people.

    Raises UserError when the file's ending says nothing, or a terminal would get a binary file.
    """
    form = asked or ("table" if out is None else _ENDINGS.get(out.suffix.lower()))
    if form is None:
        raise UserError(f"{out}: its ending names no format; choose one with --format ({', '.join(FORMATS)})")
    if form not in TEXT and out is None and sys.stdout.isatty():
        raise UserError(f"{form} is not for a terminal: name a file with --out, or pipe the output on")
    return form


def write_table(table: pa.Table, form: str, out: Path | None, columns: Sequence[Column]) -> None:
    """Write a table to a file, which is there whole or not at all and replaces what was there, or to the output.

    Parameters
    ----------
    columns : of the catalogue; columns of the answer that are called the same take their units and meanings.
    """
    if out is None:
        if form in TEXT:
            _print(table, form)
        else:
            sys.stdout.buffer.write(_encoded(table, form, columns))
        return
    from catalogs.atomic import atomic_write

    with atomic_write(out) as temporary:
        if form in TEXT:
            with temporary.open("w", newline="") as file, contextlib.redirect_stdout(file):
                _print(table, form)
        else:
            temporary.write_bytes(_encoded(table, form, columns))


def _print(table: pa.Table, form: str) -> None:
    names, rows = table.column_names, rows_of(table)
    if form == "json":
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    elif form == "csv":
        print_csv(names, rows)
    else:
        print_table(names, rows)


def _encoded(table: pa.Table, form: str, columns: Sequence[Column]) -> bytes:
    """The bytes of a Parquet, FITS or VOTable file."""
    file = BytesIO()
    if form == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, file, compression="zstd")
    elif form == "fits":
        from astropy.io import fits

        plain = _astropy(table, columns)
        for name in plain.colnames:
            if plain[name].dtype.kind == "U":  # FITS has no other letters
                plain[name] = np.char.encode(plain[name], "ascii", "backslashreplace")
        fits.HDUList([fits.PrimaryHDU(), fits.table_to_hdu(plain)]).writeto(file)
    else:
        from astropy.io.votable import from_table

        votable = from_table(_astropy(table, columns))
        for field in votable.get_first_table().fields:
            field.ucd = next((c.ucd for c in columns if c.name == field.name), None)
            if field.datatype == "bit":  # what astropy makes of bool, and TOPCAT stumbles over
                field.datatype = "boolean"
        votable.to_xml(file, tabledata_format="binary2")
    return file.getvalue()


def _astropy(table: pa.Table, columns: Sequence[Column]) -> Table:
    """An astropy table with the units and meanings of the catalogue; a null is NaN or masked."""
    from astropy.table import Column as Plain
    from astropy.table import MaskedColumn, Table

    units = {"distance": "arcsec", **{column.name: column.unit for column in columns if column.unit}}
    meanings = {column.name: column.meaning for column in columns}
    result = Table()
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = _values(column)
        about = {"name": name, "unit": units.get(name), "description": meanings.get(name)}
        if column.null_count and values.dtype.kind != "f":
            result[name] = MaskedColumn(values, mask=column.is_null().to_numpy(), **about)
        else:
            result[name] = Plain(values, **about)
    return result


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """Values (N,) of a type that FITS and VOTable have; what has none there becomes text."""
    if column.type in (pa.int8(), pa.uint8(), pa.uint16(), pa.uint32()):
        column = column.cast(pa.int64())
    if pa.types.is_floating(column.type):
        return column.to_numpy()
    if pa.types.is_boolean(column.type) or pa.types.is_signed_integer(column.type):
        return column.fill_null(pa.scalar(0).cast(column.type)).to_numpy()
    return np.array(["" if value is None else str(value) for value in column.to_pylist()], dtype=str)
