"""The exports hold the rows of the partition files, in one file each, for the tools that astronomers have."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits, votable
from astropy.table import Table

from catalogs.errors import CatalogError
from catalogs.export import writers as exports
from catalogs.export.writers import write_exports
from catalogs.paths import ReleaseLayout
from catalogs.schema import arrow_schema, catalogue_columns
from tests.catalogs.conftest import SLUGS, make_table
from tests.catalogs.small_release import write_release

INFO = {"release": "2026.11.0", "model_id": "tiny-0001", "objects": "40", "simulated_objects": "40"}
NAMES = [f"sky/{i}.fits" for i in range(38)] + ["häßlich\n", "x" * 70]
FILES = ("morphology.parquet", "morphology.fits", "morphology.vot")


def a_table(**values: object) -> pa.Table:
    chosen = {"source_name": NAMES, "quality_flags": np.arange(40, dtype=np.int32) << 13, **values}
    return make_table("a-tile", range(100, 140), unclassified=[101, 120], layer="simulated", **chosen)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> ReleaseLayout:
    """A release of several partition files with its exports; tests only read it."""
    layout = write_release(tmp_path_factory.mktemp("exports"), a_table())
    assert len(layout.partitions()) > 5
    assert [path.name for path in write_exports(layout, SLUGS, INFO)] == list(FILES)
    return layout


@pytest.fixture(scope="module")
def rows(released: ReleaseLayout) -> pd.DataFrame:
    """What the exports must hold, strings as FITS and VOTable have them."""
    table = a_table().sort_by("_healpix_29").to_pandas()
    table["source_name"] = table.source_name.replace("häßlich\n", r"h\xe4\xdflich\n")
    return table


def same_values(found: Table, rows: pd.DataFrame) -> None:
    """Values are the same, also where astropy masks what is empty or NaN."""
    assert found.colnames == list(rows)
    for name in rows:
        values = np.ma.getdata(found[name])
        if values.dtype.kind in "SU":
            values = values.astype(str)
        np.testing.assert_array_equal(values, rows[name].to_numpy(), err_msg=name)


def test_parquet_holds_the_very_rows_in_the_order_of_the_sky(released: ReleaseLayout) -> None:
    file = pq.read_table(released.export / FILES[0])
    assert file.schema.equals(arrow_schema(SLUGS))
    pd.testing.assert_frame_equal(file.to_pandas(), a_table().sort_by("_healpix_29").to_pandas())
    assert b"2026.11.0" in file.schema.metadata[b"IVOA.VOTable-Parquet.content"]


@pytest.mark.filterwarnings("ignore:No table..len")
def test_astropy_reads_parquet_with_units(released: ReleaseLayout) -> None:
    table = Table.read(released.export / FILES[0], format="parquet.votable")
    assert len(table) == 40 and str(table["ra"].unit) == "deg" and table["label"].meta["ucd"] == "src.morph.type"


def test_astropy_reads_fits_with_units(released: ReleaseLayout, rows: pd.DataFrame) -> None:
    table = Table.read(released.export / FILES[1])
    same_values(table, rows)
    assert {c.name: str(table[c.name].unit or "") for c in catalogue_columns(SLUGS)} == {
        c.name: c.unit for c in catalogue_columns(SLUGS)
    }


def test_the_fits_header_is_sound_and_says_what_columns_mean(released: ReleaseLayout) -> None:
    with fits.open(released.export / FILES[1]) as file:
        file.verify("exception")
        header = file[1].header
    for number, column in enumerate(catalogue_columns(SLUGS), 1):
        assert (header[f"TTYPE{number}"], header[f"TUCD{number}"]) == (column.name, column.ucd)
        assert header[f"TCOMM{number}"] == column.description
    assert (header["RELEASE"], header["MODEL"], header["RADESYS"]) == ("2026.11.0", "tiny-0001", "ICRS")
    assert "40 of 40 objects are simulated" in "".join(header["COMMENT"])


def test_astropy_reads_the_votable_with_units(released: ReleaseLayout, rows: pd.DataFrame) -> None:
    path = released.export / FILES[2]
    report = io.StringIO()
    assert votable.validate(path, output=report), report.getvalue()
    table = Table.read(path)
    same_values(table, rows)
    assert str(table["ra"].unit) == "deg" and table["label"].meta["ucd"] == "src.morph.type"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("stilts") is None, reason="stilts is not installed")
def test_stilts_reads_fits_and_votable(released: ReleaseLayout, rows: pd.DataFrame) -> None:
    chosen = ["object_id", "source_name", "ra", "label", "is_reliable", "quality_flags"]
    for name in FILES[1:]:
        command = ["stilts", "tpipe", f"in={released.export / name}", f"cmd=keepcols '{' '.join(chosen)}'", "ofmt=csv"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = pd.read_csv(io.StringIO(done.stdout), keep_default_na=False)
        pd.testing.assert_frame_equal(found, rows[chosen].reset_index(drop=True), check_dtype=False)
    lint = ["stilts", "votlint", f"votable={released.export / FILES[2]}", "ucd=true", "unit=true"]
    done = subprocess.run(lint, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_chunks_leave_no_trace(released: ReleaseLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven chunks that do not end where partition files end, each in several lines of base64."""
    again = ReleaseLayout(shutil.copytree(released.root, tmp_path / "release"))
    monkeypatch.setattr(exports, "_ROWS", 6)
    monkeypatch.setattr(exports, "_LINE", 300)
    write_exports(again, SLUGS, INFO)
    assert (again.export / FILES[1]).read_bytes() == (released.export / FILES[1]).read_bytes()
    assert pq.read_metadata(again.export / FILES[0]).num_row_groups == 7
    texts = [(layout.export / FILES[2]).read_bytes() for layout in (again, released)]
    assert texts[0] != texts[1] and texts[0].replace(b"\n", b"") == texts[1].replace(b"\n", b"")


def test_a_large_release_has_no_votable_and_older_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = write_release(tmp_path, a_table())
    layout.export.mkdir()
    (layout.export / FILES[2]).write_text("of a build before")
    monkeypatch.setattr(exports, "VOTABLE_ROWS", 39)
    write_exports(layout, SLUGS, INFO)
    assert sorted(path.name for path in layout.export.iterdir()) == sorted(FILES[:2])


def test_a_release_without_rows_has_exports_too(tmp_path: Path) -> None:
    layout = write_release(tmp_path, a_table().slice(0, 0))
    write_exports(layout, SLUGS, INFO)
    names = arrow_schema(SLUGS).names
    assert Table.read(layout.export / FILES[1]).colnames == Table.read(layout.export / FILES[2]).colnames == names
    assert pq.read_table(layout.export / FILES[0]).num_rows == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: pq.write_table(pq.read_table(path).drop_columns(["entropy"]), path), "columns are not those"),
        (lambda path: pq.write_table(pq.read_table(path).slice(1), path), "partition_info.csv says"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "damaged"),
        (lambda path: path.unlink(), "damaged"),
    ],
    ids=["a column less", "a row less", "cut", "gone"],
)
def test_a_damaged_leaf_gives_an_error_and_no_export(tmp_path: Path, damage: object, words: str) -> None:
    layout = write_release(tmp_path, a_table())
    last = layout.partitions()[-1]
    damage(layout.partition_file(last.order, last.pixel))  # type: ignore[operator]
    with pytest.raises(CatalogError, match=words):
        write_exports(layout, SLUGS, INFO)
    assert list(layout.export.iterdir()) == []
