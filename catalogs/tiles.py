"""The working store: one committed Parquet file for each sky tile, whose footer says what it was made from.

That file is the only ledger. "Done" is a committed file whose stamp matches what is wanted (input fingerprint, model,
recipe); there is no second record that could drift apart from it. A tile that cannot be read
commits zero rows and the reason.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from catalogs.atomic import atomic_write
from catalogs.errors import CatalogError
from catalogs.schema import arrow_schema, count_classified

_log = logging.getLogger(__name__)

_STAMP_KEY = b"morphcat.stamp"
_ROW_GROUP = 65_536


DUPLICATE, OUTSIDE = "duplicate_object_id", "out_of_footprint"  # reasons that are counted by themselves


class QuarantineEntry(BaseModel):
    """One input that got no row: which file and object, a reason code, and the details for a person.

    `exception` names what a parser raised, if one did. `attempts` counts how often it was tried, `first_seen` and
    `last_seen` say when (ISO 8601, UTC).
    """

    model_config = ConfigDict(frozen=True)

    file: str
    source_name: str
    reason: str
    detail: str
    exception: str = ""
    attempts: int = 1
    first_seen: str = ""
    last_seen: str = ""


class TileMetadata(BaseModel):
    """What a tile file was made from and how its inputs add up.

    inputs = classified + unclassified + quarantined + out of footprint + duplicates. The last three are counted from
    the entries in `quarantine`, by their reasons.

    `source` is the stable name of the folder or file, `origin` where it lay: relative to the folder that holds the
    catalogue when it lies below it, so that a workspace can be moved. `set_aside` counts rows of a survey
    catalogue that the target selection left out, by reason: they are no inputs. `found` is how many inputs and rows set
    aside the source was seen to hold, counted before any was read; −1 where that cannot be told. `remarks` are about
    the tile as a whole; `reused` rows were taken over from the commit before, because their pixels were the same.
    """

    model_config = ConfigDict(frozen=True)

    tile_id: str
    source: str
    origin: str = ""
    fingerprint: str
    model_id: str
    recipe_digest: str
    run_id: str
    class_slugs: list[str]
    classified: int
    unclassified: int
    quarantine: list[QuarantineEntry] = []
    rejected: str = ""
    set_aside: dict[str, int] = {}
    found: int = -1
    remarks: list[str] = []
    reused: int = 0

    @property
    def inputs(self) -> int:
        """Number of input objects, as far as they could be told apart."""
        return self.classified + self.unclassified + len(self.quarantine)

    @property
    def duplicates(self) -> int:
        """Inputs whose object id came before in the same tile."""
        return sum(entry.reason == DUPLICATE for entry in self.quarantine)

    @property
    def out_of_footprint(self) -> int:
        """Inputs at positions of which there are no pixels."""
        return sum(entry.reason == OUTSIDE for entry in self.quarantine)

    @property
    def quarantined(self) -> int:
        """Inputs that gave no row for any other reason."""
        return len(self.quarantine) - self.duplicates - self.out_of_footprint

    def matches(self, *, fingerprint: str, model_id: str, recipe_digest: str) -> bool:
        """Whether the file holds what these inputs would give."""
        return (self.fingerprint, self.model_id, self.recipe_digest) == (fingerprint, model_id, recipe_digest)


def tile_path(catalog: Path, model_id: str, tile_id: str) -> Path:
    """Where the file of a tile lies: `tiles/<model>/<shard>/<tile>.parquet`, 256 shards."""
    shard = hashlib.sha256(tile_id.encode()).hexdigest()[:2]
    return catalog / "tiles" / model_id / shard / f"{tile_id}.parquet"


def commit(catalog: Path, table: pa.Table, stamp: TileMetadata) -> Path:
    """Write a tile's rows and stamp atomically: beside the data, read back, synced, renamed.

    Raises
    ------
    CatalogError : the rows or inputs do not add up with the stamp, the rows have other columns than the catalogue, or
        what was written does not read back.
    """
    path = tile_path(catalog, stamp.model_id, stamp.tile_id)
    if table.num_rows != stamp.classified + stamp.unclassified:
        raise CatalogError(
            f"tile {stamp.tile_id}: {table.num_rows} rows, but {stamp.classified} + {stamp.unclassified} counted"
        )
    if not table.schema.equals(arrow_schema(stamp.class_slugs)):
        raise CatalogError(f"tile {stamp.tile_id}: its columns are not those of catalogs.schema, in their order")
    if count_classified(table) != stamp.classified:
        raise CatalogError(
            f"tile {stamp.tile_id}: {count_classified(table)} rows have a label, but {stamp.classified} are counted"
        )
    stamped = table.replace_schema_metadata({_STAMP_KEY: stamp.model_dump_json().encode()})
    accounted = stamp.inputs + sum(stamp.set_aside.values())
    if stamp.found >= 0 and stamp.found != accounted:
        raise CatalogError(f"tile {stamp.tile_id}: {stamp.found} inputs were found, but {accounted} are accounted for")
    with atomic_write(path) as beside:
        pq.write_table(stamped, beside, compression="zstd", row_group_size=_ROW_GROUP)
        if _stamp_in(beside) != stamp or pq.read_metadata(beside).num_rows != table.num_rows:
            raise CatalogError(f"{path}: what was written does not read back; is the disk full or failing?")
    return path


def read_tile_metadata(path: Path) -> TileMetadata | None:
    """The stamp of a committed tile; None when there is no file or it cannot be trusted (it is then made again)."""
    try:
        return _stamp_in(path)
    except (OSError, pa.ArrowException, ValidationError, KeyError):
        return None


def _stamp_in(path: Path) -> TileMetadata:
    metadata = pq.read_metadata(path).metadata or {}
    return TileMetadata.model_validate_json(metadata[_STAMP_KEY])


def committed(catalog: Path, model_id: str) -> Iterator[tuple[Path, TileMetadata]]:
    """Every committed tile of a model with its stamp, in the order of tile ids.

    Files that no commit put there (damaged, foreign, a copy under another name) are left out with a warning.
    """
    paths = (catalog / "tiles" / model_id).glob("??/*.parquet")
    for path in sorted((p for p in paths if not p.name.startswith(".")), key=lambda p: p.stem):
        stamp = read_tile_metadata(path)
        if stamp is None or path != tile_path(catalog, stamp.model_id, stamp.tile_id):
            _log.warning("%s is no committed tile (damaged, or not written by morphcat); it is left out", path)
            continue
        yield path, stamp
