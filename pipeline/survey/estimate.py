"""What a survey would do now, and how long it would take on this machine: counted, then tried on a few of its tiles.

Nothing of the workspace changes. Times are those of this machine as it is now; the range comes from the scatter between
the tiles that were tried.
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
from pipeline.config.workers import WorkerSettings
from pipeline.config.workspace import Workspace
from pipeline.core.errors import BadInput
from pipeline.readers.bricks.reader import selection_of
from pipeline.survey.plan import find_tiles, make_plan, start_run, survey_roots
from pipeline.survey.run import classify_jobs
from pipeline.tiles.sky_tile import FOLDER_KINDS, SkyTile, TileKind, files_of, inputs_in

if TYPE_CHECKING:
    from pipeline.survey.pilot import PilotResult, PilotTile

_MOST_CATALOGUES = 50  # of bricks, read to count their objects
_CATALOGUE_SECONDS = 20.0  # after which no more are read
_LEAST_ERROR = 0.1  # of a time: a machine is not twice the same
_ALONE_ERROR = 0.5  # of a time that a single tile tells


@dataclass(frozen=True)
class StampCounts:
    """How many stamps there are to classify, by kind of tile; `read` of `bricks` catalogues were read to tell.

    Bricks whose catalogue was not read are taken to have as many objects as the others have on average.
    """

    stamps: dict[TileKind, float]
    bricks: int = 0
    read: int = 0

    @property
    def total(self) -> int:
        return round(sum(self.stamps.values()))


@dataclass(frozen=True)
class Interval:
    """A number with the range in which it is expected."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SurveyEstimate:
    """What a survey would do. Sizes in bytes, times in seconds; None where there was no trial, or it told nothing.

    tiles, done, waiting, to_do : sky tiles found; `kinds` are those to do by kind.
    read_bytes : size of the files that belong to the tiles to do; of bricks without their neighbours.
    workers : processes that the forecast is for, each like one of the trial.
    seconds : from the start of the workers to the release.
    read_bytes_per_second : of the tiles that were tried, by all workers together, from wherever the system had them.
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
    trial: PilotResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a script."""
        values = asdict(self)
        if self.trial:
            values["trial"] |= {"stamps": self.trial.stamps, "stamps_per_second": self.trial.stamps_per_second}
        return values


def estimate(workspace: Workspace, model_id: str | None, roots: Sequence[Path], seconds: float) -> SurveyEstimate:
    """Say what a survey of these roots would do; `seconds` is how long tiles are tried, 0 not at all.

    Raises
    ------
    UserError, ModelError, CatalogError : as the survey would before its first tile.
    """
    run = start_run(workspace, model_id)
    with tempfile.TemporaryDirectory(prefix="morphcat-plan-") as name:
        scratch = Path(name)
        place = workspace.changed(folders={"cache": str(scratch / "cache")})  # tables cut from a list of positions
        tiles = find_tiles(place, survey_roots(place, run, roots))
        plan = make_plan(place, run, tiles)
        sizes = sizes_of(plan.todo, tiles)
        expected = expected_stamps(plan.todo, place.settings.reading)
        counted = SurveyEstimate(
            model_id=run.card.model_id,
            tiles=len(tiles),
            done=len(plan.done),
            waiting=len(plan.waiting),
            to_do=len(plan.todo),
            kinds=dict(Counter(str(tile.kind) for tile in plan.todo)),
            stamps=expected.total,
            bricks=expected.bricks,
            catalogues_read=expected.read,
            read_bytes=round(sum(sizes.values())),
            workers=_processes(place.settings.workers),
            free_bytes=_free(workspace.catalog),
        )
        if not plan.todo or seconds <= 0:
            return counted
        released = _released_rows(workspace, run.card.model_id)
        settings = place.settings
        from pipeline.survey.pilot import run_pilot  # torch only where tiles are tried

        trial = run_pilot(
            classify_jobs(place.changed(folders={"catalog": str(scratch / "catalog")}), run, plan.todo),
            seconds,
            settings.workers,
            exports=settings.release.exports,
            votable=released + expected.total <= VOTABLE_ROWS,
        )
    return _extrapolated(counted, trial, expected, sizes, released)


def _processes(workers: WorkerSettings) -> int:
    """Workers that a forecast is for: their number where the settings tell it, else one."""
    return workers.n if workers.kind in ("local", "slurm") else 1


def _free(folder: Path) -> int:
    """Bytes free where a folder is, or will be."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free


def _released_rows(workspace: Workspace, model_id: str) -> int:
    """Rows that the model has in the current release, and that will be in the next one too."""
    release = current_release(workspace.catalog)
    return release.objects if release and release.model_id == model_id else 0


def sizes_of(todo: Iterable[SkyTile], found: Iterable[SkyTile]) -> dict[str, float]:
    """Bytes of the files of each tile to do, by tile id; a file that several need counts for the first.

    Of a file that is several tiles each has its share by rows. `found` are all tiles, done or not.
    """
    rows: dict[str, int] = defaultdict(int)
    for tile in found:
        rows[tile.path] = max(rows[tile.path], tile.stop)
    names: dict[tuple[str, TileKind], list[str]] = {}
    seen: set[Path] = set()
    sizes: dict[str, float] = {}
    for tile in todo:
        if tile.kind in (TileKind.HDF5, TileKind.ARCHIVE):
            share = (tile.stop - tile.start) / rows[tile.path] if rows[tile.path] > 0 else 1.0
            sizes[tile.tile_id] = share * _size(Path(tile.path))
            continue
        if tile.kind in FOLDER_KINDS and (tile.path, tile.kind) not in names:
            names[tile.path, tile.kind] = inputs_in(Path(tile.path), tile.kind)
        inputs = names.get((tile.path, tile.kind), [])[tile.start : tile.stop]
        files = set(files_of(tile, inputs, edges=False)) - seen
        seen |= files
        sizes[tile.tile_id] = sum(map(_size, files))
    return sizes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone, or a link to nothing: it will be quarantined
        return 0


def expected_stamps(todo: Sequence[SkyTile], reading: ReadingSettings) -> StampCounts:
    """How many stamps there are to classify: known of all tiles but bricks, of these from catalogues of some."""
    stamps: dict[TileKind, float] = defaultdict(float)
    bricks = [tile for tile in todo if tile.kind is TileKind.BRICK]
    for tile in todo:
        if tile.kind is not TileKind.BRICK:
            stamps[tile.kind] += max(tile.stop - tile.start, 0)
    counts: list[int] = []
    began = time.monotonic()
    for tile in bricks[:: math.ceil(len(bricks) / _MOST_CATALOGUES) or 1]:
        counts.append(_objects_of(tile, reading))
        if time.monotonic() - began > _CATALOGUE_SECONDS:
            break
    if bricks:
        stamps[TileKind.BRICK] = len(bricks) * sum(counts) / len(counts)
    return StampCounts(dict(stamps), len(bricks), len(counts))


def _objects_of(tile: SkyTile, reading: ReadingSettings) -> int:
    try:
        return len(selection_of(tile, reading).targets)
    except (BadInput, OSError):  # no catalogue, or one that cannot be read: no stamps
        return 0


def _extrapolated(
    counted: SurveyEstimate, trial: PilotResult, expected: StampCounts, sizes: Mapping[str, float], released: int
) -> SurveyEstimate:
    """The forecast with what the trial tells."""
    if not trial.tiles:
        return replace(counted, trial=trial)
    read = sum(tile.share * sizes[tile.tile_id] for tile in trial.tiles)
    rows = expected.total * sum(tile.rows for tile in trial.tiles) / max(trial.stamps, 1)
    tile_size, release_size = trial.tile_size, trial.release_size
    return replace(
        counted,
        seconds=_time(counted, trial, expected),
        read_bytes_per_second=trial.workers * read / trial.busy,
        tile_bytes=round(tile_size.fixed * counted.to_do + tile_size.per_row * rows) if tile_size else None,
        release_bytes=round(release_size.of(released + rows)) if release_size else None,
        trial=trial,
    )


def _time(counted: SurveyEstimate, trial: PilotResult, expected: StampCounts) -> Interval:
    """Seconds that a survey takes: the start, every kind of tile by itself, shared by the workers, and the release."""
    total = variance = 0.0
    for kind, tiles in counted.kinds.items():
        of_kind = [tile for tile in trial.tiles if tile.kind == kind] or trial.tiles
        value, error = ratio_estimate(of_kind, expected.stamps.get(TileKind(kind), 0.0), tiles)
        total += value
        variance += error**2
    error = max(2 * math.sqrt(variance), _LEAST_ERROR * total)
    workers = min(counted.workers, counted.to_do)
    once = trial.start + trial.release
    low, high = max(total - error, 0.0), total + error
    return Interval(once + total / workers, once + low / workers, once + high / workers)


def ratio_estimate(tried: Sequence[PilotTile], stamps: float, tiles: int) -> tuple[float, float]:
    """Seconds that so many tiles with so many stamps take, and their standard error, from tiles of the same kind.

    The ratio estimator of survey sampling (Cochran, Sampling Techniques, 1977, chapter 6), without the correction for
    a finite population; tiles without stamps count by their number.
    """
    seconds, seen = sum(tile.seconds for tile in tried), sum(tile.stamps for tile in tried)
    whole = seconds / seen * stamps if seen else seconds / len(tried) * tiles
    if len(tried) == 1:
        return whole, _ALONE_ERROR * whole
    rest = [tile.seconds - seconds * (tile.stamps / seen if seen else 1 / len(tried)) for tile in tried]
    alike = stamps * len(tried) / seen if seen else tiles  # so many tiles of the size of those tried
    return whole, alike * math.sqrt(sum(r**2 for r in rest) / (len(tried) - 1) / len(tried))
