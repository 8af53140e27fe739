"""The sums behind the drift report: over the objects of each sky tile, and over the tiles of each region of the sky.

DuckDB adds them up, one release at a time, so that no row of the catalogue is loaded.

Three populations are counted, because a sky tile that is read again keeps the predictions of objects whose pixels are
the same. Labels, confidences, novelty and the flags of a prediction count newly predicted objects; all other flags
count all objects of the tiles; quarantine counts the inputs of the tiles. An input in quarantine has no position: it
counts where most objects of its tile are, and in no region if the tile has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.errors import CatalogError
from catalogs.healpix import ORDER
from catalogs.paths import NAME, ReleaseLayout
from catalogs.query.sql import select
from catalogs.schema import CERTAINTY_FLAGS, QualityFlag
from pipeline.drift.report import MEANS

NOWHERE = -1  # the cell of inputs whose tile has no object


class Population(StrEnum):
    """The objects or inputs that a mean is taken over."""

    PREDICTED = "predicted"
    READ = "read"
    INPUTS = "inputs"


@dataclass(frozen=True)
class Measure:
    """A number that each member of a population has, as SQL over the rows of the catalogue."""

    name: str
    population: Population
    value: str
    is_class: bool = False

    @property
    def is_share(self) -> bool:
        """Whether the number is 0 or 1, so that its mean is a share."""
        return self.is_class or self.name not in MEANS


@dataclass(frozen=True)
class RegionSums:
    """Sums by region and measure, float64 (R, M), over the members of the measure's population.

    cells : int64 (R,), ascending: HEALPix cells, `NOWHERE` among them.
    tiles : number of tiles with any member; n : number of members; total, squares : sums of x and of x² over members.
    n2, total2, total_n : sums of n², y² and y n over tiles, for n members of a tile whose x add up to y.
    """

    cells: np.ndarray
    tiles: np.ndarray
    n: np.ndarray
    n2: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    total2: np.ndarray
    total_n: np.ndarray


def measures_of(class_slugs: Sequence[str], known: Sequence[str]) -> list[Measure]:
    """What is measured. `class_slugs` are the classes with a share, `known` those of a release by label_id."""
    labels = [
        f"label_id = {known.index(slug)}" if slug in known else "false"  # a class that only another model has
        for slug in class_slugs
    ]
    classes = [
        Measure(slug, Population.PREDICTED, label, True) for slug, label in zip(class_slugs, labels, strict=True)
    ]
    means = [Measure(name, Population.PREDICTED, name) for name in MEANS]
    flags = [
        Measure(
            (flag.name or "").lower(),
            Population.PREDICTED if flag & CERTAINTY_FLAGS else Population.READ,
            f"quality_flags & {int(flag)} <> 0",
        )
        for flag in QualityFlag
    ]
    return [*classes, *means, *flags, Measure("quarantined", Population.INPUTS, "")]


def tiles_since(layout: ReleaseLayout, before: ReleaseLayout | None) -> pa.Table:
    """The tiles of a release (tile_id, run_id, age = 0) that an earlier one does not have from the same run."""
    tiles = _provenance(layout, "tiles", "tile_id", "run_id")
    if before is not None:
        known = _provenance(before, "tiles", "tile_id", "run_id")
        tiles = tiles.join(known, ["tile_id", "run_id"], join_type="left anti")
    return tiles.append_column("age", pa.array(np.zeros(tiles.num_rows, np.int64)))


def tiles_by_age(layout: ReleaseLayout, ages: Mapping[str, int]) -> pa.Table:
    """All tiles of a release (tile_id, run_id, age), with the age of the run that committed each."""
    tiles = _provenance(layout, "tiles", "tile_id", "run_id")
    runs = pa.table({"run_id": list(ages), "age": pa.array(list(ages.values()), pa.int64())})
    return tiles.join(runs, "run_id", join_type="inner")


def ages_of_runs(layouts: Sequence[ReleaseLayout]) -> dict[str, int]:
    """For each run in the newest of these releases, which come newest first, the number of the release that added it.

    That is the oldest one that has the run without a gap; 0 is the newest release.
    """
    ages: dict[str, int] = {}
    remaining: set[str] = set()
    for age, layout in enumerate(layouts):
        runs = set(_provenance(layout, "runs", "run_id")["run_id"].to_pylist())
        remaining = runs if age == 0 else remaining & runs
        if not remaining:
            break
        ages.update(dict.fromkeys(remaining, age))
    return ages


def _provenance(layout: ReleaseLayout, name: str, *columns: str) -> pa.Table:
    """Text columns of a provenance table of a release."""
    path = layout.provenance / f"{name}.parquet"
    try:
        return pq.read_table(
            path, columns=list(columns), schema=pa.schema([(column, pa.string()) for column in columns])
        )
    except (FileNotFoundError, pa.ArrowException) as error:
        raise CatalogError(
            f"{path}: missing or damaged ({error}); `morphcat release verify` checks a release"
        ) from error


def region_sums(
    layout: ReleaseLayout,
    tiles: pa.Table,
    measures: Sequence[Measure],
    *,
    order: int,
    releases: int,
    newly_predicted: bool,
) -> RegionSums:
    """Add up the measures over some tiles of a release.

    Parameters
    ----------
    tiles : the tiles that count, with tile_id, run_id and age.
    order : HEALPix order of the regions.
    releases : how many ages count in each region, from its youngest on.
    newly_predicted : whether to leave out predictions that a tile kept from an earlier run.

    Raises
    ------
    CatalogError : a file of the release is missing or damaged.
    """
    sql = _statement(measures, order, releases, newly_predicted)
    try:
        sums = select(layout, sql, beside={"watched": tiles})
    except FileNotFoundError as error:  # the list of its partitions
        raise CatalogError(f"{error.filename}: missing; `morphcat release verify` checks a release") from error
    columns = {name: sums[name].to_numpy().astype(np.float64) for name in sums.column_names[1:]}
    populations = [measure.population for measure in measures]

    def by_population(name: str) -> np.ndarray:
        return np.stack([columns[f"{name}_{p}"] for p in populations], axis=1)

    def by_measure(name: str) -> np.ndarray:
        return np.stack([columns[f"{name}{i}"] for i in range(len(measures))], axis=1)

    return RegionSums(
        cells=sums["cell"].to_numpy().astype(np.int64),
        tiles=by_population("tiles"),
        n=by_population("n"),
        n2=by_population("nn"),
        total=by_measure("y"),
        squares=by_measure("q"),
        total2=by_measure("yy"),
        total_n=by_measure("yn"),
    )


def _statement(measures: Sequence[Measure], order: int, releases: int, newly_predicted: bool) -> str:
    """One SELECT: sums over each tile and cell, then over the tiles of the youngest releases in each cell.

    Columns of measure i within a tile are y{i}, the sum of its numbers, and q{i}, that of their squares (the same as
    y{i} for a share); n_{population} counts members. Over tiles, yy{i}, yn{i} and nn_{population} are sums of products.
    """
    predicted = "label_id >= 0" + (" AND rows.run_id = watched.run_id" if newly_predicted else "")
    member = {Population.PREDICTED: predicted, Population.READ: "true"}
    within = [f"count(*) FILTER ({condition}) AS n_{population}" for population, condition in member.items()]
    for i, measure in enumerate(measures):
        if measure.population is Population.INPUTS:
            continue
        condition, value = member[measure.population], measure.value
        if measure.is_share:
            within.append(f"count(*) FILTER ({condition} AND {value}) AS y{i}")
        else:
            within.append(f"sum({value}) FILTER ({condition}) AS y{i}")
            within.append(f"sum({value}::DOUBLE * {value}) FILTER ({condition}) AS q{i}")
    quarantine = next(i for i, measure in enumerate(measures) if measure.population is Population.INPUTS)
    over = [
        f"count(*) FILTER (n_{p} > 0) AS tiles_{p}, {_sum(f'n_{p}')} AS n_{p}, {_sum(f'n_{p}', f'n_{p}')} AS nn_{p}"
        for p in Population
    ]
    for i, measure in enumerate(measures):
        y, n, q = f"y{i}", f"n_{measure.population}", f"y{i}" if measure.is_share else f"q{i}"
        over.append(f"{_sum(y)} AS y{i}, {_sum(q)} AS q{i}, {_sum(y, y)} AS yy{i}, {_sum(y, n)} AS yn{i}")
    return f"""
        WITH of_tiles AS (
            SELECT _healpix_29 >> {2 * (ORDER - order)} AS cell, tile_id, any_value(age) AS age, {", ".join(within)}
            FROM {NAME} AS rows JOIN watched USING (tile_id)
            GROUP BY cell, tile_id
        ), places AS (
            SELECT tile_id, arg_max(cell, n_read * 100_000 - cell) AS cell FROM of_tiles GROUP BY tile_id
        ), inputs AS (
            SELECT
                coalesce(cell, {NOWHERE}) AS cell,
                age,
                classified + unclassified + quarantined AS n_inputs,
                quarantined AS y{quarantine}
            FROM tiles JOIN watched USING (tile_id) LEFT JOIN places USING (tile_id)
        ), everything AS (
            SELECT * FROM of_tiles UNION ALL BY NAME SELECT * FROM inputs
        ), young AS (
            SELECT * FROM everything QUALIFY dense_rank() OVER (PARTITION BY cell ORDER BY age) <= {releases}
        )
        SELECT cell, {", ".join(over)} FROM young GROUP BY cell ORDER BY cell
    """


def _sum(*factors: str) -> str:
    """A sum over tiles, as a float: squares may be too large for an integer."""
    return f"coalesce(sum({' * '.join(f'{factor}::DOUBLE' for factor in factors)}), 0)"
