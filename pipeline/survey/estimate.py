"""What a survey would do now, and how long it would take on this machine: `morphcat plan`.

Tiles, stamps and bytes are counted; times and sizes are extrapolated from a pilot run on some of the tiles (`pilot`).
Nothing of the workspace changes. Times are those of this machine as it is now; their range comes from the scatter
between the tiles of the pilot run.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalogs.export.writers import VOTABLE_ROWS
from catalogs.releases.registry import current_release
from pipeline.config.inputs import ReadingSettings
from pipeline.config.workspace import Workspace
from pipeline.core.errors import BadInput
from pipeline.readers.bricks.reader import selection_of
from pipeline.survey.plan import find_inputs, make_plan, start_run, survey_roots
from pipeline.survey.run import classify_jobs
from pipeline.tiles.file_names import FOLDER_KINDS, TileKind, inputs_in
from pipeline.tiles.sky_tile import SkyTile, files_of

if TYPE_CHECKING:
    from pipeline.survey.pilot import PilotResult, PilotTile

_MAX_CATALOGUES = 50  # of bricks, read to count their objects
_CATALOGUE_SECONDS = 20.0  # after which no more are read
_MIN_ERROR = 0.1  # relative, of a time: the same machine is not always equally fast
_SINGLE_TILE_ERROR = 0.5  # relative, of a time estimated from a single tile


@dataclass(frozen=True)
class Interval:
    """A number with the range in which it is expected."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SurveyEstimate:
    """What a survey would do. Sizes in bytes, times in seconds; None without a pilot run, or where it gave nothing.

    tiles, done, waiting, to_do : sky tiles found; `kinds` are those to do by kind.
    stamps : to classify, about; of `bricks` to do, the catalogues of `catalogues_read` were read to count them.
    read_bytes : size of the files that belong to the tiles to do; of bricks without their neighbours.
    workers : processes that the estimate is for, each like one of the pilot run.
    seconds : from the start of the workers to the release.
    read_bytes_per_second : of the pilot run, by all workers together, from wherever the system had the files.
    tile_bytes, release_bytes : what the run adds under `catalog/`; unchanged files of a release take no room again.
    free_bytes : room on the disk of the catalogue.
    """

    model_id: str
    tiles: int
    done: int
    waiting: int
    to_do: int
    kinds: dict[str, int]
    stamps: int
    bricks: int
    catalogues_read: int
    read_bytes: int
    workers: int
    free_bytes: int
    seconds: Interval | None = None
    tile_bytes: int | None = None
    release_bytes: int | None = None
    read_bytes_per_second: float | None = None
    pilot: PilotResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a script; the pilot run is named `trial`."""
        values = asdict(self)
        values["trial"] = values.pop("pilot")
        if self.pilot:
            values["trial"] |= {"stamps": self.pilot.stamps, "stamps_per_second": self.pilot.stamps_per_second}
        return values


@dataclass(frozen=True)
class StampCounts:
    """How many stamps there are to classify, by kind of tile.

    Of `bricks` bricks the catalogues of `read` were read; the others are taken to have as many objects on average.
    """

    stamps: dict[TileKind, float]
    bricks: int = 0
    read: int = 0

    @property
    def total(self) -> int:
        return round(sum(self.stamps.values()))


def estimate(workspace: Workspace, model_id: str | None, roots: Sequence[Path], seconds: float) -> SurveyEstimate:
    """Estimate what a survey of these roots would do, from a pilot run of about so many seconds; 0 for none.

    Raises
    ------
    UserError, ModelError, CatalogError : as the survey would before its first tile.
    """
    run = start_run(workspace, model_id)
    with tempfile.TemporaryDirectory(prefix="morphcat-plan-") as scratch:
        # Tables cut from a list of positions go into the cache, classified tiles into the catalogue.
        copy = workspace.changed(folders={"cache": f"{scratch}/cache"})
        settings = copy.settings
        tiles = find_inputs(copy, survey_roots(copy, run, roots)).tiles
        plan = make_plan(copy, run, tiles)
        sizes, stamps = input_sizes(plan.todo, tiles), expected_stamps(plan.todo, settings.reading)
        counted = SurveyEstimate(
            model_id=run.card.model_id,
            tiles=len(tiles),
            done=len(plan.done),
            waiting=len(plan.waiting),
            to_do=len(plan.todo),
            kinds=dict(Counter(str(tile.kind) for tile in plan.todo)),
            stamps=stamps.total,
            bricks=stamps.bricks,
            catalogues_read=stamps.read,
            read_bytes=round(sum(sizes.values())),
            workers=settings.workers.count if settings.workers.kind in ("local", "slurm") else 1,
            free_bytes=_free_bytes(workspace.catalog),
        )
        if not plan.todo or seconds <= 0:
            return counted
        from pipeline.survey.pilot import run_pilot  # loads torch, which counting does not need

        release = current_release(workspace.catalog)
        kept_rows = release.objects if release and release.model_id == run.card.model_id else 0
        pilot = run_pilot(
            classify_jobs(copy.changed(folders={"catalog": f"{scratch}/catalog"}), run, plan.todo),
            seconds,
            settings.workers,
            exports=settings.release.exports,
            votable=kept_rows + stamps.total <= VOTABLE_ROWS,
        )
    return _extrapolate(counted, pilot, stamps, sizes, kept_rows)


def _free_bytes(folder: Path) -> int:
    """Room on the disk where a folder is, or will be."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def input_sizes(todo: Iterable[SkyTile], found: Iterable[SkyTile]) -> dict[str, float]:
    """Bytes of the files of each tile to do, by tile id; a file that several need counts for the first.

    A file that is several tiles is shared among them by rows. `found` are all tiles, done or not.
    """
    rows: dict[str, int] = defaultdict(int)
    for tile in found:
        rows[tile.path] = max(rows[tile.path], tile.stop)
    names: dict[tuple[str, TileKind], list[str]] = {}
    counted: set[Path] = set()
    sizes: dict[str, float] = {}
    for tile in todo:
        if tile.kind in (TileKind.HDF5, TileKind.ARCHIVE):
            share = (tile.stop - tile.start) / rows[tile.path] if rows[tile.path] > 0 else 1.0
            sizes[tile.tile_id] = share * _size(Path(tile.path))
            continue
        if tile.kind in FOLDER_KINDS and (tile.path, tile.kind) not in names:
            names[tile.path, tile.kind] = inputs_in(Path(tile.path), tile.kind)
        inputs = names.get((tile.path, tile.kind), [])[tile.start : tile.stop]
        files = set(files_of(tile, inputs, edges=False)) - counted
        counted |= files
        sizes[tile.tile_id] = sum(map(_size, files))
    return sizes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone, or a link to nothing: it will be quarantined
        return 0


def expected_stamps(todo: Sequence[SkyTile], reading: ReadingSettings) -> StampCounts:
    """How many stamps there are to classify; those of bricks are estimated from the catalogues of some."""
    stamps: dict[TileKind, float] = defaultdict(float)
    bricks = [tile for tile in todo if tile.kind is TileKind.BRICK]
    for tile in todo:
        if tile.kind is not TileKind.BRICK:
            stamps[tile.kind] += max(tile.stop - tile.start, 0)
    counts: list[int] = []
    began = time.monotonic()
    for tile in bricks[:: math.ceil(len(bricks) / _MAX_CATALOGUES) or 1]:
        counts.append(_count_objects(tile, reading))
        if time.monotonic() - began > _CATALOGUE_SECONDS:
            break
    if bricks:
        stamps[TileKind.BRICK] = len(bricks) * sum(counts) / len(counts)
    return StampCounts(dict(stamps), len(bricks), len(counts))


def _count_objects(tile: SkyTile, reading: ReadingSettings) -> int:
    try:
        return len(selection_of(tile, reading).targets)
    except (BadInput, OSError):  # no catalogue, or one that cannot be read: no stamps
        return 0


def _extrapolate(
    counted: SurveyEstimate, pilot: PilotResult, stamps: StampCounts, sizes: Mapping[str, float], kept_rows: int
) -> SurveyEstimate:
    """Add times and sizes from the pilot run; the next release has `kept_rows` more rows than the run gives."""
    if not pilot.tiles:
        return replace(counted, pilot=pilot)
    read_bytes = sum(tile.share * sizes[tile.tile_id] for tile in pilot.tiles)
    rows = stamps.total * sum(tile.rows for tile in pilot.tiles) / max(pilot.stamps, 1)
    tile_size, release_size = pilot.tile_size, pilot.release_size
    return replace(
        counted,
        seconds=_duration(counted, pilot, stamps),
        read_bytes_per_second=pilot.workers * read_bytes / pilot.classification_seconds,
        tile_bytes=round(tile_size.fixed * counted.to_do + tile_size.per_row * rows) if tile_size else None,
        release_bytes=round(release_size.fixed + release_size.per_row * (kept_rows + rows)) if release_size else None,
        pilot=pilot,
    )


def _duration(counted: SurveyEstimate, pilot: PilotResult, stamps: StampCounts) -> Interval:
    """Seconds that a survey takes: the start, every kind of tile by itself, shared by the workers, and the release."""
    total = variance = 0.0
    for kind, tiles in counted.kinds.items():
        of_kind = [tile for tile in pilot.tiles if tile.kind == kind] or pilot.tiles
        seconds, error = ratio_estimate(of_kind, stamps.stamps.get(TileKind(kind), 0.0), tiles)
        total += seconds
        variance += error**2
    error = max(2 * math.sqrt(variance), _MIN_ERROR * total)
    workers = min(counted.workers, counted.to_do)
    once = pilot.start + pilot.release
    value, low, high = (once + seconds / workers for seconds in (total, max(total - error, 0.0), total + error))
    return Interval(value, low, high)


def ratio_estimate(sample: Sequence[PilotTile], stamps: float, tiles: int) -> tuple[float, float]:
    """Seconds that so many tiles with so many stamps take, and their standard error, from a sample of the same kind.

    The ratio estimator of survey sampling (Cochran, Sampling Techniques, 1977, chapter 6), without the correction for
    a finite population; tiles without stamps count by their number.
    """
    seconds, sampled = sum(tile.seconds for tile in sample), sum(tile.stamps for tile in sample)
    total = seconds / sampled * stamps if sampled else seconds / len(sample) * tiles
    if len(sample) == 1:
        return total, _SINGLE_TILE_ERROR * total
    residuals = [tile.seconds - seconds * (tile.stamps / sampled if sampled else 1 / len(sample)) for tile in sample]
    equal_tiles = stamps * len(sample) / sampled if sampled else tiles  # how many of the sample's mean size
    return total, equal_tiles * math.sqrt(sum(r**2 for r in residuals) / (len(sample) - 1) / len(sample))
