"""The margin cache of a release: for each pixel the rows of other pixels that lie just outside it.

With it a reader crossmatches pixel by pixel and loses no pair at a border. One pixel is a unit of work of its own:
it reads the primary catalogue alone and writes one file. What belongs into a margin follows from positions; nothing
here knows where units run, or what the other columns mean.

A row is in the margin of a pixel if its distance to the pixel's area is at most `MARGIN_ARCSEC`. Rows up to
`SLACK_ARCSEC` farther may be in it too, none beyond.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import cdshealpix
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.coordinates import Angle

from catalogs.atomic import atomic_write
from catalogs.errors import CatalogError
from catalogs.export.vo_metadata import with_widths
from catalogs.healpix import ORDER, healpix_29
from catalogs.paths import MARGIN_ARCSEC, MARGIN_NAME, NAME, Partition, ReleaseLayout, partition_path
from catalogs.releases.partitioning import DEEPEST_ORDER, pixel_range

SLACK_ARCSEC = 0.1
CELL_ORDER = 13  # cells around a pixel in which its margin lies: 26 arcsec across, nowhere less than 17
_DIRECTIONS = 32  # points of the circle around a row; chords between them leave the circle by 0.5 % of its radius
_POSITION = ["_healpix_29", "ra", "dec"]
_SORTED = [("_healpix_29", "ascending"), ("object_id", "ascending")]
_ROW_GROUP = 65_536


def write_margin_file(layout: ReleaseLayout, partitions: Sequence[Partition], order: int, pixel: int) -> int:
    """Write the margin of one pixel of the primary catalogue and return its number of rows.

    The file has the schema of the primary catalogue, with its metadata, and is sorted as its partition files are;
    without rows there is no file. Memory holds one row group of a neighbour at a time, and the margin. Writing it again
    replaces it. The primary catalogue must be complete, with its _common_metadata.

    Raises
    ------
    CatalogError : a pixel is smaller than the cells in which neighbours are looked for.
    """
    path = partition_path(layout.margin, order, pixel)
    found = [
        rows
        for neighbour, cells in _neighbours(partitions, order, pixel)
        for rows in _rows_near(layout.partition_file(neighbour.order, neighbour.pixel), cells, order, pixel)
    ]
    if not found:
        path.unlink(missing_ok=True)
        return 0
    table = pa.concat_tables([rows.replace_schema_metadata(None) for rows in found]).sort_by(_SORTED)
    described = table.replace_schema_metadata(with_widths(_schema(layout).metadata or {}, table))
    with atomic_write(path) as beside:
        pq.write_table(described, beside, compression="zstd", row_group_size=_ROW_GROUP)
    return table.num_rows


def finish_margin(layout: ReleaseLayout, rows: dict[tuple[int, int], int]) -> None:
    """Write what describes the margin as a whole, from the rows (order, pixel) → n that the units returned.

    That is partition_info.csv, _common_metadata, _metadata and hats.properties. Schema, default columns and provenance
    are those of the primary catalogue, which must be complete.

    Raises
    ------
    CatalogError : the files hold another number of rows than the units have said.
    """
    filled = sorted(Partition(order, pixel, n) for (order, pixel), n in rows.items() if n)
    dataset = layout.margin / "dataset"
    dataset.mkdir(parents=True, exist_ok=True)
    schema = _schema(layout)
    footers = []
    for part in filled:
        path = partition_path(layout.margin, part.order, part.pixel)
        footer = pq.read_metadata(path)
        if footer.num_rows != part.rows:
            raise CatalogError(f"{path}: {footer.num_rows} rows, {part.rows} were written; build the release again")
        footer.set_file_path(str(path.relative_to(dataset)))
        footers.append(footer)
    pq.write_metadata(schema, dataset / "_common_metadata")
    pq.write_metadata(schema, dataset / "_metadata", metadata_collector=footers)
    with (layout.margin / "partition_info.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Norder", "Npix", "num_rows"])
        table.writerows((part.order, part.pixel, part.rows) for part in filled)
    _write_properties(layout, filled)


def _schema(layout: ReleaseLayout) -> pa.Schema:
    return pq.read_schema(layout.primary / "dataset" / "_common_metadata")


def _write_properties(layout: ReleaseLayout, filled: Sequence[Partition]) -> None:
    from hats.catalog.dataset.table_properties import TableProperties  # takes a second to import

    primary = TableProperties.read_from_dir(layout.primary)
    TableProperties(
        catalog_name=MARGIN_NAME,
        catalog_type="margin",
        total_rows=sum(part.rows for part in filled),
        ra_column=primary.ra_column,
        dec_column=primary.dec_column,
        default_columns=primary.default_columns,
        healpix_column=primary.healpix_column,
        healpix_order=primary.healpix_order,
        primary_catalog=NAME,
        margin_threshold=MARGIN_ARCSEC,
        hats_order=max((part.order for part in filled), default=0),
        **primary.provenance_dict(by_alias=True),
    ).to_properties_file(layout.margin)


def _neighbours(partitions: Sequence[Partition], order: int, pixel: int) -> Iterator[tuple[Partition, np.ndarray]]:
    """Partitions that touch the pixel, with their cells of CELL_ORDER along it: int64 (M,), ascending."""
    from hats.pixel_math.pixel_margins import get_margin  # takes a second to import

    finest = max(order, *(part.order for part in partitions))
    if finest > DEEPEST_ORDER:
        raise CatalogError(
            f"pixels of order {finest} are too small for a margin of {MARGIN_ARCSEC:g} arcsec, order {DEEPEST_ORDER} "
            "is the finest; build the release with more rows to a pixel"
        )
    cells = np.array(get_margin(order, pixel, CELL_ORDER - order), np.int64)
    by_place = sorted(partitions, key=pixel_range)
    first, after = _to_cells(np.array([pixel_range(part) for part in by_place])).T
    owner = np.searchsorted(first, cells, side="right") - 1
    inside = (owner >= 0) & (cells < after[owner])  # elsewhere the catalogue has no rows
    for number in np.unique(owner[inside]):
        yield by_place[number], cells[inside & (owner == number)]


def _rows_near(path: Path, cells: np.ndarray, order: int, pixel: int) -> Iterator[pa.Table]:
    """The rows of a partition file that are in the cells and belong to the margin of the pixel, by row group.

    All columns of a row group are read only when the positions show that rows of it are wanted.
    """
    with pq.ParquetFile(path) as file:
        healpix = file.schema_arrow.get_field_index("_healpix_29")
        for group in range(file.num_row_groups):
            range_ = file.metadata.row_group(group).column(healpix).statistics
            if range_ is not None and range_.has_min_max and not _any_between(cells, range_.min, range_.max):
                continue
            index, ra, dec = (c.to_numpy() for c in file.read_row_group(group, _POSITION, use_threads=False).columns)
            rows = np.flatnonzero(np.isin(_to_cells(index), cells))
            rows = rows[_reaches(ra[rows], dec[rows], order, pixel)]
            if len(rows):
                yield file.read_row_group(group, use_threads=False).take(rows)


def _to_cells(index: np.ndarray | int) -> np.ndarray:
    return np.asarray(index) >> 2 * (ORDER - CELL_ORDER)


def _any_between(cells: np.ndarray, first: int, last: int) -> bool:
    """Whether one of the cells (ascending) overlaps the range first..last of `_healpix_29`."""
    return bool(
        np.searchsorted(cells, _to_cells(first), side="left") < np.searchsorted(cells, _to_cells(last), side="right")
    )


def _reaches(ra: np.ndarray, dec: np.ndarray, order: int, pixel: int) -> np.ndarray:
    """Whether a circle of MARGIN_ARCSEC around positions outside a pixel reaches into it; bool (N,).

    It does if the circle, drawn a little wider and as a polygon around the true one, has a corner in the pixel, or if
    it holds a corner of the pixel. That is enough because the borders of a pixel that is larger than the circle are
    nearly straight over its width.
    """
    radius = np.radians((MARGIN_ARCSEC + SLACK_ARCSEC) / 3600)
    centre, east, north = (v[:, None] for v in _frame(np.radians(ra), np.radians(dec)))  # (3, 1, N)
    angle = np.linspace(0, 2 * np.pi, _DIRECTIONS, endpoint=False)[:, None]
    x, y, z = np.cos(radius) * centre + np.sin(radius) * (np.cos(angle) * east + np.sin(angle) * north)
    lon, lat = np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arctan2(z, np.hypot(x, y)))  # (D, N)
    around = healpix_29(lon.ravel(), lat.ravel()).reshape(lon.shape) >> 2 * (ORDER - order)
    lon, lat = cdshealpix.nested.vertices(np.array([pixel], np.uint64), order)  # (1, 4)
    corners, _, _ = _frame(Angle(lon).radian.T, Angle(lat).radian.T)  # (3, 4, 1)
    chord = np.linalg.norm(centre - corners, axis=0)  # (4, N)
    return (around == pixel).any(axis=0) | (chord <= 2 * np.sin(radius / 2)).any(axis=0)


def _frame(lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors (3, ...) towards positions (...) in radians, and from there to the east and to the north."""
    centre = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    east = np.stack([-np.sin(lon), np.cos(lon), np.zeros_like(lon)])
    north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    return centre, east, north
