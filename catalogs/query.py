"""SQL over a release, read-only: the statement sees the tables of the release and nothing else of the machine."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from catalogs.errors import CatalogError
from catalogs.release import current_release, read_release, table_paths


def query(catalog: Path, sql: str, *, release: str | None = None) -> pa.Table:
    """Run one SQL statement on `morphology` and the sidecars (`quarantine`, `tiles`) of a release.

    Parameters
    ----------
    catalog : the catalogue folder.
    release : name of a release; the one that `CURRENT` names when left out.

    Raises
    ------
    CatalogError : there is no release yet, or DuckDB refuses the statement.
    """
    info = read_release(catalog, release) if release else current_release(catalog)
    if info is None:
        raise CatalogError(f"no release in {catalog} yet: run `morphcat survey` first")
    tables = table_paths(catalog, info.release)
    with duckdb.connect(":memory:") as connection:
        for name, path in tables.items():
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({_literal(path)})")
        # From here on no statement can reach any other file, load an extension or undo this.
        connection.execute(f"SET allowed_paths = [{', '.join(_literal(p) for p in tables.values())}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        try:
            return connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise CatalogError(f"{error}") from error
        except AttributeError as error:  # a statement without a result, such as CREATE
            raise CatalogError("the statement gives no rows; the catalogue is read-only, ask it with SELECT") from error


def _literal(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
