"""The tables beside the rows of a release: its tiles, runs, partitions, and every input that got no row.

They are made from the metadata of the tiles and the receipts of the partition files. What a run was made with, and how
it went, is told from outside.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from catalogs.paths import ReleaseLayout
from catalogs.releases.partition_writer import PartitionFile, ReusablePartition
from catalogs.releases.partitioning import Duplicate
from catalogs.schema import Column
from catalogs.tiles import DUPLICATE, TileMetadata

QUARANTINE_SCHEMA = pa.schema(
    [
        ("tile_id", pa.string()),
        ("file", pa.string()),
        ("source_name", pa.string()),
        ("reason", pa.string()),
        ("exception", pa.string()),
        ("attempts", pa.int32()),
        ("first_seen", pa.string()),
        ("last_seen", pa.string()),
        ("detail", pa.string()),
    ]
)
RUNS_COLUMNS = (
    Column("run_id", pa.string(), "", "", "the run, as rows name it"),
    Column("tiles", pa.int32(), "", "", "sky tiles of this release that it committed"),
    Column("settings_digest", pa.string(), "", "", "digest of all settings"),
    Column("git_revision", pa.string(), "", "", "commit of the code; empty where it was no checkout"),
    Column("versions", pa.string(), "", "", "versions of the software, as JSON"),
    Column("model_id", pa.string(), "", "", "the model that classified"),
    Column("started", pa.string(), "", "", "when it began, ISO 8601, UTC"),
    Column("seconds", pa.float64(), "s", "", "time it classified"),
    Column("kind", pa.string(), "", "", "where its units ran, as the setting workers.kind says"),
    Column("workers", pa.int32(), "", "", "number of workers, where the settings decide it"),
    Column("device", pa.string(), "", "", "device of the network: cpu or cuda"),
    Column("host", pa.string(), "", "", "the machine that it was started on"),
    Column("tiles_done", pa.int32(), "", "", "sky tiles that it committed"),
    Column("tiles_failed", pa.int32(), "", "", "sky tiles that it could not finish"),
    Column("classified", pa.int64(), "", "", "objects with a label in the tiles that it committed"),
    Column("unclassified", pa.int64(), "", "", "objects without a label in these"),
    Column("quarantined", pa.int64(), "", "", "inputs of these in quarantine"),
    Column("reused", pa.int64(), "", "", "objects in these that kept the prediction of an earlier run"),
    Column("objects_per_second", pa.float64(), "s-1", "", "objects, with a label or without, in a second of `seconds`"),
    Column("simulated", pa.bool_(), "", "", "true: its rows are of a simulated sky; null: that cannot be told apart"),
)
RUNS_SCHEMA = pa.schema([pa.field(column.name, column.type) for column in RUNS_COLUMNS])
PARTITIONS_SCHEMA = pa.schema(
    [
        ("order", pa.int16()),
        ("pixel", pa.int64()),
        ("rows", pa.int64()),
        ("classified", pa.int64()),
        ("simulated", pa.int64()),
        ("digest", pa.string()),
        ("sha256", pa.string()),
        ("made", pa.string()),
    ]
)


class RunRecord(BaseModel):
    """What a run was made with and how it went; empty or None what is not known, as of a run that was killed.

    `versions` by package, `started` in ISO 8601 (UTC), `seconds` of classification. The counts are of what the run
    committed itself, which later runs may have replaced.
    """

    model_config = ConfigDict(frozen=True)

    settings_digest: str = ""
    git_revision: str = ""
    versions: Mapping[str, str] = {}
    started: str | None = None
    seconds: float | None = None
    kind: str | None = None
    workers: int | None = None
    device: str | None = None
    host: str | None = None
    tiles_done: int | None = None
    tiles_failed: int | None = None
    classified: int | None = None
    unclassified: int | None = None
    quarantined: int | None = None
    reused: int | None = None

    @property
    def objects_per_second(self) -> float | None:
        """Rows that were committed in a second of classification."""
        if not self.seconds or self.classified is None or self.unclassified is None:
            return None
        return (self.classified + self.unclassified) / self.seconds


def write_provenance(
    layout: ReleaseLayout,
    tiles: Sequence[tuple[Path, TileMetadata]],
    duplicates: Sequence[Duplicate],
    files: Sequence[PartitionFile],
    runs: Mapping[str, RunRecord],
) -> None:
    """Write tiles, runs, quarantine and partitions as Parquet."""
    layout.provenance.mkdir(parents=True, exist_ok=True)
    tile_metadata = [metadata for _, metadata in tiles]
    tables = {
        "quarantine": quarantine_table(tile_metadata, duplicates),
        "tiles": tiles_table(tile_metadata),
        "runs": runs_table(tile_metadata, files, runs),
        "partitions": pa.Table.from_pylist([asdict(file) for file in files], schema=PARTITIONS_SCHEMA),
    }
    for name, table in tables.items():
        pq.write_table(table, layout.provenance / f"{name}.parquet", compression="zstd")


def partition_files(layout: ReleaseLayout) -> dict[tuple[int, int, str], ReusablePartition]:
    """The partition files of a release by order, pixel and digest of what they were made from; none if not recorded."""
    path = layout.provenance / "partitions.parquet"
    if not path.is_file():
        return {}
    return {
        (row["order"], row["pixel"], row["digest"]): ReusablePartition(
            str(layout.partition_file(row["order"], row["pixel"])), row["sha256"]
        )
        for row in pq.read_table(path, columns=["order", "pixel", "digest", "sha256"]).to_pylist()
    }


def quarantine_table(tile_metadata: Iterable[TileMetadata], duplicates: Sequence[Duplicate]) -> pa.Table:
    """Every input without a row: what the tiles say, and rows whose object stands in another tile."""
    rows = [{"tile_id": metadata.tile_id, **q.model_dump()} for metadata in tile_metadata for q in metadata.quarantine]
    by_tile: dict[Path, list[Duplicate]] = defaultdict(list)
    for duplicate in duplicates:
        by_tile[duplicate.path].append(duplicate)
    for path, of_tile in by_tile.items():
        names = pq.read_table(path, columns=["source_name", "object_id"]).take([d.row for d in of_tile]).to_pylist()
        rows += [
            {
                "tile_id": duplicate.tile_id,
                "file": "",
                "source_name": name["source_name"],
                "reason": DUPLICATE,
                "exception": "",
                "attempts": 1,
                "first_seen": "",
                "last_seen": "",
                "detail": f"object_id {name['object_id']} is in the catalogue already, from another tile",
            }
            for duplicate, name in zip(of_tile, names, strict=True)
        ]
    return pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)


def tiles_table(tile_metadata: Iterable[TileMetadata]) -> pa.Table:
    """One row for each committed tile: its metadata, without the entries of its quarantine."""
    rows = [
        {
            **metadata.model_dump(exclude={"quarantine", "class_slugs", "set_aside", "remarks"}),
            "inputs": metadata.inputs,
            "quarantined": metadata.quarantined,
            "out_of_footprint": metadata.out_of_footprint,
            "duplicates": metadata.duplicates,
            "set_aside": json.dumps(metadata.set_aside, sort_keys=True),
            "remarks": "\n".join(metadata.remarks),
        }
        for metadata in tile_metadata
    ]
    return pa.Table.from_pylist(rows)


def runs_table(
    tile_metadata: Sequence[TileMetadata], files: Sequence[PartitionFile], runs: Mapping[str, RunRecord]
) -> pa.Table:
    """One row for each run that committed a tile of the release or predicted one of its rows; rows join by run_id.

    A row that was taken over from an earlier commit of its tile keeps the run that predicted it. Columns as in
    `RUNS_COLUMNS`; what is not known is null.
    """
    tiles = Counter(metadata.run_id for metadata in tile_metadata)
    rows: list[dict[str, Any]] = []
    for run_id in sorted(tiles.keys() | {run_id for file in files for run_id in file.runs}):
        record = runs.get(run_id, RunRecord())
        rows.append(
            {
                **record.model_dump(),
                "run_id": run_id,
                "tiles": tiles[run_id],
                "model_id": tile_metadata[0].model_id,  # a release is of one model
                "versions": json.dumps(dict(record.versions), sort_keys=True),
                "objects_per_second": record.objects_per_second,
                "simulated": _simulated([file for file in files if run_id in file.runs]),
            }
        )
    return pa.Table.from_pylist(rows, schema=RUNS_SCHEMA)


def _simulated(files: Sequence[PartitionFile]) -> bool | None:
    """Whether the rows of a run are simulated, by the partition files that hold them; None if these hold both."""
    simulated = sum(file.simulated for file in files)
    if not files or 0 < simulated < sum(file.rows for file in files):
        return None
    return simulated > 0
