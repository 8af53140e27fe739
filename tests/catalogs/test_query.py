"""SQL reads the release and can do nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from catalogs.errors import CatalogError
from catalogs.query import query
from catalogs.release import publish, table_paths
from catalogs.schema import arrow_schema
from tests.catalogs.conftest import MODEL, SLUGS, commit_tile

Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def released(catalog: Path) -> Path:
    publish(catalog, MODEL)
    return catalog


def only(catalog: Path, sql: str, release: str | None = None) -> object:
    """The one value of an answer."""
    table = query(catalog, sql, release=release)
    assert table.shape == (1, 1)
    return table[0][0].as_py()


# --- reading ------------------------------------------------------------------------------------------------------


def test_select_sees_the_rows_and_columns_of_the_release(released: Path) -> None:
    table = query(released, "SELECT * FROM morphology WHERE tile_id = 'b-tile' ORDER BY object_id")
    assert table.column_names == arrow_schema(SLUGS).names
    assert table["object_id"].to_pylist() == [11, 12, 13, 14]
    assert only(released, "SELECT count(*) FROM morphology WHERE label = ''") == 1


def test_sidecars_are_tables(released: Path) -> None:
    assert only(released, "SELECT count(*) FROM quarantine WHERE reason = 'no_wcs'") == 2
    assert only(released, "SELECT sum(inputs)::INT FROM tiles") == 11


@pytest.mark.parametrize(
    "sql",
    [
        "FROM morphology LIMIT 3",
        "DESCRIBE morphology",
        "SUMMARIZE morphology",
        "SHOW TABLES",
        "WITH x AS (SELECT 1 AS a) SELECT a FROM x;",
        "VALUES (1), (2)",
    ],
)
def test_what_only_reads_is_welcome(released: Path, sql: str) -> None:
    assert query(released, sql).num_rows > 0


def test_an_empty_answer_keeps_its_columns(released: Path) -> None:
    table = query(released, "SELECT object_id, label FROM morphology WHERE object_id < 0")
    assert table.num_rows == 0 and table.column_names == ["object_id", "label"]


def test_a_release_can_be_named(released: Path) -> None:
    first = (released / "CURRENT").read_text().strip()
    commit_tile(released, "c-tile", [31])
    publish(released, MODEL)
    assert only(released, "SELECT count(*) FROM morphology") == 10
    assert only(released, "SELECT count(*) FROM morphology", release=first) == 9
    with pytest.raises(CatalogError, match="no release 'x'"):
        query(released, "SELECT 1", release="x")


def test_before_the_first_release_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="morphcat survey"):
        query(tmp_path, "SELECT 1")


@pytest.mark.parametrize("folder", ["it's here", "run=3", "a [1] b", 'say "so"', "häkchen; --"])
def test_any_folder_name_will_do(tmp_path: Path, folder: str) -> None:
    root = tmp_path / folder / "catalog"
    commit_tile(root, "t", [1, 2])
    publish(root, MODEL)
    table = query(root, "SELECT * FROM morphology")
    assert table.num_rows == 2 and table.column_names == arrow_schema(SLUGS).names


# --- and nothing else ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql", ["SELEKT 1", "SELECT nothing FROM morphology", "SELECT * FROM nowhere", "SELECT 'x'::INT"]
)
def test_errors_of_the_statement_are_those_of_the_catalogue(released: Path, sql: str) -> None:
    with pytest.raises(CatalogError):
        query(released, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "-- nothing",
        "CREATE TABLE x AS SELECT 1",
        "CREATE TABLE x (a INT)",
        "INSERT INTO morphology SELECT * FROM morphology",
        "DELETE FROM morphology",
        "UPDATE morphology SET label = 'x'",
        "DROP VIEW morphology",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA disable_checkpoint_on_shutdown",
        "ATTACH 'x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "COPY morphology TO 'x.csv'",
        "EXPORT DATABASE 'x'",
        "PREPARE p AS SELECT 1",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP VIEW morphology",
        "EXPLAIN ANALYZE SELECT 1",
    ],
)
def test_all_but_one_select_is_refused_with_a_clear_word(released: Path, sql: str) -> None:
    with pytest.raises(CatalogError, match="read-only: ask it with one SELECT"):
        query(released, sql)


@pytest.mark.parametrize("way", ["{}", "EXPLAIN ANALYZE {}", "SELECT 1; {}"])
@pytest.mark.parametrize("form", ["PARQUET", "CSV"])
def test_the_files_of_the_release_can_not_be_overwritten(
    released: Path, contents: Contents, way: str, form: str
) -> None:
    """They are the files that the statement may open, and DuckDB would open them for writing too."""
    before = contents(released)
    path = table_paths(released, (released / "CURRENT").read_text().strip())["morphology"]
    copy = f"COPY (SELECT 1 AS a) TO '{path}' (FORMAT {form}, USE_TMP_FILE false)"
    with pytest.raises(CatalogError):
        query(released, way.format(copy))
    assert contents(released) == before


@pytest.mark.parametrize(
    "source",
    [
        "read_csv('/etc/passwd')",
        "read_text('/etc/passwd')",
        "read_blob('/etc/passwd')",
        "'/etc/passwd'",
        "glob('/etc/*')",
        "read_parquet('{tile}')",
        "read_csv('https://example.org/x.csv')",
        "info",
        "tables",
        "sql",
    ],
)
def test_no_other_file_or_variable_can_be_read(released: Path, source: str) -> None:
    tile = next((released / "tiles").rglob("*.parquet"))
    with pytest.raises(CatalogError):
        query(released, f"SELECT * FROM {source.format(tile=tile)}")


def test_statements_write_nowhere(released: Path, tmp_path: Path, contents: Contents) -> None:
    before = contents(tmp_path)
    for sql in (
        f"COPY morphology TO '{tmp_path}/x.csv'",
        f"ATTACH '{tmp_path}/x.db'",
        f"EXPORT DATABASE '{tmp_path}/x'",
    ):
        with pytest.raises(CatalogError):
            query(released, sql)
    assert contents(tmp_path) == before
