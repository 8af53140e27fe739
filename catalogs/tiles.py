"""The working store: one committed Parquet file for each sky tile, whose footer says what it was made from.

The file is the only record that a tile is done: its metadata match what is wanted (input fingerprint, model,
preprocessing). There is no second record that could disagree with it. A tile that cannot be read commits zero rows and
the reason.
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

_METADATA_KEY = b"morphcat.stamp"
_ROW_GROUP = 65_536

# Reasons of quarantine that have counts of their own.
DUPLICATE, OUTSIDE = "duplicate_object_id", "out_of_footprint"


class QuarantineEntry(BaseModel):
    """One input that has no row: its file and object, a reason code, and details for a person.

    `exception` names what a parser raised, if one did. `attempts` counts how often the input was tried, `first_seen`
    and `last_seen` say when (ISO 8601, UTC).
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

    `source` is the stable name of the folder or file. `origin` is where it was: relative to the folder that holds the
    catalogue if it was below it, so that a workspace can be moved. `set_aside` counts, by reason, the rows of a survey
    catalogue that the target selection left out; they are not inputs. `found` is the number of inputs and rows set
    aside, counted before any was read, or −1 if it is unknown. `remarks` concern the tile as a whole. `reused` is the
    number of rows whose prediction was kept from the previous commit, because their pixels were the same.
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


def with_history(entries: list[QuarantineEntry], previous: TileMetadata | None, utc: str) -> list[QuarantineEntry]:
    """Entries of a new commit, with the attempts and dates of the same objects and reasons in the commit it replaces.

    An entry that was there counts one attempt more; any other is seen for the first time at `utc` (ISO 8601).
    """
    known = {(entry.source_name, entry.reason): entry for entry in previous.quarantine} if previous else {}
    continued = []
    for entry in entries:
        last = known.get((entry.source_name, entry.reason))
        attempts, first_seen = (last.attempts + 1, last.first_seen or utc) if last else (1, utc)
        continued.append(entry.model_copy(update={"attempts": attempts, "first_seen": first_seen, "last_seen": utc}))
    return continued


def commit(catalog: Path, table: pa.Table, metadata: TileMetadata) -> Path:
    """Write the rows and metadata of a tile atomically: to a temporary file, read back, synced, renamed.

    Raises
    ------
    CatalogError : the rows or inputs do not add up with the metadata, the rows have other columns than the catalogue,
        or what was written does not read back.
    """
    _check_counts(table, metadata)
    path = tile_path(catalog, metadata.model_id, metadata.tile_id)
    table = table.replace_schema_metadata({_METADATA_KEY: metadata.model_dump_json().encode()})
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=_ROW_GROUP)
        if _metadata_of(temporary) != metadata or pq.read_metadata(temporary).num_rows != table.num_rows:
            raise CatalogError(f"{path}: what was written does not read back; is the disk full or failing?")
    return path


def _check_counts(table: pa.Table, metadata: TileMetadata) -> None:
    """Every row and input is accounted for, and the columns are those of the catalogue."""
    tile, rows, labelled = f"tile {metadata.tile_id}", table.num_rows, count_classified(table)
    if rows != metadata.classified + metadata.unclassified:
        raise CatalogError(f"{tile}: {rows} rows, but {metadata.classified} + {metadata.unclassified} counted")
    if not table.schema.equals(arrow_schema(metadata.class_slugs)):
        raise CatalogError(f"{tile}: its columns are not those of catalogs.schema, in their order")
    if labelled != metadata.classified:
        raise CatalogError(f"{tile}: {labelled} rows have a label, but {metadata.classified} are counted")
    accounted = metadata.inputs + sum(metadata.set_aside.values())
    if metadata.found >= 0 and metadata.found != accounted:
        raise CatalogError(f"{tile}: {metadata.found} inputs were found, but {accounted} are accounted for")


def read_tile_metadata(path: Path) -> TileMetadata | None:
    """The metadata of a committed tile; None if there is no file, or a damaged one, so that the tile is done again."""
    try:
        return _metadata_of(path)
    except (OSError, pa.ArrowException, ValidationError, KeyError):
        return None


def _metadata_of(path: Path) -> TileMetadata:
    footer = pq.read_metadata(path).metadata or {}
    return TileMetadata.model_validate_json(footer[_METADATA_KEY])


def committed(catalog: Path, model_id: str) -> Iterator[tuple[Path, TileMetadata]]:
    """Every committed tile of a model with its metadata, in the order of tile ids.

    Files that no commit put there (damaged, foreign, a copy under another name) are left out with a warning.
    """
    paths = (catalog / "tiles" / model_id).glob("??/*.parquet")
    for path in sorted((p for p in paths if not p.name.startswith(".")), key=lambda p: p.stem):
        metadata = read_tile_metadata(path)
        if metadata is None or path != tile_path(catalog, metadata.model_id, metadata.tile_id):
            _log.warning("%s is not a committed tile (damaged, or not written by morphcat); it is left out", path)
            continue
        yield path, metadata
