"""How a release is built: plan, partition files, margin, index, provenance, documents, checksums, then `CURRENT`.

A build writes into one hidden folder beside the releases. A build that was killed goes on there: partition files that
are whole and still wanted stay. Where the units run is given from outside, so that this package needs no Dask.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Options:
    """The options of `publish`."""

    max_rows: int
    exports: bool
    runs: Mapping[str, RunRecord]
    run_units: RunUnits


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
    max_rows : most rows of a partition.
    exports : whether to write the single-file exports.
    runs : what runs were made with, by run id.
    run_units : where the units run.

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
        info = _finished_release(catalog, _content(tiles), current)
        if info is None:
            options = _Options(max_rows, exports, runs or {}, run_units)
            info = _build(catalog, tiles, current, options)
        set_current(catalog, info.release)
    return info


def _content(tiles: Tiles) -> str:
    return content_digest(metadata for _, metadata in tiles)


def _finished_release(catalog: Path, content: str, current: ReleaseInfo | None) -> ReleaseInfo | None:
    """A whole release of this content whose publisher died before readers could see it."""
    previous = current.release if current else ""
    found = [info for info in readable_releases(catalog) if info.content == content and info.previous == previous]
    return found[-1] if found else None


def _build(catalog: Path, tiles: Tiles, current: ReleaseInfo | None, options: _Options) -> ReleaseInfo:
    """Build a release that no reader sees yet: the steps in their order."""
    layout = ReleaseLayout(catalog / "releases" / _BUILDING)
    previous = layout_of(catalog, current.release) if current else None
    plan, schema = _plan_partitions(tiles, options.max_rows)
    _remove_unfinished(layout)
    jobs = _write_jobs(layout, plan, schema, previous)
    files = _build_partitions(layout, plan, schema, jobs, tiles[0][1].model_id, options)
    _build_margin_and_index(layout, files, jobs, options)
    info = _describe(next_release_name(catalog), tiles, plan, files, current, options.max_rows)
    write_provenance(layout, tiles, plan.duplicates, files, options.runs)
    _write_documents(layout, info, options.exports)
    _write_changes_and_checksums(layout, files, previous)
    os.replace(layout.root, catalog / "releases" / info.release)
    fsync(catalog / "releases")
    return info


def _plan_partitions(tiles: Tiles, max_rows: int) -> tuple[ReleasePlan, pa.Schema]:
    """The partitions to make, and the schema of their files with the metadata of a file."""
    from catalogs.export.vo_metadata import file_metadata

    slugs = slugs_of(tiles)
    # No name of a release: its partition files may be shared with the next one.
    metadata = file_metadata(slugs, {"model_id": tiles[0][1].model_id})
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode()).hexdigest()
    return plan_release(tiles, max_rows, f"{FORMAT} {digest}"), arrow_schema(slugs).with_metadata(metadata)


def _remove_unfinished(layout: ReleaseLayout) -> None:
    """Delete what a killed build left, except the partition files of its primary catalogue."""
    keep = {layout.collection, layout.primary, layout.primary / "dataset"}
    for folder in (layout.root, layout.collection, layout.primary, layout.primary / "dataset"):
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            if path in keep or path.name.startswith("Norder="):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _write_jobs(
    layout: ReleaseLayout, plan: ReleasePlan, schema: pa.Schema, previous: ReleaseLayout | None
) -> list[PartitionJob]:
    """A job for each partition; what the previous release has made from the same is named for reuse."""
    existing = partition_files(previous) if previous else {}
    keys = {(p.partition.order, p.partition.pixel): p.digest for p in plan.pixels}
    reusable = {key: existing[*key, digest] for key, digest in keys.items() if (*key, digest) in existing}
    return write_jobs(layout.root, plan.pixels, schema, reusable)


def _build_partitions(
    layout: ReleaseLayout,
    plan: ReleasePlan,
    schema: pa.Schema,
    jobs: Sequence[PartitionJob],
    model_id: str,
    options: _Options,
) -> list[PartitionFile]:
    """Write the partition files, and what makes them the primary catalogue of a HATS collection."""
    from catalogs.releases.hats_metadata import write_primary

    built = options.run_units("building pixels", build_partition, jobs)
    files = sorted(built, key=lambda file: (file.order, file.pixel))
    write_primary(
        layout,
        [file.partition for file in files],
        schema,
        plan.cells,
        plan.counts,
        title="Galaxy morphology catalogue",
        description=f"Galaxy-morphology labels with calibrated confidences, by model {model_id}",
        max_rows=options.max_rows,
    )
    return files


def _build_margin_and_index(
    layout: ReleaseLayout, files: Sequence[PartitionFile], jobs: Sequence[PartitionJob], options: _Options
) -> None:
    """Write the margin cache and the index of object ids, and with them the whole collection."""
    from catalogs.releases.hats_metadata import write_collection
    from catalogs.releases.id_index import write_id_index
    from catalogs.releases.margin_cache import finish_margin

    margins = options.run_units("building margins", build_margin, jobs)
    finish_margin(layout, {(margin.order, margin.pixel): margin.rows for margin in margins})
    write_id_index(layout, [file.partition for file in files])
    write_collection(layout)


def _describe(
    name: str,
    tiles: Tiles,
    plan: ReleasePlan,
    files: Sequence[PartitionFile],
    current: ReleaseInfo | None,
    max_rows: int,
) -> ReleaseInfo:
    """What the release says of itself: its model, and how its inputs and rows add up."""
    of_tiles = [metadata for _, metadata in tiles]
    objects, classified = sum(file.rows for file in files), sum(file.classified for file in files)
    return ReleaseInfo(
        release=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model_id=of_tiles[0].model_id,
        content=_content(tiles),
        tiles=len(of_tiles),
        objects=objects,
        classified=classified,
        unclassified=objects - classified,
        quarantined=sum(metadata.quarantined for metadata in of_tiles),
        out_of_footprint=sum(metadata.out_of_footprint for metadata in of_tiles),
        duplicates=sum(metadata.duplicates for metadata in of_tiles) + len(plan.duplicates),
        duplicates_across_tiles=len(plan.duplicates),
        simulated_objects=sum(file.simulated for file in files),
        class_slugs=of_tiles[0].class_slugs,
        partitions=len(files),
        max_rows=max_rows,
        previous=current.release if current else "",
    )


def _write_documents(layout: ReleaseLayout, info: ReleaseInfo, exports: bool) -> None:
    """Write what people read and other tools open: exports, README, citation, report, release.json."""
    from catalogs.citation import citation
    from catalogs.export.writers import write_exports
    from catalogs.releases.hats_metadata import write_extension
    from catalogs.releases.readme import readme, report_page

    words = info.words()
    write_extension(layout, arrow_schema(info.class_slugs).names)
    if exports:
        write_exports(layout, info.class_slugs, words)
    text = readme(words, info.class_slugs)
    for folder in (layout.root, layout.primary):
        (folder / "README.md").write_text(text, encoding="utf-8")
    (layout.root / "CITATION.txt").write_text(citation(words), encoding="utf-8")
    layout.report.mkdir()
    (layout.report / "index.html").write_text(report_page(words), encoding="utf-8")
    layout.info.write_text(info.model_dump_json(indent=1), encoding="utf-8")


def _write_changes_and_checksums(
    layout: ReleaseLayout, files: Sequence[PartitionFile], previous: ReleaseLayout | None
) -> None:
    """Compare with the previous release, then take the checksum of every file and sync all to disk."""
    from catalogs.releases.diff import write_changes
    from catalogs.releases.manifest import write_manifest

    write_changes(previous if previous and previous.primary.is_dir() else None, layout)
    shutil.rmtree(layout.root / PLAN)
    known = {
        layout.partition_file(file.order, file.pixel).relative_to(layout.root).as_posix(): file.sha256 for file in files
    }
    write_manifest(layout.root, known)
    for path in layout.root.rglob("*"):
        fsync(path)
