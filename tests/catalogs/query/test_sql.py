"""SQL reads the release and can do nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from catalogs.errors import CatalogError
from catalogs.paths import ReleaseLayout
from catalogs.query.cone_search import Cone
from catalogs.query.sql import find_release, query, select
from catalogs.schema import arrow_schema
from tests.catalogs.conftest import SLUGS, make_table
from tests.catalogs.small_release import write_release

Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> ReleaseLayout:
    """360 objects in partitions of two orders, provenance tables, and a file that is no part of the release."""
    catalog = tmp_path_factory.mktemp("query") / "catalog"
    (catalog / "tiles").mkdir(parents=True)
    (catalog / "tiles" / "working.csv").write_text("a\n1\n")
    table = make_table("a-tile", range(1, 361), unclassified=[12])
    tiles = pa.table({"tile_id": ["a-tile"], "inputs": [602]})
    return write_release(catalog, table, quarantine=pa.table({"reason": ["no_wcs"] * 2}), tiles=tiles)


@pytest.fixture
def released(layout: ReleaseLayout) -> Path:
    return layout.root.parents[1]


def only(catalog: Path, sql: str, release: str | None = None) -> object:
    """The one value of an answer."""
    table = query(catalog, sql, release=release)
    assert table.shape == (1, 1)
    return table[0][0].as_py()


# --- reading ------------------------------------------------------------------------------------------------------


def test_select_sees_the_rows_and_columns_of_the_release(released: Path, layout: ReleaseLayout) -> None:
    assert {p.order for p in layout.partitions()} == {0, 1} and len(layout.partitions()) > 20
    table = query(released, "SELECT * FROM morphology WHERE object_id IN (11, 12, 13, 14) ORDER BY object_id")
    assert table.column_names == arrow_schema(SLUGS).names
    assert table["object_id"].to_pylist() == [11, 12, 13, 14]
    assert only(released, "SELECT count(*) FROM morphology WHERE label = ''") == 1
    assert only(released, "SELECT count(DISTINCT object_id) FROM morphology") == 360


def test_sidecars_are_tables(released: Path) -> None:
    assert only(released, "SELECT count(*) FROM quarantine WHERE reason = 'no_wcs'") == 2
    assert (
        only(released, "SELECT sum(inputs)::INT FROM tiles JOIN morphology USING (tile_id) WHERE object_id = 5") == 602
    )


def test_cones_hold_the_objects_within_a_radius(released: Path) -> None:
    """Position and id of an object of `make_table` follow from each other."""
    whole = query(released, "SELECT object_id FROM morphology WHERE separation(ra, dec, 37, -47) <= 20").to_pydict()
    some = query(released, "SELECT object_id FROM morphology m WHERE ra >= 0 AND m.CONE(37, -47, 20)").to_pydict()
    assert sorted(some["object_id"]) == sorted(whole["object_id"]) and 1 in some["object_id"]
    far = "SELECT count(*) FROM morphology WHERE NOT CONE(37, -47, 20)"
    assert only(released, far) == 360 - len(whole["object_id"])
    assert only(released, "SELECT count(*) FROM morphology WHERE CONE(37, -47, 180)") == 360
    join = "SELECT count(*) FROM morphology a JOIN morphology b USING (object_id)"
    assert only(released, f"{join} WHERE a.CONE(37, -47, 1) AND b.CONE(37, -47, 2)") == 1


def test_a_cone_opens_no_leaf_that_it_does_not_touch(tmp_path: Path) -> None:
    layout = write_release(tmp_path, make_table("t", range(1, 200)))
    near = Cone(37, -47, 1).touched(layout.partitions())
    assert 0 < len(near) < 6
    for partition in set(layout.partitions()) - set(near):
        layout.partition_file(partition.order, partition.pixel).write_bytes(b"damaged")
    assert only(tmp_path, "SELECT count(*) FROM morphology WHERE ra = 37 AND CONE(37, -47, 1)") == 1
    with pytest.raises(CatalogError):
        query(tmp_path, "SELECT count(*) FROM morphology WHERE ra = 37")


def test_numbers_come_as_numbers(released: Path) -> None:
    sql = "SELECT sum(object_id) AS ids, 0.5 AS half, sum(object_id) * 10**15::HUGEINT AS large FROM morphology"
    table = query(released, sql)
    assert [str(t) for t in table.schema.types[:2]] == ["int64", "double"]
    assert table.to_pylist() == [{"ids": 64_980, "half": 0.5, "large": 64_980 * 10**15}]


def test_limit_is_of_the_answer(released: Path) -> None:
    assert query(released, "SELECT * FROM morphology;", limit=7).num_rows == 7
    assert query(released, "SELECT count(*) FROM morphology", limit=7)[0][0].as_py() == 360
    assert query(released, "DESCRIBE morphology", limit=0).num_rows == 0


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


def test_a_release_can_be_named(tmp_path: Path) -> None:
    write_release(tmp_path, make_table("t", range(1, 10)), "2026.11.0")
    write_release(tmp_path, make_table("t", range(1, 11)), "2026.11.1")
    assert only(tmp_path, "SELECT count(*) FROM morphology") == 10
    assert only(tmp_path, "SELECT count(*) FROM morphology", release="2026.11.0") == 9
    with pytest.raises(CatalogError, match="no release 'x'"):
        query(tmp_path, "SELECT 1", release="x")


def test_before_the_first_release_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="morphcat survey"):
        query(tmp_path, "SELECT 1")


def test_a_release_without_rows_has_its_columns(tmp_path: Path) -> None:
    write_release(tmp_path, make_table("t", []))
    table = query(tmp_path, "SELECT * FROM morphology WHERE CONE(1, 2, 3)")
    assert table.num_rows == 0 and table.column_names == arrow_schema(SLUGS).names


@pytest.mark.parametrize("folder", ["it's here", "run=3", "a [1] b", 'say "so"', "häkchen; --", "{x,y}*?"])
def test_any_folder_name_will_do(tmp_path: Path, folder: str) -> None:
    root = tmp_path / folder / "catalog"
    write_release(root, make_table("t", [1, 2]))
    table = query(root, "SELECT * FROM morphology")
    assert table.num_rows == 2 and table.column_names == arrow_schema(SLUGS).names


def test_a_relative_folder_is_found_again_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_release(tmp_path / "catalog", make_table("t", [1, 2]))
    monkeypatch.chdir(tmp_path)
    _, layout = find_release(Path("catalog"))
    monkeypatch.chdir("/")
    assert select(layout, "FROM morphology").num_rows == 2


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
        "SET GLOBAL allowed_directories = ['/']",
        "SET VARIABLE x = 1",
        "CALL pragma_version()",
        "CHECKPOINT",
        "USE memory",
        "COPY FROM DATABASE memory TO x",
        "IMPORT DATABASE 'x'",
        "CREATE SECRET (TYPE s3)",
        "CREATE MACRO f() AS 1",
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


@pytest.mark.parametrize("way", ["{}", "EXPLAIN ANALYZE {}", "SELECT 1; {}", "SELECT * FROM query('{}')"])
@pytest.mark.parametrize("form", ["PARQUET", "CSV"])
def test_the_files_of_the_release_cannot_be_overwritten(
    released: Path, layout: ReleaseLayout, contents: Contents, way: str, form: str
) -> None:
    """They are the files that the statement may open, and DuckDB would open them for writing too."""
    before = contents(released)
    first = layout.partitions()[0]
    for path in (layout.partition_file(first.order, first.pixel), layout.provenance / "new.parquet"):
        copy = f"COPY (SELECT 1 AS a) TO '{path}' (FORMAT {form}, USE_TMP_FILE false)"
        with pytest.raises(CatalogError):
            query(released, way.format(copy.replace("'", "''") if "'{" in way else copy))
    assert contents(released) == before


@pytest.mark.parametrize(
    "source",
    [
        "read_csv('/etc/passwd')",
        "read_text('/etc/passwd')",
        "read_blob('/etc/passwd')",
        "'/etc/passwd'",
        "glob('/etc/*')",
        "read_csv('{catalog}/tiles/working.csv')",
        "read_text('{catalog}/CURRENT')",
        "read_csv('{files}/../../../../../../tiles/working.csv')",
        "read_csv('{files}_other/x.csv')",
        "read_csv('{catalog}/*/working.csv')",
        "read_csv('https://example.org/x.csv')",
        "read_parquet('s3://bucket/x.parquet')",
        "read_parquet('hf://datasets/x/y.parquet')",
        "parquet_scan('/etc/passwd')",
        "sniff_csv('/etc/passwd')",
        "read_json('/etc/passwd')",
        "read_duckdb('/etc/passwd')",
        "query('FROM read_text(''/etc/passwd'')')",
        "info",
        "tables",
        "sql",
    ],
)
def test_no_other_file_or_variable_can_be_read(released: Path, layout: ReleaseLayout, source: str) -> None:
    named = source.format(catalog=released, files=layout.primary / "dataset")
    with pytest.raises(CatalogError):
        query(released, f"SELECT * FROM {named}")


@pytest.mark.parametrize(
    "expression", ["getenv('HOME')", "set_config('x', 'y')", "nextval('s')", "load_extension('x')"]
)
def test_expressions_reach_nothing_outside(released: Path, expression: str) -> None:
    with pytest.raises(CatalogError):
        query(released, f"SELECT {expression}")


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
