"""A pilot run of a survey: some of its sky tiles, classified on this machine to measure how long the others will take.

Everything is written into a scratch folder; a workspace does not change. `estimate` chooses the tiles that could be
tried, and extrapolates to all of them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from catalogs.releases.build import publish
from catalogs.releases.registry import folder_size, layout_of
from catalogs.schema import count_classified
from catalogs.tiles import commit, committed
from models.inference.predictor import predictor_for
from pipeline.config.workers import WorkerSettings
from pipeline.execution.executor import run_tasks
from pipeline.ingest.discovery import with_fingerprint
from pipeline.survey.classify import ClassifyJob, classify
from pipeline.tiles.file_names import TileKind
from pipeline.tiles.sky_tile import names_of

_TILES_PER_WORKER = 8  # to classify in the time that there is, so that their scatter can be measured


@dataclass(frozen=True)
class PilotTile:
    """One sky tile, or the first `share` of it, as it was classified: `stamps` inputs gave `rows` rows in `seconds`.

    `loading` : seconds before, until the worker had the model ready.
    """

    tile_id: str
    kind: TileKind
    stamps: int
    rows: int
    share: float
    seconds: float
    loading: float


@dataclass(frozen=True)
class SizeModel:
    """Bytes of something that has rows: what it takes without any, and more for each."""

    fixed: float
    per_row: float


@dataclass(frozen=True)
class PilotResult:
    """What was measured: tiles, and those that failed, with the last line of the error.

    workers : processes that classified at the same time.
    start : seconds until the first of them was ready.
    release : seconds that a release of the tiles took, 0 where there were no rows.
    tile_size, release_size : of a committed tile, and of the release; None if there were no rows.
    """

    workers: int
    start: float
    tiles: list[PilotTile]
    failed: dict[str, str] = field(default_factory=dict)
    release: float = 0.0
    tile_size: SizeModel | None = None
    release_size: SizeModel | None = None

    @property
    def stamps(self) -> int:
        """How many inputs were classified."""
        return sum(tile.stamps for tile in self.tiles)

    @property
    def classification_seconds(self) -> float:
        """Seconds that the workers spent on classification, added up; never 0."""
        return max(sum(tile.seconds for tile in self.tiles), 1e-9)

    @property
    def stamps_per_second(self) -> float:
        """Inputs a second, by all workers together."""
        return self.workers * self.stamps / self.classification_seconds


@dataclass(frozen=True)
class PilotJob:
    """A tile to classify; one with more than `seconds` of work is cut, unless it is a brick."""

    job: ClassifyJob
    seconds: float

    @property
    def name(self) -> str:
        return self.job.name


def run_pilot(
    jobs: Sequence[ClassifyJob], seconds: float, workers: WorkerSettings, *, exports: bool, votable: bool
) -> PilotResult:
    """Classify a spread sample of tiles for about so many seconds, and build a release of them.

    Parameters
    ----------
    jobs : one for each tile that could be tried; their `catalog` is a scratch folder.
    seconds : of classification. Starting workers, loading the model and the release come on top; a brick that was begun
        is finished.
    workers : where; any kind but local runs in this process.
    exports : whether releases have exports; `votable`, whether a VOTable is among them.

    Raises what `pipeline.execution.executor.run_tasks` raises.
    """
    local = workers if workers.kind == "local" else workers.model_copy(update={"kind": "inline"})
    result = _classify_sample([PilotJob(job, seconds / _TILES_PER_WORKER) for job in spread(jobs)], seconds, local)
    if not any(tile.rows for tile in result.tiles):
        return result
    catalog, model_id = Path(jobs[0].catalog), jobs[0].model_id
    tiles = list(committed(catalog, model_id))
    began = time.monotonic()
    whole = _release_size(catalog, model_id, exports, votable)
    release_seconds = time.monotonic() - began
    # A second release, of every other row, shows what does not grow with the rows.
    half_catalog = catalog.with_name("half")
    for path, metadata in tiles:
        rows = pq.read_table(path).replace_schema_metadata(None)
        half = rows.take(np.arange(0, rows.num_rows, 2))
        classified = count_classified(half)
        counts = {"classified": classified, "unclassified": half.num_rows - classified, "found": -1}
        commit(half_catalog, half, metadata.model_copy(update=counts))
    return replace(
        result,
        release=release_seconds,
        tile_size=_fit_tile_size([path for path, _ in tiles]),
        release_size=_fit_line(_release_size(half_catalog, model_id, exports, votable), whole),
    )


def spread(jobs: Sequence[ClassifyJob]) -> list[ClassifyJob]:
    """Jobs in such an order that the first few, however many, are of all kinds and from everywhere in the list."""
    kinds: dict[TileKind, list[ClassifyJob]] = defaultdict(list)
    for job in jobs:
        kinds[job.tile.kind].append(job)
    in_turn = zip_longest(*(_bit_reversed(of_kind) for of_kind in kinds.values()))
    return [job for job in chain.from_iterable(in_turn) if job is not None]


def _bit_reversed(jobs: list[ClassifyJob]) -> list[ClassifyJob]:
    """The middle first, then the middles of the halves, and so on: numbers with their bits reversed."""
    bits = len(jobs).bit_length()
    fractions = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1, 2**bits))
    order = dict.fromkeys(fraction * len(jobs) >> bits for fraction in fractions)
    return [jobs[index] for index in order]


def _classify_sample(jobs: list[PilotJob], seconds: float, workers: WorkerSettings) -> PilotResult:
    """Classify one job after the other until the time is over."""
    tiles: list[PilotTile] = []
    failed: dict[str, str] = {}
    began, ready = time.monotonic(), 0.0
    with closing(run_tasks(measure, jobs, workers)) as results:  # type: ignore[type-var]  # it is a generator
        for result in results:
            now = time.monotonic()
            if result.receipt is None:
                failed[result.name] = result.error.strip().splitlines()[-1]
            else:
                tiles.append(result.receipt)
            loading = result.receipt.loading if result.receipt else 0.0
            ready = ready or now - result.seconds + loading
            if now - ready >= seconds:
                break
    processes = min(workers.count, len(jobs)) if workers.kind == "local" else 1
    return PilotResult(processes, ready - began, tiles, failed)


def measure(pilot: PilotJob) -> PilotTile:
    """Classify a tile, or as much of it as its seconds allow, and measure how long that takes.

    Raises what `pipeline.survey.classify.classify` raises.
    """
    job, began = pilot.job, time.monotonic()
    predictor = predictor_for(Path(job.models), job.model_id, job.device, job.batch)
    side = predictor.preprocessing.image_size
    predictor.predict(torch.zeros((2, 3, side, side), dtype=torch.uint8, device=predictor.device))
    loading = time.monotonic() - began
    inputs = job.tile.stop - job.tile.start
    if inputs > job.batch:
        # The time of a first batch shows how many inputs there is time for.
        first = replace(_cut(job, job.batch), catalog=f"{job.catalog}-first")
        began = time.monotonic()
        classify(first)
        affordable = int(job.batch * pilot.seconds / (time.monotonic() - began))
        job = _cut(job, max(job.batch, min(affordable, inputs)))
    began = time.monotonic()
    receipt = classify(job)
    seconds = time.monotonic() - began
    rows = receipt.classified + receipt.unclassified
    share = (job.tile.stop - job.tile.start) / inputs if inputs > 0 else 1.0
    return PilotTile(job.tile.tile_id, job.tile.kind, receipt.objects, rows, share, seconds, loading)


def _cut(job: ClassifyJob, inputs: int) -> ClassifyJob:
    """The same job for the first inputs of its tile only."""
    tile = replace(job.tile, stop=job.tile.start + inputs)
    return replace(job, tile=with_fingerprint(tile, names_of(tile), job.reading))


def _fit_tile_size(paths: Sequence[Path]) -> SizeModel:
    """The size of committed tiles: what belongs to their columns grows with the rows, the rest of a file does not."""
    fixed = in_columns = rows = 0
    for path in paths:
        footer = pq.read_metadata(path)
        groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
        columns = sum(group.column(i).total_compressed_size for group in groups for i in range(group.num_columns))
        fixed += path.stat().st_size - columns
        in_columns += columns
        rows += footer.num_rows
    return SizeModel(fixed / len(paths), in_columns / rows)


def _release_size(catalog: Path, model_id: str, exports: bool, votable: bool) -> tuple[int, int]:
    """Rows and bytes of a release that is built of what is committed."""
    release = publish(catalog, model_id, exports=exports)
    assert release is not None  # tiles are committed
    layout = layout_of(catalog, release.release)
    omitted = [] if votable else list(layout.export.glob("*.vot"))
    return release.objects, folder_size(layout.root) - sum(path.stat().st_size for path in omitted)


def _fit_line(half: tuple[int, int], whole: tuple[int, int]) -> SizeModel:
    """The straight line through two releases, each as rows and bytes; all is per row where there is only one row."""
    if whole[0] == half[0]:
        return SizeModel(0.0, whole[1] / whole[0])
    per_row = max(whole[1] - half[1], 0) / (whole[0] - half[0])
    return SizeModel(whole[1] - per_row * whole[0], per_row)
