"""SQL over a release, read-only: one SELECT that sees the tables of the release and nothing else of the machine."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from catalogs.errors import CatalogError
from catalogs.release import current_release, read_release, table_paths


def query(catalog: Path, sql: str, *, release: str | None = None) -> pa.Table:
    """Run one SELECT on `morphology` and the sidecars (`quarantine`, `tiles`) of a release.

    Parameters
    ----------
    catalog : the catalogue folder.
    release : name of a release; the one that `CURRENT` names when left out.

    Raises
    ------
    CatalogError : there is no (such) release, the statement is not one SELECT, or DuckDB refuses it.
    """
    info = read_release(catalog, release) if release else current_release(catalog)
    if info is None:
        raise CatalogError(f"no release in {catalog} yet: run `morphcat survey` first")
    tables = table_paths(catalog, info.release)
    with duckdb.connect(":memory:") as connection:
        for name, path in tables.items():
            # Else DuckDB makes a column of each folder on the way that is called name=value.
            source = f"read_parquet({_literal(path)}, hive_partitioning = false)"
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {source}")
        # From here on no statement can reach any other file, load an extension, read variables of Python or undo this.
        connection.execute(f"SET allowed_paths = [{', '.join(_literal(p) for p in tables.values())}]")
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        try:
            return connection.sql(_one_select(connection, sql)).to_arrow_table()
        except duckdb.Error as error:
            raise CatalogError(f"{error}") from error


def _one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """The statement, when it is one SELECT (DESCRIBE, SUMMARIZE and SHOW count as such).

    Everything else is refused, not only what makes no rows: `COPY … TO` may write to an allowed path, and EXPLAIN
    ANALYZE runs what it explains.
    """
    statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise CatalogError("the catalogue is read-only: ask it with one SELECT")
    return statements[0]


def _literal(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
