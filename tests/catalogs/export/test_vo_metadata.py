"""The VOTable in the footers says what the columns are, and astropy gives it back with the data."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.io import votable
from astropy.io.votable.tree import VOTableFile
from astropy.io.votable.ucd import parse_ucd
from astropy.table import Table

from catalogs.export.vo_metadata import file_metadata, with_widths
from catalogs.schema import catalogue_columns
from tests.catalogs.conftest import SLUGS, make_table

VERSION, CONTENT = b"IVOA.VOTable-Parquet.version", b"IVOA.VOTable-Parquet.content"
ARROW = {
    "boolean": pa.bool_(),
    "short": pa.int16(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "unicodeChar": pa.string(),
}


def parsed(metadata: dict[bytes, bytes]) -> VOTableFile:
    return votable.parse(io.BytesIO(metadata[CONTENT]), verify="exception")


def test_the_first_table_has_a_field_for_each_column_and_no_data() -> None:
    metadata = file_metadata(SLUGS, {})
    table = next(parsed(metadata).iter_tables())
    found = [(f.name, ARROW[f.datatype], str(f.unit or ""), f.ucd, f.description) for f in table.fields]
    assert found == [(c.name, c.type, c.unit, c.ucd, c.description) for c in catalogue_columns(SLUGS)]
    assert metadata[VERSION] == b"1.0" and b"<DATA" not in metadata[CONTENT]


def test_it_is_a_valid_votable(tmp_path: Path) -> None:
    path = tmp_path / "header.vot"
    path.write_bytes(file_metadata(SLUGS, {"model_id": "a < b & 'c'", "release": "2026.11.0"})[CONTENT])
    report = io.StringIO()
    assert votable.validate(path, output=report), report.getvalue()


def test_positions_refer_to_icrs_and_times_to_utc() -> None:
    document = parsed(file_metadata(SLUGS, {}))
    systems, times = document.resources[0].coordinate_systems, document.resources[0].time_systems
    assert [s.system for s in systems] == ["ICRS"] and [t.timescale for t in times] == ["UTC"]
    references = {f.name: f.ref for f in document.get_first_table().fields if f.ref}
    assert references == {"ra": systems[0].ID, "dec": systems[0].ID, "mjd_predicted": times[0].ID}


def test_what_is_known_of_the_release_is_there_and_nothing_else() -> None:
    info = {"model_id": "tiny-0001", "release": "2026.11.0", "note": "<b> & é"}
    assert {i.name: i.value for i in parsed(file_metadata(SLUGS, info)).resources[0].infos} == info
    assert not parsed(file_metadata(SLUGS, {})).resources[0].infos


def test_the_same_columns_give_the_same_bytes_whichever_astropy_writes_them() -> None:
    metadata = file_metadata(SLUGS, {"model_id": "m"})
    assert metadata == file_metadata(SLUGS, {"model_id": "m"}) != file_metadata(SLUGS[:2], {"model_id": "m"})
    assert b"astropy" not in metadata[CONTENT]


@pytest.mark.parametrize("column", catalogue_columns(["round"]), ids=lambda c: c.name)
def test_units_and_ucds_are_words_of_the_virtual_observatory(column: object) -> None:
    parse_ucd(column.ucd, check_controlled_vocabulary=True)  # type: ignore[attr-defined]
    units.Unit(column.unit, format="vounit", parse_strict="raise")  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:No table..len")
def test_astropy_gives_units_ucds_and_descriptions_back(tmp_path: Path) -> None:
    table = make_table("a-tile", range(5), unclassified=[2], source_name=["é", "longer", "", "c", "d"])
    metadata = with_widths(file_metadata(SLUGS, {"model_id": "tiny-0001"}), table)
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "leaf.parquet")
    read = Table.read(tmp_path / "leaf.parquet", format="parquet.votable")
    for column in catalogue_columns(SLUGS):
        found = read[column.name]
        assert (str(found.unit or ""), found.description) == (column.unit, column.description)
        assert found.meta["ucd"] == column.ucd
        np.testing.assert_array_equal(np.asarray(found), table[column.name].to_numpy())


def test_strings_are_as_long_as_their_longest_value_and_at_least_one() -> None:
    table = make_table("a-tile", range(3), source_name=["é", "", "héé"], run_id=["", "", ""])
    sizes = {f.name: f.arraysize for f in parsed(with_widths(file_metadata(SLUGS, {}), table)).get_first_table().fields}
    assert (sizes["source_name"], sizes["run_id"], sizes["tile_id"], sizes["ra"]) == ("3*", "1*", "6*", None)
    named = parsed(file_metadata(SLUGS, {}, {"label": 7})).get_first_table().fields
    assert {f.name: f.arraysize for f in named if f.datatype == "unicodeChar"}["label"] == "7*"


def test_metadata_of_another_kind_stay_as_they_are() -> None:
    table = make_table("a-tile", range(3))
    assert with_widths({b"a": b"b"}, table) == {b"a": b"b"}
    assert with_widths({**file_metadata(SLUGS, {}), b"a": b"b"}, table)[b"a"] == b"b"
