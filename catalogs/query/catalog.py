"""The catalogue from Python: one release, opened once. Reads only, and imports each reader when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from catalogs.errors import CatalogError
from catalogs.paths import NAME, Partition, ReleaseLayout
from catalogs.query.cone_search import Cone
from catalogs.query.sql import find_release, select
from catalogs.releases.registry import ReleaseInfo
from catalogs.schema import FLAG_MEANINGS, Column, QualityFlag, catalogue_columns

if TYPE_CHECKING:
    import pandas as pd

_ARCSEC = 3600


@dataclass(frozen=True)
class Catalogue:
    """One release of a catalogue; what is published meanwhile changes nothing in it.

    `info` is what the release says of itself, `layout` where its files lie.
    """

    info: ReleaseInfo
    layout: ReleaseLayout

    @property
    def release(self) -> str:
        """The name of the release."""
        return self.info.release

    @property
    def columns(self) -> tuple[Column, ...]:
        """Name, type, unit, UCD and meaning of each column of `morphology`."""
        return catalogue_columns(self.info.class_slugs)

    def sql(self, statement: str, *, limit: int | None = None) -> pd.DataFrame:
        """The answer to one SELECT, as pandas; see `catalogs.query.sql.query` for tables and `CONE`.

        Raises CatalogError when it is not one SELECT, or DuckDB refuses it.
        """
        return self.arrow(statement, limit=limit).to_pandas()

    def arrow(self, statement: str, *, limit: int | None = None) -> pa.Table:
        """The answer to one SELECT, as an Arrow table."""
        return select(self.layout, statement, limit=limit)

    def cone(self, ra: float, dec: float, radius_deg: float, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Objects within a circle, the nearest first; `distance` from its centre in arcsec is added as last column.

        Parameters
        ----------
        ra, dec : centre, ICRS, in degrees.
        radius_deg : in degrees, above 0 and up to 180; the border belongs to the circle.
        columns : those to read; all when left out.

        Raises
        ------
        CatalogError : there is no such position, radius or column.
        """
        return self.cone_arrow(Cone(ra, dec, radius_deg), columns).to_pandas()

    def cone_arrow(self, cone: Cone, columns: Sequence[str] | None = None, *, limit: int | None = None) -> pa.Table:
        """Like `cone`, as an Arrow table of at most `limit` rows. Opens only partitions that the circle touches."""
        names = ", ".join(f'"{name}"' for name in self._known(columns))
        sql = (
            f"SELECT {names}, {cone.separation()} * {_ARCSEC} AS distance FROM {NAME} "
            f"WHERE {cone.condition()} ORDER BY distance, object_id"
        )
        return select(self.layout, sql, among=cone.touched(self.layout.partitions()), limit=limit)

    def find(self, object_id: int) -> pd.Series:
        """The row of one object. One partition file is opened, which the id index names.

        Raises CatalogError when the release has no such object.
        """
        from catalogs.releases.id_index import find

        place = find(self.layout, object_id)
        among = [Partition(*place, rows=0)] if place else []
        rows = select(self.layout, f"SELECT * FROM {NAME} WHERE object_id = {object_id:d}", among=among)
        if rows.num_rows == 0:
            raise CatalogError(f"no object {object_id} in release {self.release}; `quarantine` may say why")
        return rows.to_pandas().iloc[0]

    def to_pandas(self, columns: Sequence[str] | None = None, filters: Sequence[Any] | None = None) -> pd.DataFrame:
        """The primary table, or some columns and rows of it, in the order of `_healpix_29`.

        Parameters
        ----------
        columns : those to read; all when left out.
        filters : as of `pandas.read_parquet`: [("confidence", ">", 0.9)], all of which must hold.
        """
        import pyarrow.parquet as pq

        # Folders called name=value must not become columns.
        table = pq.read_table(self._files(), columns=self._known(columns), filters=filters, partitioning=None)
        return table.to_pandas()

    def to_dask(self, columns: Sequence[str] | None = None) -> Any:
        """The primary table as a Dask DataFrame, a partition file at a time."""
        frames = _imported("dask.dataframe", "dask[dataframe]")
        files = [str(path) for path in self._files()]
        return frames.read_parquet(files, columns=self._known(columns), dataset={"partitioning": None})

    def lsdb(self, **options: Any) -> Any:
        """The release as an LSDB catalogue with its margin; `options` as of `lsdb.open_catalog`."""
        return _imported("lsdb", "morphcat[lsdb]").open_catalog(str(self.layout.collection), **options)

    def decode(self, flags: int) -> list[str]:
        """The names of the bits in a value of `quality_flags`. Raises CatalogError for bits that are none."""
        return [name for name, _ in describe_flags(flags)]

    def decode_set(self, pred_set: int) -> list[str]:
        """The classes in a value of `pred_set`. Raises CatalogError for bits of no class of the release."""
        slugs = self.info.class_slugs
        if not 0 <= pred_set < 1 << len(slugs):
            raise CatalogError(f"{pred_set} is no set of the {len(slugs)} classes of release {self.release}")
        return [slug for i, slug in enumerate(slugs) if pred_set >> i & 1]

    def _known(self, columns: Sequence[str] | None) -> list[str]:
        """Names of columns that exist; all when none are given."""
        names = [column.name for column in self.columns]
        for name in columns or ():
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f", did you mean {near[0]!r}?" if near else f" (there are: {', '.join(names)})"
                raise CatalogError(f"no column {name!r} in release {self.release}{hint}")
        return names if columns is None else list(columns)

    def _files(self) -> list[Path]:
        """The partition files in the order of the sky; of an empty catalogue, its columns alone."""
        ordered = sorted(self.layout.partitions(), key=lambda p: p.pixel << 2 * (29 - p.order))
        files = [self.layout.partition_file(p.order, p.pixel) for p in ordered]
        return files or [self.layout.primary / "dataset" / "_common_metadata"]


def open_catalogue(folder: Path, release: str | None = None) -> Catalogue:
    """Open a release of the catalogue in `folder`, the current one when no name is given.

    Raises CatalogError when there is no (such) release.
    """
    return Catalogue(*find_release(folder, release))


def describe_flags(flags: int) -> list[tuple[str, str]]:
    """Name and meaning of each bit in a value of `quality_flags`. Raises CatalogError for bits that are none."""
    known = sum(QualityFlag)
    if flags < 0 or flags & ~known:
        raise CatalogError(f"{flags} is no value of quality_flags: its bits add up to {known} at most")
    return [((flag.name or "").lower(), text) for flag, text in FLAG_MEANINGS.items() if flags & flag]


def _imported(module: str, package: str) -> Any:
    """A package that not every reader of a catalogue has."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CatalogError(f"{module} cannot be imported ({error}): pip install '{package}'") from error
