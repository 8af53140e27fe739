"""Audit of provenance: every input of every tile is accounted for, in tile metadata, provenance tables and the release.

inputs = classified + unclassified + quarantined + out of footprint + duplicates, for each tile and for the whole; and
the rows of a tile are those of the release that name it, but for objects that another tile brought too.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalogs.paths import ReleaseLayout
from catalogs.releases.registry import ReleaseInfo
from catalogs.schema import arrow_schema
from catalogs.tiles import DUPLICATE, OUTSIDE, read_tile_metadata, tile_path
from catalogs.validation.findings import Findings
from catalogs.validation.partitions import BATCH
from catalogs.validation.rows import SUMMED, array, row_sums

_PARTS = ("classified", "unclassified", "quarantined", "out_of_footprint", "duplicates")
LeftOut: TypeAlias = dict[str, list[str]]  # source names by tile id
_IDENTITY = ("fingerprint", "model_id", "recipe_digest", "run_id")


def read_tiles(layout: ReleaseLayout, findings: Findings) -> dict[str, dict[str, Any]]:
    """The rows of the table of tiles by tile id; nothing when it cannot be read."""
    names = ["tile_id", "inputs", "found", "set_aside", *_PARTS, *_IDENTITY]
    try:
        rows = pq.read_table(layout.provenance / "tiles.parquet", columns=names).to_pylist()
        rows = [{**row, "set_aside": json.loads(row["set_aside"])} for row in rows]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:  # ValueError: no JSON, no UTF-8
        findings.add("ledger", f"sidecar/tiles.parquet: cannot be read ({error})")
        return {}
    tiles = {str(row["tile_id"]): row for row in rows}
    findings.expect("ledger", "sidecar/tiles.parquet", "different tiles", len(tiles), len(rows))
    return tiles


def check_tiles(
    layout: ReleaseLayout, info: ReleaseInfo, tiles: dict[str, dict[str, Any]], findings: Findings
) -> LeftOut:
    """Sums of each tile, over the tiles, and in quarantine and release.json.

    Returns the rows of each tile that are not in the release because another tile brought the same object.
    """
    for tile_id, row in tiles.items():
        findings.expect("ledger", f"tile {tile_id}", "inputs", row["inputs"], sum(row[part] for part in _PARTS))
        if row["found"] >= 0:
            accounted = row["inputs"] + sum(row["set_aside"].values())
            findings.expect("ledger", f"tile {tile_id}", "found", row["found"], accounted)
    total = {part: sum(row[part] for row in tiles.values()) for part in _PARTS}
    across = _check_quarantine(layout, info, tiles, findings)
    twice = info.duplicates_across_tiles
    for what, found, wanted in (
        ("tiles", info.tiles, len(tiles)),
        ("objects", info.objects, total["classified"] + total["unclassified"] - twice),
        ("objects", info.objects, info.classified + info.unclassified),
        ("quarantined", info.quarantined, total["quarantined"]),
        ("out_of_footprint", info.out_of_footprint, total["out_of_footprint"]),
        ("duplicates", info.duplicates, total["duplicates"] + twice),
        ("duplicates_across_tiles", twice, sum(map(len, across.values()))),
    ):
        findings.expect("ledger", "release.json", what, found, wanted)
    return across


def _check_quarantine(
    layout: ReleaseLayout, info: ReleaseInfo, tiles: dict[str, dict[str, Any]], findings: Findings
) -> LeftOut:
    """The table of quarantine by tile and reason against the tiles; what is beyond are duplicates across tiles."""
    entries: Counter[tuple[str, str]] = Counter()
    across: LeftOut = {}
    path = layout.provenance / "quarantine.parquet"
    try:
        for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=["tile_id", "reason", "file", "source_name"]):
            for entry in batch.to_pylist():
                part = _PART_OF.get(entry["reason"], "quarantined")
                if part == "duplicates" and not entry["file"]:  # the tile has a row for it
                    across.setdefault(entry["tile_id"], []).append(entry["source_name"])
                else:
                    entries[entry["tile_id"], part] += 1
    except (OSError, KeyError, pa.ArrowException, UnicodeDecodeError) as error:
        findings.add("ledger", f"sidecar/quarantine.parquet: cannot be read ({error})")
        return {}
    for tile_id in sorted(tiles.keys() | {tile for tile, _ in entries} | across.keys()):
        row = tiles.get(tile_id, dict.fromkeys(_PARTS, 0))
        for part in ("quarantined", "out_of_footprint", "duplicates"):
            findings.expect("ledger", f"tile {tile_id}", f"{part} in quarantine", entries[tile_id, part], row[part])
    return across


_PART_OF = {DUPLICATE: "duplicates", OUTSIDE: "out_of_footprint"}


def check_one_model(info: ReleaseInfo, tiles: dict[str, dict[str, Any]], findings: Findings) -> None:
    """One model and one recipe made all tiles, and it is that of the release."""
    for tile_id, row in tiles.items():
        findings.expect("model", f"tile {tile_id}", "model", row["model_id"], info.model_id)
    recipes = Counter(row["recipe_digest"] for row in tiles.values())
    if len(recipes) > 1:
        findings.add("model", f"tiles of {len(recipes)} recipes: {', '.join(sorted(recipes)[:3])}")


def check_rows_of_tiles(
    tiles: dict[str, dict[str, Any]],
    across: LeftOut,
    held: dict[str, tuple[int, int]],
    findings: Findings,
) -> None:
    """The release has the rows of its tiles by the provenance table. `held`: rows and sums by tile id."""
    for tile_id in sorted(tiles.keys() | held.keys()):
        row = tiles.get(tile_id)
        if row is None:
            findings.add("tiles", f"tile {tile_id}: {held[tile_id][0]} rows, but the table of tiles does not know it")
            continue
        wanted = row["classified"] + row["unclassified"] - len(across.get(tile_id, ()))
        findings.expect("tiles", f"tile {tile_id}", "rows in the release", held.get(tile_id, (0, 0))[0], wanted)


def check_store(
    catalog: Path,
    info: ReleaseInfo,
    tiles: dict[str, dict[str, Any]],
    across: LeftOut,
    held: dict[str, tuple[int, int]] | None,
    findings: Findings,
) -> str:
    """The committed tile files against the table of tiles and, where `held` is given, against the rows of the release.

    A tile that was committed again since, for other inputs or by another run, is not compared. Returns a remark on
    what was not.
    """
    folder = catalog / "tiles" / info.model_id
    if Path(info.model_id).name != info.model_id or not folder.is_dir():
        return f"not compared with committed tiles: none of {info.model_id} are there"
    known = [tile_id for tile_id in sorted(tiles) if Path(tile_id).name == tile_id]
    if len(known) < len(tiles):
        findings.add("tiles", f"sidecar/tiles.parquet: {len(tiles) - len(known)} tile ids are no file names")

    def one(tile_id: str) -> tuple[Findings, bool]:
        mine = Findings()
        path, left_out = tile_path(catalog, info.model_id, tile_id), across.get(tile_id, [])
        total = None if held is None else held.get(tile_id, (0, 0))
        return mine, _check_tile(path, info, tiles[tile_id], total, left_out, mine)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        results = list(threads.map(one, known))
    findings.merge([mine for mine, _ in results])
    newer = sum(again for _, again in results)
    return f"{newer} tiles were committed again since, and not compared" if newer else ""


def _check_tile(
    path: Path,
    info: ReleaseInfo,
    row: dict[str, Any],
    held: tuple[int, int] | None,
    left_out: Sequence[str],
    findings: Findings,
) -> bool:
    """Compare a tile file with the table of tiles and the rows in the release; True: it was committed again since."""
    where = f"tile {row['tile_id']}"
    metadata = read_tile_metadata(path)
    if metadata is None:
        findings.add("tiles", f"{where}: its file is missing or damaged ({path})")
        return False
    if metadata.found >= 0:
        accounted = metadata.inputs + sum(metadata.set_aside.values())
        findings.expect("tiles", where, "found by its metadata", metadata.found, accounted)
    if any(getattr(metadata, name) != row[name] for name in _IDENTITY):
        return True
    for name in ("inputs", "found", *_PARTS):
        findings.expect("tiles", where, f"{name} by its metadata", getattr(metadata, name), row[name])
    if info.class_slugs:
        findings.expect("model", where, "classes", metadata.class_slugs, info.class_slugs)
    findings.expect("tiles", where, "set_aside by its metadata", metadata.set_aside, row["set_aside"])
    try:
        rows = pq.read_metadata(path).num_rows
        if not pq.read_schema(path).equals(arrow_schema(metadata.class_slugs)):
            findings.add("tiles", f"{where}: the columns of its file are not those of the contract")
            return False
        found = None if held is None else _sum_of_rows(path, left_out)
    except (OSError, pa.ArrowException) as error:
        findings.add("tiles", f"{where}: {path} is damaged ({error})")
        return False
    findings.expect("tiles", where, "rows in its file", rows, metadata.classified + metadata.unclassified)
    if found != held:
        findings.add("tiles", f"{where}: its rows are not those of the release")
    return False


def _sum_of_rows(path: Path, left_out: Sequence[str]) -> tuple[int, int]:
    """Number and sum of digests of the rows of a tile file but those with the source names that were left out."""
    columns = [*SUMMED, "source_name"] if left_out else list(SUMMED)
    count = total = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH, columns=columns, use_threads=False):
            if left_out:
                batch = batch.filter(pc.invert(pc.is_in(batch.column("source_name"), value_set=pa.array(left_out))))
            count += batch.num_rows
            total += int(row_sums([array(batch, name) for name in SUMMED]).sum())
    return count, total % 2**64


def class_slugs_of(layout: ReleaseLayout, catalog: Path, model_id: str, tiles: Sequence[str]) -> list[str]:
    """The classes that the release must have: those of a committed tile, else of the schema of all partition files.

    None if neither can be read.
    """
    for tile_id in tiles:
        metadata = read_tile_metadata(tile_path(catalog, model_id, tile_id))
        if metadata is not None:
            return metadata.class_slugs
    try:
        schema = pq.read_schema(layout.primary / "dataset" / "_common_metadata")
    except (OSError, pa.ArrowException):
        return []
    return [name.removeprefix("p_") for name in schema.names if name.startswith("p_")]


def runs_without_entry(layout: ReleaseLayout, runs: set[str]) -> set[str]:
    """Runs that rows name but the table of runs does not; none if there is no such table."""
    path = layout.provenance / "runs.parquet"
    if not path.exists():
        return set()
    return runs - set(pq.read_table(path, columns=["run_id"])["run_id"].to_pylist())
