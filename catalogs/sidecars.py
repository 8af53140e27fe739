"""The tables beside the rows of a release: its tiles, runs, partitions, and every input that got no row.

They are made from the stamps of the tiles and the receipts of the leaves. Which software made a run is told from
outside.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.layout import ReleaseLayout
from catalogs.leaves import Carried, Leaf
from catalogs.partitions import Duplicate
from catalogs.tile_store import DUPLICATE, TileStamp

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
RUNS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("tiles", pa.int32()),
        ("settings_digest", pa.string()),
        ("git_revision", pa.string()),
        ("versions", pa.string()),
    ]
)
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


@dataclass(frozen=True)
class RunRecord:
    """What a run was made with; empty where that is not known. `versions` by package."""

    settings_digest: str = ""
    git_revision: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def write_sidecars(
    layout: ReleaseLayout,
    tiles: Sequence[tuple[Path, TileStamp]],
    duplicates: Sequence[Duplicate],
    leaves: Sequence[Leaf],
    runs: Mapping[str, RunRecord],
) -> None:
    """Write tiles, runs, quarantine and partitions as Parquet."""
    layout.sidecar.mkdir(parents=True, exist_ok=True)
    stamps = [stamp for _, stamp in tiles]
    tables = {
        "quarantine": quarantine_table(stamps, duplicates),
        "tiles": tiles_table(stamps),
        "runs": runs_table(stamps, leaves, runs),
        "partitions": pa.Table.from_pylist([asdict(leaf) for leaf in leaves], schema=PARTITIONS_SCHEMA),
    }
    for name, table in tables.items():
        pq.write_table(table, layout.sidecar / f"{name}.parquet", compression="zstd")


def leaves_of(layout: ReleaseLayout) -> dict[tuple[int, int, str], Carried]:
    """The leaves of a release by order, pixel and digest of what they were made from; none where they are not told."""
    path = layout.sidecar / "partitions.parquet"
    if not path.is_file():
        return {}
    return {
        (row["order"], row["pixel"], row["digest"]): Carried(
            str(layout.leaf(row["order"], row["pixel"])), row["sha256"]
        )
        for row in pq.read_table(path, columns=["order", "pixel", "digest", "sha256"]).to_pylist()
    }


def quarantine_table(stamps: Iterable[TileStamp], duplicates: Sequence[Duplicate]) -> pa.Table:
    """Every input without a row: what the tiles say, and rows whose object stands in another tile."""
    rows = [{"tile_id": stamp.tile_id, **q.model_dump()} for stamp in stamps for q in stamp.quarantine]
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


def tiles_table(stamps: Iterable[TileStamp]) -> pa.Table:
    """One row for each committed tile: its stamp, without the entries of its quarantine."""
    rows = [
        {
            **stamp.model_dump(exclude={"quarantine", "class_slugs", "set_aside", "remarks"}),
            "inputs": stamp.inputs,
            "quarantined": stamp.quarantined,
            "out_of_footprint": stamp.out_of_footprint,
            "duplicates": stamp.duplicates,
            "set_aside": json.dumps(stamp.set_aside, sort_keys=True),
            "remarks": "\n".join(stamp.remarks),
        }
        for stamp in stamps
    ]
    return pa.Table.from_pylist(rows)


def runs_table(stamps: Sequence[TileStamp], leaves: Sequence[Leaf], runs: Mapping[str, RunRecord]) -> pa.Table:
    """One row for each run that committed a tile of the release or predicted one of its rows; rows join by run_id.

    A row that was taken over from an earlier commit of its tile keeps the run that predicted it.
    """
    tiles = Counter(stamp.run_id for stamp in stamps)
    rows = []
    for run_id in sorted(tiles.keys() | {run_id for leaf in leaves for run_id in leaf.runs}):
        record = runs.get(run_id, RunRecord())
        rows.append(
            {
                "run_id": run_id,
                "tiles": tiles[run_id],
                "settings_digest": record.settings_digest,
                "git_revision": record.git_revision,
                "versions": json.dumps(dict(record.versions), sort_keys=True),
            }
        )
    return pa.Table.from_pylist(rows, schema=RUNS_SCHEMA)
