"""The unit of a release: one HEALPix pixel in, one partition file out, whose footer says what it was made from.

A unit is a plain function of a few strings; what it has to do lies beside the release in the making, so that it can run
on any worker that sees the folder. Memory is bounded by the rows of a pixel.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from catalogs.atomic import atomic_write, fsync
from catalogs.errors import CatalogError
from catalogs.export.vo_metadata import with_widths
from catalogs.paths import Partition, ReleaseLayout
from catalogs.releases.partitioning import PlannedPixel, TileShare, pixel_range
from catalogs.schema import count_classified

_log = logging.getLogger(__name__)

ROW_GROUP = 65_536
PLAN = ".plan"  # folder in a release in the making: what each unit has to do
_LEAF_KEY = b"morphcat.leaf"


@dataclass(frozen=True)
class PartitionJob:
    """One partition file of the release that is made in the folder `root`; `rows` say how much work it is."""

    root: str
    order: int
    pixel: int
    rows: int

    @property
    def name(self) -> str:
        """The pixel, for messages."""
        return f"pixel {self.pixel} of order {self.order}"


@dataclass(frozen=True)
class PartitionFile:
    """A partition file that is there: its rows, how many have a label, how many are simulated, its digests.

    `digest` is of what it was made from, `sha256` of the file. `made` says how: written, kept from a build that was
    killed, or carried over from another release; `runs` are the runs that predicted its rows.
    """

    order: int
    pixel: int
    rows: int
    classified: int
    simulated: int
    digest: str
    sha256: str
    runs: tuple[str, ...]
    made: str

    @property
    def partition(self) -> Partition:
        return Partition(self.order, self.pixel, self.rows)


class _Footer(BaseModel):
    model_config = ConfigDict(frozen=True)

    digest: str
    classified: int
    simulated: int
    runs: list[str]


@dataclass(frozen=True)
class ReusablePartition:
    """A partition file of another release that was made from the same."""

    path: str
    sha256: str


def write_jobs(
    root: Path, pixels: tuple[PlannedPixel, ...], schema: pa.Schema, carried: dict[tuple[int, int], ReusablePartition]
) -> list[PartitionJob]:
    """Write down beside the release in the making what each unit has to do; partition files of other plans are deleted.

    Parameters
    ----------
    schema : of every partition file, with the metadata of its file.
    carried : by order and pixel, partition files that may be taken over.
    """
    folder = root / PLAN
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pq.write_metadata(schema, folder / "schema.parquet")
    wanted, jobs = set(), []
    for pixel in pixels:
        at = pixel.partition
        entry = {**asdict(pixel), "carried": None}
        if (at.order, at.pixel) in carried:
            entry["carried"] = asdict(carried[at.order, at.pixel])
        (folder / f"{at.order}-{at.pixel}.json").write_text(json.dumps(entry))
        jobs.append(PartitionJob(str(root), at.order, at.pixel, at.rows))
        wanted.add(ReleaseLayout(root).partition_file(at.order, at.pixel))
    for path in (ReleaseLayout(root).primary / "dataset").glob("Norder=*/Dir=*/*"):
        if path not in wanted:
            path.unlink()
    return jobs


def build_partition(job: PartitionJob) -> PartitionFile:
    """Make one partition file, unless it is there or can be taken over from another release.

    Raises
    ------
    CatalogError : a tile of the pixel is damaged, or does not hold the rows that were planned.
    """
    root = Path(job.root)
    entry = json.loads((root / PLAN / f"{job.order}-{job.pixel}.json").read_text())
    path, digest = ReleaseLayout(root).partition_file(job.order, job.pixel), str(entry["digest"])
    there = _footer(path)
    if there is not None and there.digest == digest:
        return _receipt(job, path, "kept")
    if entry["carried"] is not None and link_reusable(ReusablePartition(**entry["carried"]), path):
        return _receipt(job, path, "carried")
    schema = pq.read_schema(root / PLAN / "schema.parquet")
    partition = Partition(**entry["partition"])
    shares = [TileShare(share["path"], tuple(share["left_out"])) for share in entry["tiles"]]
    table = _rows(partition, shares, schema)
    _write(path, table, digest)
    return _receipt(job, path, "written")


def _rows(partition: Partition, shares: list[TileShare], schema: pa.Schema) -> pa.Table:
    """The rows of a pixel, sorted by position and id."""
    first, after = pixel_range(partition)
    parts = []
    for share in shares:
        try:
            part = pq.ParquetFile(share.path).read(use_threads=False).replace_schema_metadata(schema.metadata)
        except (OSError, pa.ArrowException) as error:
            raise CatalogError(f"{share.path}: damaged ({error}); delete the file and survey again") from error
        if not part.schema.equals(schema):
            raise CatalogError(f"{share.path}: changed while the release was built; build it again")
        positions = part["_healpix_29"].to_numpy()
        taken = (positions >= first) & (positions < after)
        taken[list(share.left_out)] = False
        parts.append(part if taken.all() else part.filter(pa.array(taken)))
    table = pa.concat_tables(parts)
    if table.num_rows != partition.rows:
        raise CatalogError(
            f"pixel {partition.pixel} of order {partition.order}: {table.num_rows} rows in its tiles, "
            f"{partition.rows} were planned; tiles changed while the release was built, build it again"
        )
    order = np.lexsort((table["object_id"].to_numpy(), table["_healpix_29"].to_numpy()))
    return table.combine_chunks().take(pa.array(order))


def _write(path: Path, table: pa.Table, digest: str) -> None:
    simulated = int(pc.sum(pc.starts_with(table["survey_layer"], "simulated")).as_py() or 0)
    runs = sorted(table["run_id"].unique().to_pylist())
    footer = _Footer(digest=digest, classified=count_classified(table), simulated=simulated, runs=runs)
    described = with_widths(table.schema.metadata or {}, table)
    metadata = {**described, _LEAF_KEY: footer.model_dump_json().encode()}
    with atomic_write(path) as beside:
        pq.write_table(table.replace_schema_metadata(metadata), beside, compression="zstd", row_group_size=ROW_GROUP)


def link_reusable(reusable: ReusablePartition, path: Path) -> bool:
    """Reuse a partition file of another release at `path`, by a hard link if possible; returns whether it did.

    The file is compared with its checksum first: damage must not go from release to release.
    """
    source = Path(reusable.path)
    if not source.is_file() or sha256_of(source) != reusable.sha256:
        _log.warning("%s is damaged or gone; its rows are taken from the tiles again", source)
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        os.link(source, path)
        fsync(path.parent)
    except OSError:  # another file system, or one without links
        with atomic_write(path) as beside:
            shutil.copyfile(source, beside)
    return True


def sha256_of(path: Path) -> str:
    """Checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _footer(path: Path) -> _Footer | None:
    """What a partition file says it was made from; None if there is no whole file."""
    try:
        return _Footer.model_validate_json((pq.read_metadata(path).metadata or {})[_LEAF_KEY])
    except (OSError, pa.ArrowException, ValidationError, KeyError):
        return None


def _receipt(job: PartitionJob, path: Path, made: str) -> PartitionFile:
    footer = _footer(path)
    if footer is None:
        raise CatalogError(f"{path}: what was written does not read back; is the disk full or failing?")
    return PartitionFile(
        order=job.order,
        pixel=job.pixel,
        rows=pq.read_metadata(path).num_rows,
        classified=footer.classified,
        simulated=footer.simulated,
        digest=footer.digest,
        sha256=sha256_of(path),
        runs=tuple(footer.runs),
        made=made,
    )


@dataclass(frozen=True)
class MarginFile:
    """How many rows of other pixels lie in the margin of a pixel."""

    order: int
    pixel: int
    rows: int


def build_margin(job: PartitionJob) -> MarginFile:
    """Make the margin of one partition file; all partition files must be there, and partition_info.csv."""
    from catalogs.releases.margin_cache import write_margin_file

    layout = ReleaseLayout(Path(job.root))
    rows = write_margin_file(layout, layout.partitions(), job.order, job.pixel)
    return MarginFile(job.order, job.pixel, rows)
