"""Releases: immutable, numbered, published by replacing one line.

A release holds the rows of all committed tiles of one model, compacted and sorted by position, and its sidecars.
Readers open what `CURRENT` names and never see half a release or a mixture of models. Nothing is published when
nothing changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from catalogs.errors import CatalogError
from catalogs.files import sync, written_whole
from catalogs.schema import FLAG_MEANINGS, arrow_schema, catalogue_columns, count_classified
from catalogs.tile_store import DUPLICATE, TileStamp, committed

_TABLE = "morphology.parquet"
_INFO = "release.json"


class ReleaseInfo(BaseModel):
    """What a release says of itself. `content` is a digest of the tiles it was made from.

    The inputs of its tiles are objects + quarantined + out of footprint + duplicates. Of the duplicates, those
    `duplicates_across_tiles` have a row in a tile, and an object of another tile stands for them.
    """

    model_config = ConfigDict(frozen=True)

    release: str
    created: str
    model_id: str
    content: str
    tiles: int
    objects: int
    classified: int
    unclassified: int
    quarantined: int
    out_of_footprint: int = 0
    duplicates: int
    duplicates_across_tiles: int = 0
    simulated_objects: int


def publish(catalog: Path, model_id: str) -> ReleaseInfo | None:
    """Publish all committed tiles of a model as a release, unless the current one already holds exactly these.

    Returns the current release afterwards, or None when no tile of the model is committed.

    Raises
    ------
    CatalogError : a committed tile is damaged, or tiles disagree about columns or classes.
    """
    tiles = list(committed(catalog, model_id))
    if not tiles:
        return None
    content = _content_digest(stamp for _, stamp in tiles)
    current = current_release(catalog)
    if current is not None and current.content == content:
        return current
    table, duplicates = _without_duplicates(_gather(tiles))
    name = _next_name(catalog)
    info = _describe(name, model_id, content, table, duplicates, [stamp for _, stamp in tiles])
    with written_whole(catalog / "releases" / name) as folder:
        _write(folder, info, table, duplicates, tiles)
    with written_whole(catalog / "CURRENT") as pointer:
        pointer.write_text(name + "\n")
    return info


def is_published(catalog: Path, model_id: str) -> bool:
    """Whether the current release holds exactly what is committed of a model."""
    current = current_release(catalog)
    return current is not None and current.content == _content_digest(
        stamp for _, stamp in committed(catalog, model_id)
    )


def current_release(catalog: Path) -> ReleaseInfo | None:
    """The release that readers see; None before the first. Raises CatalogError when `CURRENT` names none."""
    pointer = catalog / "CURRENT"
    return read_release(catalog, pointer.read_text().strip()) if pointer.is_file() else None


def read_release(catalog: Path, name: str) -> ReleaseInfo:
    """What a release says of itself. Raises CatalogError when there is no such release, or it is damaged."""
    path = catalog / "releases" / name / _INFO
    if not path.is_file():
        known = sorted(p.parent.name for p in (catalog / "releases").glob(f"[!.]*/{_INFO}"))
        raise CatalogError(f"no release {name!r} in {catalog} (there are: {', '.join(known) or 'none'})")
    try:
        return ReleaseInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CatalogError(f"{path}: damaged ({error}); name an older release, or publish again") from error


def table_paths(catalog: Path, release: str) -> dict[str, Path]:
    """Name and Parquet file of every table of a release."""
    folder = catalog / "releases" / release
    sidecars = {p.stem: p for p in sorted((folder / "sidecar").glob("*.parquet"))}
    return {"morphology": folder / _TABLE, **sidecars}


def _content_digest(stamps: Iterable[TileStamp]) -> str:
    digest = hashlib.sha256()
    for stamp in stamps:  # sorted by tile id
        digest.update(stamp.model_dump_json().encode())
    return digest.hexdigest()[:16]


def _gather(tiles: list[tuple[Path, TileStamp]]) -> pa.Table:
    """All rows of the tiles, sorted by position."""
    slugs = {tuple(stamp.class_slugs) for _, stamp in tiles}
    if len(slugs) != 1:
        raise CatalogError(f"tiles of {tiles[0][1].model_id} disagree about the classes: {slugs}")
    schema = arrow_schema(next(iter(slugs)))
    parts = []
    for path, _ in tiles:
        try:
            part = pq.read_table(path).replace_schema_metadata(None)
        except (OSError, pa.ArrowException) as error:
            raise CatalogError(f"{path}: damaged ({error}); delete the file and survey again") from error
        if part.schema != schema:
            raise CatalogError(f"{path}: its columns are not those of this version; delete the file and survey again")
        parts.append(part)
    return pa.concat_tables(parts).sort_by(
        [("_healpix_29", "ascending"), ("object_id", "ascending"), ("tile_id", "ascending")]
    )


def _without_duplicates(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Split off the second and later rows of an object id; the first by position and tile id stays."""
    ids = table.column("object_id").to_pandas()
    second = ids.duplicated(keep="first").to_numpy()
    if not second.any():
        return table, table.slice(0, 0)
    return table.filter(pa.array(~second)), table.filter(pa.array(second))


def _next_name(catalog: Path) -> str:
    month = datetime.now(UTC).strftime("%Y.%m")
    names = (re.fullmatch(rf"{re.escape(month)}\.(\d+)", p.name) for p in (catalog / "releases").glob(f"{month}.*"))
    return f"{month}.{max((int(name[1]) for name in names if name), default=-1) + 1}"


def _describe(
    name: str, model_id: str, content: str, table: pa.Table, duplicates: pa.Table, stamps: list[TileStamp]
) -> ReleaseInfo:
    classified = count_classified(table)
    simulated = int(pc.sum(pc.starts_with(table["survey_layer"], "simulated")).as_py() or 0)
    return ReleaseInfo(
        release=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model_id=model_id,
        content=content,
        tiles=len(stamps),
        objects=table.num_rows,
        classified=classified,
        unclassified=table.num_rows - classified,
        quarantined=sum(s.quarantined for s in stamps),
        out_of_footprint=sum(s.out_of_footprint for s in stamps),
        duplicates=sum(s.duplicates for s in stamps) + duplicates.num_rows,
        duplicates_across_tiles=duplicates.num_rows,
        simulated_objects=simulated,
    )


def _write(
    folder: Path, info: ReleaseInfo, table: pa.Table, duplicates: pa.Table, tiles: list[tuple[Path, TileStamp]]
) -> None:
    sidecar = folder / "sidecar"
    sidecar.mkdir(parents=True)
    pq.write_table(table, folder / _TABLE, compression="zstd", row_group_size=65_536)
    pq.write_table(_quarantine_table(tiles, duplicates), sidecar / "quarantine.parquet", compression="zstd")
    pq.write_table(_tiles_table(tiles), sidecar / "tiles.parquet", compression="zstd")
    (folder / _INFO).write_text(info.model_dump_json(indent=1))
    (folder / "README.md").write_text(_readme(info, tiles[0][1].class_slugs))
    for path in folder.rglob("*"):
        sync(path)


_QUARANTINE_SCHEMA = pa.schema(
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


def _quarantine_table(tiles: list[tuple[Path, TileStamp]], duplicates: pa.Table) -> pa.Table:
    rows = [{"tile_id": stamp.tile_id, **q.model_dump()} for _, stamp in tiles for q in stamp.quarantine]
    rows += [
        {
            "tile_id": row["tile_id"],
            "file": "",
            "source_name": row["source_name"],
            "reason": DUPLICATE,
            "exception": "",
            "attempts": 1,
            "first_seen": "",
            "last_seen": "",
            "detail": f"object_id {row['object_id']} is in the catalogue already, from another tile",
        }
        for row in duplicates.select(["tile_id", "source_name", "object_id"]).to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=_QUARANTINE_SCHEMA)


def _tiles_table(tiles: list[tuple[Path, TileStamp]]) -> pa.Table:
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
        for _, stamp in tiles
    ]
    return pa.Table.from_pylist(rows)


def _readme(info: ReleaseInfo, class_slugs: list[str]) -> str:
    simulated = ""
    if info.simulated_objects:
        simulated = (
            f"\n**{info.simulated_objects} of {info.objects} objects are simulated** (`survey_layer` says which).\n"
        )
    columns = [f"| {c.name} | {c.type} | {c.unit} | {c.ucd} | {c.meaning} |" for c in catalogue_columns(class_slugs)]
    flags = [f"| {f.bit_length() - 1} | {(f.name or '').lower()} | {text} |" for f, text in FLAG_MEANINGS.items()]
    return "\n".join(
        [
            f"# Morphology catalogue {info.release}",
            f"\nModel {info.model_id}; {info.objects} objects of {info.tiles} sky tiles, {info.classified} classified,",
            f"{info.unclassified} without a label, {info.quarantined} in quarantine, {info.out_of_footprint} out of",
            f"the footprint, {info.duplicates} duplicates.",
            simulated,
            "| column | type | unit | UCD | meaning |\n|---|---|---|---|---|",
            *columns,
            "\n| bit | quality flag | meaning |\n|---|---|---|",
            *flags,
            "\nMorphology classes: Galaxy Zoo. Images: DESI Legacy Imaging Surveys, unless simulated.\n",
        ]
    )
