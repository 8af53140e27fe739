"""How a release is built: plan, leaves, margins, what describes them, sidecars; then `CURRENT` is replaced.

The build lies in one hidden folder beside the releases. A build that was killed goes on there: leaves that are whole
and still wanted stay. Where the units run is given from outside, so that this package needs no Dask.
"""

from __future__ import annotations

import hashlib
import html
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

import pyarrow as pa

from catalogs.atomic import fsync
from catalogs.paths import ReleaseLayout
from catalogs.releases.partition_writer import (
    PLAN,
    PartitionFile,
    PartitionJob,
    build_margin,
    build_partition,
    write_jobs,
)
from catalogs.releases.partitioning import ReleasePlan, plan_release, slugs_of
from catalogs.releases.provenance import RunRecord, partition_files, write_provenance
from catalogs.releases.registry import (
    FORMAT,
    ReleaseInfo,
    content_digest,
    current_release,
    is_release_of,
    layout_of,
    next_release_name,
    publish_lock,
    readable_releases,
    set_current,
)
from catalogs.schema import arrow_schema
from catalogs.tiles import TileMetadata, committed

MAX_ROWS = 1_000_000
_BUILDING = ".building"

Tiles = Sequence[tuple[Path, TileMetadata]]
Receipt = TypeVar("Receipt")


class RunUnits(Protocol):
    """Runs a function on every job, wherever; `what` names the step for people. Raises when a unit failed."""

    def __call__(
        self, what: str, function: Callable[[PartitionJob], Receipt], jobs: Sequence[PartitionJob]
    ) -> Iterable[Receipt]: ...


def run_serially(
    what: str, function: Callable[[PartitionJob], Receipt], jobs: Sequence[PartitionJob]
) -> Iterable[Receipt]:
    """One unit after the other in this process."""
    return map(function, jobs)


def publish(
    catalog: Path,
    model_id: str,
    *,
    max_rows: int = MAX_ROWS,
    exports: bool = True,
    runs: Mapping[str, RunRecord] | None = None,
    run_units: RunUnits = run_serially,
) -> ReleaseInfo | None:
    """Publish all committed tiles of a model as a release, unless the current one already holds exactly these.

    Parameters
    ----------
    max_rows : most rows of a leaf.
    exports : whether to write the single-file exports.
    runs : what runs were made with, by run id.

    Returns the current release afterwards, or None when no tile of the model is committed.

    Raises
    ------
    CatalogError : a committed tile is damaged, or tiles disagree about columns or classes.
    ReleaseLocked : another process publishes.
    """
    tiles, current = list(committed(catalog, model_id)), current_release(catalog)
    if not tiles or is_release_of(catalog, current, _content(tiles)):
        return current if tiles else None
    with publish_lock(catalog):
        # Again: tiles may have been committed, and another process may have published, before this one had the lock.
        tiles, current = list(committed(catalog, model_id)), current_release(catalog)
        if not tiles or is_release_of(catalog, current, _content(tiles)):
            return current if tiles else None
        info = _not_pointed_to(catalog, _content(tiles), current)
        if info is None:
            info = _build(catalog, tiles, current, max_rows, exports, runs or {}, run_units)
        set_current(catalog, info.release)
    return info


def _content(tiles: Tiles) -> str:
    return content_digest(stamp for _, stamp in tiles)


def _build(
    catalog: Path,
    tiles: Tiles,
    current: ReleaseInfo | None,
    max_rows: int,
    exports: bool,
    runs: Mapping[str, RunRecord],
    run_units: RunUnits,
) -> ReleaseInfo:
    """Build a release that no reader sees yet."""
    root = catalog / "releases" / _BUILDING
    before = layout_of(catalog, current.release) if current else None
    planned, schema = _planned(tiles, max_rows)
    leaves = _build_collection(root, planned, schema, before, tiles[0][1].model_id, max_rows, run_units)
    info = _describe(next_release_name(catalog), tiles, planned, leaves, current, max_rows)
    _complete(root, info, tiles, planned, leaves, runs, before, exports)
    os.replace(root, catalog / "releases" / info.release)
    fsync(catalog / "releases")
    return info


def _not_pointed_to(catalog: Path, content: str, current: ReleaseInfo | None) -> ReleaseInfo | None:
    """A whole release of this content whose publisher died before readers could see it."""
    before = current.release if current else ""
    found = [i for i in readable_releases(catalog) if i.content == content and i.previous == before]
    return found[-1] if found else None


def _planned(tiles: Tiles, max_rows: int) -> tuple[ReleasePlan, pa.Schema]:
    """The leaves to make, and their schema with the metadata of a file."""
    from catalogs.export.vo_metadata import file_metadata

    slugs = slugs_of(tiles)
    metadata = file_metadata(slugs, {"model_id": tiles[0][1].model_id})  # no name of a release: leaves are shared
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode()).hexdigest()
    return plan_release(tiles, max_rows, f"{FORMAT} {digest}"), arrow_schema(slugs).with_metadata(metadata)


def _build_collection(
    root: Path,
    planned: ReleasePlan,
    schema: pa.Schema,
    before: ReleaseLayout | None,
    model_id: str,
    max_rows: int,
    run_units: RunUnits,
) -> list[PartitionFile]:
    """Make the HATS collection: primary catalogue, margin, index."""
    from catalogs.releases.hats_metadata import write_collection, write_primary
    from catalogs.releases.id_index import write_id_index
    from catalogs.releases.margin_cache import finish_margin

    layout = ReleaseLayout(root)
    _clear(layout)
    there = partition_files(before) if before else {}
    keys = {(p.partition.order, p.partition.pixel): p.digest for p in planned.pixels}
    carried = {key: there[*key, digest] for key, digest in keys.items() if (*key, digest) in there}
    jobs = write_jobs(root, planned.pixels, schema, carried)
    leaves = sorted(run_units("building pixels", build_partition, jobs), key=lambda leaf: (leaf.order, leaf.pixel))
    partitions = [leaf.partition for leaf in leaves]
    write_primary(
        layout,
        partitions,
        schema,
        planned.cells,
        planned.counts,
        title="Galaxy morphology catalogue",
        description=f"Galaxy-morphology labels with calibrated confidences, by model {model_id}",
        max_rows=max_rows,
    )
    margins = run_units("building margins", build_margin, jobs)
    finish_margin(layout, {(margin.order, margin.pixel): margin.rows for margin in margins})
    write_id_index(layout, partitions)
    write_collection(layout)
    return leaves


def _clear(layout: ReleaseLayout) -> None:
    """Delete from a build that was killed all but the leaves of its primary catalogue."""
    keep = {layout.collection, layout.primary, layout.primary / "dataset"}
    for folder in (layout.root, layout.collection, layout.primary, layout.primary / "dataset"):
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            if path in keep or path.name.startswith("Norder="):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _describe(
    name: str,
    tiles: Tiles,
    planned: ReleasePlan,
    leaves: Sequence[PartitionFile],
    current: ReleaseInfo | None,
    max_rows: int,
) -> ReleaseInfo:
    stamps = [stamp for _, stamp in tiles]
    objects, classified = sum(leaf.rows for leaf in leaves), sum(leaf.classified for leaf in leaves)
    return ReleaseInfo(
        release=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model_id=stamps[0].model_id,
        content=_content(tiles),
        tiles=len(stamps),
        objects=objects,
        classified=classified,
        unclassified=objects - classified,
        quarantined=sum(s.quarantined for s in stamps),
        out_of_footprint=sum(s.out_of_footprint for s in stamps),
        duplicates=sum(s.duplicates for s in stamps) + len(planned.duplicates),
        duplicates_across_tiles=len(planned.duplicates),
        simulated_objects=sum(leaf.simulated for leaf in leaves),
        class_slugs=stamps[0].class_slugs,
        partitions=len(leaves),
        max_rows=max_rows,
        previous=current.release if current else "",
    )


def _complete(
    root: Path,
    info: ReleaseInfo,
    tiles: Tiles,
    planned: ReleasePlan,
    leaves: Sequence[PartitionFile],
    runs: Mapping[str, RunRecord],
    before: ReleaseLayout | None,
    exports: bool,
) -> None:
    """Write all that stands beside the collection, the checksums last."""
    from catalogs.citation import citation
    from catalogs.export.writers import write_exports
    from catalogs.releases.diff import write_changes
    from catalogs.releases.hats_metadata import write_extension
    from catalogs.releases.manifest import write_manifest
    from catalogs.releases.readme import readme

    layout, words = ReleaseLayout(root), info.words()
    write_provenance(layout, tiles, planned.duplicates, leaves, runs)
    write_extension(layout, arrow_schema(info.class_slugs).names)
    if exports:
        write_exports(layout, info.class_slugs, words)
    text = readme(words, info.class_slugs)
    (root / "README.md").write_text(text, encoding="utf-8")
    (layout.primary / "README.md").write_text(text, encoding="utf-8")
    (root / "CITATION.txt").write_text(citation(words), encoding="utf-8")
    layout.report.mkdir()
    (layout.report / "index.html").write_text(_report(info), encoding="utf-8")
    layout.info.write_text(info.model_dump_json(indent=1), encoding="utf-8")
    write_changes(before if before and before.primary.is_dir() else None, layout)
    shutil.rmtree(root / PLAN)
    known = {layout.leaf(leaf.order, leaf.pixel).relative_to(root).as_posix(): leaf.sha256 for leaf in leaves}
    write_manifest(root, known)
    for path in root.rglob("*"):
        fsync(path)


def _report(info: ReleaseInfo) -> str:
    """The totals of a release as a page."""
    rows = "".join(
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(value)}</td></tr>\n"
        for name, value in info.words().items()
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Release {html.escape(info.release)}</title>\n'
        f"<h1>Morphology catalogue {html.escape(info.release)}</h1>\n<table>\n{rows}</table></html>\n"
    )
