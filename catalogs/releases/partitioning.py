"""Which HEALPix pixels a release has, and which rows of which committed tiles go into each.

The plan reads two columns of every tile, 16 bytes a row; everything else is read pixel by pixel
(catalogs.releases.partition_writer). It knows neither how the units are run nor what a release looks like on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.errors import CatalogError
from catalogs.paths import Partition
from catalogs.schema import arrow_schema
from catalogs.tiles import TileMetadata

MAP_ORDER = 10  # cells of 3.4 arcmin: the coverage map, and the finest cells that are counted
SKY_ORDER = 29  # of `_healpix_29`
DEEPEST_ORDER = 12  # cells of 51 arcsec, wider than the margin: no partition is smaller, however full it is


@dataclass(frozen=True)
class TileShare:
    """The rows of one tile file that lie in a pixel; `left_out` are row numbers in the file that no release takes."""

    path: str
    left_out: tuple[int, ...]


@dataclass(frozen=True)
class PlannedPixel:
    """One partition: its pixel, the rows that it will hold, the tiles they come from, and a digest of all of this."""

    partition: Partition
    tiles: tuple[TileShare, ...]
    digest: str


@dataclass(frozen=True)
class Duplicate:
    """A row whose object has a row in another tile, or before it in the same one."""

    path: Path
    tile_id: str
    row: int


@dataclass(frozen=True)
class ReleasePlan:
    """All partitions of a release. `cells` and `counts`, int64 (M,): objects in each occupied cell of `MAP_ORDER`."""

    pixels: tuple[PlannedPixel, ...]
    duplicates: tuple[Duplicate, ...]
    cells: np.ndarray
    counts: np.ndarray

    @property
    def rows(self) -> int:
        """Objects of the release."""
        return sum(pixel.partition.rows for pixel in self.pixels)


def slugs_of(tiles: Sequence[tuple[Path, TileMetadata]]) -> list[str]:
    """The classes of the tiles. Raises CatalogError when they disagree."""
    slugs = {tuple(metadata.class_slugs) for _, metadata in tiles}
    if len(slugs) != 1:
        raise CatalogError(f"tiles of {tiles[0][1].model_id} disagree about the classes: {slugs}")
    return list(next(iter(slugs)))


def plan_release(tiles: Sequence[tuple[Path, TileMetadata]], max_rows: int, made_by: str) -> ReleasePlan:
    """Plan the partition files of a release from committed tiles, in the order of their ids.

    Parameters
    ----------
    max_rows : most rows of a partition file; a cell of `DEEPEST_ORDER` may hold more.
    made_by : what else decides the content of a partition file (format, schema); part of every digest.

    Of an object that is in several tiles, the row first by position and tile id stays. Memory: about 50 bytes a row.

    Raises
    ------
    CatalogError : a tile is damaged, has other columns, or the tiles disagree about the classes.
    """
    schema = arrow_schema(slugs_of(tiles))
    columns = [_positions_and_ids(path, schema) for path, _ in tiles]
    ends = np.cumsum([0] + [len(positions) for positions, _ in columns])
    positions = np.concatenate([positions for positions, _ in columns])
    ids = np.concatenate([ids for _, ids in columns])
    del columns
    dropped = second_rows(ids, positions)
    kept = np.ones(len(ids), dtype=bool)
    kept[dropped] = False
    partitions = adaptive_partitions(positions[kept], max_rows)
    cells, counts = np.unique(positions[kept] >> _shift(MAP_ORDER), return_counts=True)
    tile_of = np.searchsorted(ends, dropped, side="right") - 1
    duplicates = (
        Duplicate(tiles[t][0], tiles[t][1].tile_id, int(row - ends[t])) for t, row in zip(tile_of, dropped, strict=True)
    )
    pixels = _pixels(tiles, ends, positions, kept, partitions, made_by)
    return ReleasePlan(tuple(pixels), tuple(duplicates), cells, counts)


def _shift(order: int) -> int:
    """Bits between an index of `order` and one of order 29."""
    return 2 * (SKY_ORDER - order)


def pixel_range(partition: Partition) -> tuple[int, int]:
    """First index of order 29 in a pixel, and the first after it."""
    shift = _shift(partition.order)
    return partition.pixel << shift, (partition.pixel + 1) << shift


def _positions_and_ids(path: Path, schema: pa.Schema) -> tuple[np.ndarray, np.ndarray]:
    """`_healpix_29` and `object_id` of a tile file, each int64 (N,)."""
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(schema):
                raise CatalogError(
                    f"{path}: its columns are not those of this version; delete the file and survey again"
                )
            table = file.read(["_healpix_29", "object_id"], use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: damaged ({error}); delete the file and survey again") from error
    return table["_healpix_29"].to_numpy(), table["object_id"].to_numpy()


def second_rows(ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Row numbers, ascending, of all but the first row of each object by position and then row number.

    Both arrays are int64 (N,).
    """
    ordered = np.sort(ids)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    rows = np.flatnonzero(np.isin(ids, repeated)) if len(repeated) else np.empty(0, np.int64)
    rows = rows[np.lexsort((rows, positions[rows], ids[rows]))]
    return np.sort(rows[1:][ids[rows[1:]] == ids[rows[:-1]]])


def adaptive_partitions(positions: np.ndarray, max_rows: int) -> list[Partition]:
    """The largest pixels of at most `max_rows` of these positions each, int64 (N,) of order 29, in their order.

    `hats.pixel_math.generate_alignment` gives the same partitions from a histogram of one fixed order, every cell of
    the sphere visited in a loop; here only occupied cells are, and the order goes as deep as the rows need.
    """
    found: list[Partition] = []
    left = np.sort(positions)
    for order in range(DEEPEST_ORDER + 1):
        pixels, counts = np.unique(left >> _shift(order), return_counts=True)
        fits = (counts <= max_rows) | (order == DEEPEST_ORDER)
        found += [Partition(order, int(p), int(n)) for p, n in zip(pixels[fits], counts[fits], strict=True)]
        left = left[np.repeat(~fits, counts)]
        if not len(left):
            break
    return sorted(found, key=pixel_range)


def _pixels(
    tiles: Sequence[tuple[Path, TileMetadata]],
    ends: np.ndarray,
    positions: np.ndarray,
    kept: np.ndarray,
    partitions: Sequence[Partition],
    made_by: str,
) -> Iterator[PlannedPixel]:
    """Which tiles go into each partition, and what decides its content."""
    starts = np.array([pixel_range(partition)[0] for partition in partitions], dtype=np.int64)
    shares: list[list[TileShare]] = [[] for _ in partitions]
    digests = [hashlib.sha256(f"{made_by} {p.order} {p.pixel}".encode()) for p in partitions]
    for number, (path, metadata) in enumerate(tiles):
        rows = slice(ends[number], ends[number + 1])
        within = np.searchsorted(starts, positions[rows], side="right") - 1
        takes = kept[rows]
        made_from = (metadata.tile_id, metadata.fingerprint, metadata.model_id, metadata.recipe_digest, metadata.run_id)
        source = " ".join(made_from).encode()
        for pixel in np.unique(within[takes]):
            left_out = tuple(int(row) for row in np.flatnonzero((within == pixel) & ~takes))
            shares[pixel].append(TileShare(str(path), left_out))
            digests[pixel].update(source + repr(left_out).encode())
            digests[pixel].update(np.ascontiguousarray(positions[rows][within == pixel]).tobytes())
    for partition, tiles_of, digest in zip(partitions, shares, digests, strict=True):
        yield PlannedPixel(partition, tuple(tiles_of), digest.hexdigest()[:16])
