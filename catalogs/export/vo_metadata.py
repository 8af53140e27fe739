"""What the columns mean, in the words of the Virtual Observatory: a VOTable without data, for footers and exports.

The convention is the IVOA note "Parquet in the VO" (VOParquet 1.0): two keys in the footer of a Parquet file, of which
one holds a VOTable whose first TABLE describes the columns. The columns come from `catalogs.schema`; no data are read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from catalogs.paths import NAME
from catalogs.schema import Column, catalogue_columns

if TYPE_CHECKING:
    from astropy.io.votable.tree import Field, VOTableFile

VERSION_KEY = b"IVOA.VOTable-Parquet.version"
CONTENT_KEY = b"IVOA.VOTable-Parquet.content"
CONVENTION = b"1.0"

_VOTABLE_VERSION = "1.4"  # the newest that common readers validate
_DATATYPES = {
    pa.bool_(): "boolean",
    pa.int16(): "short",
    pa.int32(): "int",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.string(): "unicodeChar",
}
_POSITIONS, _TIMES = "icrs", "utc"
_REFERENCES = {"ra": _POSITIONS, "dec": _POSITIONS, "mjd_predicted": _TIMES}
_COMMENT = re.compile(rb"<!--.*?-->\n", re.DOTALL)  # names the version of astropy, of which the bytes must not depend
_DESCRIPTION_ELEMENT = re.compile(rb"<DESCRIPTION>(.*?)</DESCRIPTION>", re.DOTALL)
_DESCRIPTION = "Galaxy morphology: labels with calibrated confidences, one row per object"


def file_metadata(
    class_slugs: Sequence[str], info: Mapping[str, str], widths: Mapping[str, int] | None = None
) -> dict[bytes, bytes]:
    """Key-value metadata of a Parquet file that holds all columns of the catalogue, in their order.

    Parameters
    ----------
    info : becomes INFO elements. A file that several releases share must not name one: leave `release` out there.
    widths : room for the longest value of each string column, in characters; without it strings have any length. That
        is as true, but `Table.read(path, format="parquet.votable")` of astropy 8 cannot join such columns with the
        data. Where only the table is at hand, there is `with_widths`.
    """
    strings = {name: ("unicodeChar", f"{max(width, 1)}*") for name, width in (widths or {}).items()}
    return {VERSION_KEY: CONVENTION, CONTENT_KEY: votable_header(class_slugs, info, strings)}


def with_widths(metadata: Mapping[bytes, bytes], table: pa.Table) -> dict[bytes, bytes]:
    """The metadata of `file_metadata` for the file of this table, its string columns as long as their longest value.

    Metadata of another kind stay as they are.
    """
    if CONTENT_KEY not in metadata:
        return dict(metadata)
    from astropy.io import votable

    document = votable.parse(io.BytesIO(metadata[CONTENT_KEY]))
    for field in document.get_first_table().fields:
        if pa.types.is_string(table.schema.field(field.name).type):
            longest = pc.max(pc.utf8_length(table[field.name])).as_py() or 1
            field.arraysize = f"{longest}*"
    return {**metadata, CONTENT_KEY: _xml(document)}


def votable_header(
    class_slugs: Sequence[str],
    info: Mapping[str, str],
    strings: Mapping[str, tuple[str, str]],
    rows: int | None = None,
) -> bytes:
    """A VOTable without data, as UTF-8 XML: a FIELD for each column, and `info` as INFO elements.

    Parameters
    ----------
    strings : datatype and arraysize of string columns; those that are not there are unicodeChar of any length.
    rows : the number of rows, if known.
    """
    from astropy.io.votable.tree import CooSys, Info, Resource, TableElement, TimeSys, VOTableFile

    votable = VOTableFile(version=_VOTABLE_VERSION)
    resource = Resource(name=NAME, type="results")
    resource.description = _DESCRIPTION
    resource.infos.extend(Info(f"info_{key}", key, value) for key, value in info.items())  # `model_id` is a column's ID
    resource.coordinate_systems.append(CooSys(ID=_POSITIONS, system="ICRS"))
    resource.time_systems.append(TimeSys(_TIMES, "MJD-origin", "UTC", "UNKNOWN", config={"version_1_4_or_later": True}))
    table = TableElement(votable, name=NAME, nrows=rows)
    table.fields.extend(_field(votable, column, strings) for column in catalogue_columns(class_slugs))
    resource.tables.append(table)
    votable.resources.append(resource)
    return _xml(votable)


def _xml(votable: VOTableFile) -> bytes:
    xml = io.BytesIO()
    votable.to_xml(xml)
    return _DESCRIPTION_ELEMENT.sub(_on_one_line, _COMMENT.sub(b"", xml.getvalue()))


def _on_one_line(element: re.Match[bytes]) -> bytes:
    """A DESCRIPTION without the line breaks of astropy's writer, which its reader would keep."""
    return b"<DESCRIPTION>" + b" ".join(element[1].split()) + b"</DESCRIPTION>"


def _field(votable: VOTableFile, column: Column, strings: Mapping[str, tuple[str, str]]) -> Field:
    from astropy.io.votable.tree import Field

    datatype, arraysize = _DATATYPES[column.type], None
    if pa.types.is_string(column.type):
        datatype, arraysize = strings.get(column.name, (datatype, "*"))
    field = Field(
        votable,
        name=column.name,
        datatype=datatype,
        arraysize=arraysize,
        unit=column.unit or None,
        ucd=column.ucd,
        ref=_REFERENCES.get(column.name),
    )
    field.description = column.description
    return field
