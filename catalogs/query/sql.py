"""SQL over a release, read-only: one SELECT that sees the tables of the release and nothing else of the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa

from catalogs.errors import CatalogError
from catalogs.paths import NAME, Partition, ReleaseLayout
from catalogs.query.cone_search import SEPARATION, expand_cones, is_confined
from catalogs.releases.registry import ReleaseInfo, current_release, read_release


def query(catalog: Path, sql: str, *, release: str | None = None, limit: int | None = None) -> pa.Table:
    """Run one SELECT on `morphology` and the provenance tables of a release (`tiles`, `runs`, `quarantine`, …).

    Beside the SQL of DuckDB there are `CONE(ra, dec, radius)`, true for the rows within a circle (numbers, in degrees),
    and `separation(ra1, dec1, ra2, dec2)`, degrees between two positions.

    Parameters
    ----------
    catalog : the catalogue folder.
    release : name of a release; the one that `CURRENT` names when left out.
    limit : most rows of the answer; all when left out.

    Raises
    ------
    CatalogError : there is no (such) release, the statement is not one SELECT, or DuckDB refuses it.
    """
    _, layout = find_release(catalog, release)
    return select(layout, sql, limit=limit)


def find_release(catalog: Path, release: str | None = None) -> tuple[ReleaseInfo, ReleaseLayout]:
    """A release, the current one when no name is given, and where it lies (an absolute path).

    Raises CatalogError when there is no (such) release.
    """
    info = read_release(catalog, release) if release else current_release(catalog)
    if info is None:
        raise CatalogError(f"no release in {catalog} yet: run `morphcat survey` first")
    return info, ReleaseLayout((catalog / "releases" / info.release).resolve())


def select(
    layout: ReleaseLayout,
    sql: str,
    *,
    among: Sequence[Partition] | None = None,
    limit: int | None = None,
    beside: Mapping[str, pa.Table] | None = None,
) -> pa.Table:
    """Run one SELECT, as `query`, on a release that is found already.

    Parameters
    ----------
    among : the partitions that `morphology` shall consist of, all when left out; no other one is opened.
    beside : further tables by name, which the statement may join.
    """
    expanded, cones = expand_cones(sql)
    # What does not fit into memory goes where others cannot read it, not into the folder one happens to stand in.
    with TemporaryDirectory(prefix="morphcat-") as spill, duckdb.connect(":memory:") as connection:
        if among is None:
            among = layout.partitions()
            if len(cones) == 1 and _is_confined(connection, sql):
                among = cones[0].touched(among)
        try:
            for name, table in (beside or {}).items():
                connection.register(name, table)
            _close(connection, layout, among, spill)
            answer = connection.sql(_one_select(connection, expanded))
            return _without_decimals((answer if limit is None else answer.limit(limit)).to_arrow_table())
        except duckdb.Error as error:
            raise CatalogError(f"{error}") from error


def _is_confined(connection: duckdb.DuckDBPyConnection, sql: str) -> bool:
    """Whether a statement with one CONE needs only the partition files that it touches."""
    row = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    statement = json.loads(row[0]) if row else {"error": True}
    return not statement["error"] and is_confined(statement, NAME)


def _close(
    connection: duckdb.DuckDBPyConnection, layout: ReleaseLayout, among: Sequence[Partition], spill: str
) -> None:
    """Make the tables of a release views of a connection, which from then on can reach nothing but their folders."""
    connection.execute(SEPARATION)
    for name, paths in _tables(layout, among).items():
        # Else DuckDB makes a column of each folder on the way that is called name=value.
        source = f"read_parquet({_literals(*paths)}, hive_partitioning = false)"
        connection.execute(f'CREATE VIEW "{name}" AS SELECT * FROM {source}')
    connection.execute(f"SET temp_directory = {_literals(Path(spill))[1:-1]}")
    connection.execute(f"SET allowed_directories = {_literals(layout.primary / 'dataset', layout.provenance)}")
    # Nor can a statement load an extension, read variables of Python or undo this.
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _tables(layout: ReleaseLayout, partitions: Sequence[Partition]) -> dict[str, list[Path]]:
    """Name and Parquet files of every table. A catalogue without rows is its columns alone."""
    files = [layout.partition_file(p.order, p.pixel) for p in partitions]
    tables = {path.stem: [path] for path in sorted(layout.provenance.glob("*.parquet"))}
    return {NAME: files or [layout.primary / "dataset" / "_common_metadata"], **tables}


def _one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """The statement, when it is one SELECT (DESCRIBE, SUMMARIZE and SHOW count as such).

    Everything else is refused, not only what makes no rows: `COPY … TO` may write to an allowed path, and EXPLAIN
    ANALYZE runs what it explains.
    """
    statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise CatalogError("the catalogue is read-only: ask it with one SELECT")
    return statements[0]


def _without_decimals(table: pa.Table) -> pa.Table:
    """The answer with int64 for sums of integers and float64 for 0.5, which DuckDB gives as decimals of 38 digits.

    A sum that is too large for an int64 stays a decimal.
    """
    for i, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type):
            try:
                plain = table.column(i).cast(pa.float64() if field.type.scale else pa.int64())
            except pa.ArrowInvalid:
                continue
            table = table.set_column(i, field.name, plain)
    return table


def _literals(*paths: Path) -> str:
    """A list of paths in SQL."""
    return "[" + ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths) + "]"
