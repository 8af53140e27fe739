"""A trial of a survey: some of its sky tiles classified on this machine, to learn what the others will take.

Everything is written into a scratch folder; of a workspace nothing changes. Which tiles there are, and what follows for
all of them, is known elsewhere (`forecast`).
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

_TILES_A_WORKER = 8  # to be tried in the time that there is, so that their scatter tells something


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

    def of(self, rows: float) -> float:
        """Bytes with so many rows."""
        return self.fixed + self.per_row * rows


@dataclass(frozen=True)
class PilotResult:
    """What was measured: tiles, and those that failed, with the last line of the error.

    workers : processes that classified at the same time.
    start : seconds until the first of them was ready.
    release : seconds that a release of the tiles took, 0 where there were no rows.
    tile_size, release_size : of a committed tile, and of the release; None where there were no rows.
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
    def stamps_per_second(self) -> float:
        """Inputs a second, by all workers together."""
        return self.workers * self.stamps / self.busy

    @property
    def busy(self) -> float:
        """Seconds that the workers were classifying, added up."""
        return max(sum(tile.seconds for tile in self.tiles), 1e-9)


@dataclass(frozen=True)
class PilotJob:
    """A tile to try; one with more than `seconds` of work is cut, unless it is a brick."""

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
    workers : where; any kind but local is tried in this process.
    exports : whether releases have exports; `votable`, whether a VOTable is among them.

    Raises what `pipeline.execution.executor.run_tasks` raises.
    """
    where = workers if workers.kind == "local" else workers.model_copy(update={"kind": "inline"})
    trial = _classified([PilotJob(job, seconds / _TILES_A_WORKER) for job in spread(jobs)], seconds, where)
    if not any(tile.rows for tile in trial.tiles):
        return trial
    catalog, model_id = Path(jobs[0].catalog), jobs[0].model_id
    tiles = list(committed(catalog, model_id))
    began = time.monotonic()
    whole = _released(catalog, model_id, exports, votable)
    took = time.monotonic() - began
    fewer = catalog.with_name("fewer")
    for path, stamp in tiles:  # a second release, of every other row, tells what does not grow with the rows
        rows = pq.read_table(path).replace_schema_metadata(None)
        half = rows.take(np.arange(0, rows.num_rows, 2))
        known = count_classified(half)
        counts = {"classified": known, "unclassified": half.num_rows - known, "found": -1}
        commit(fewer, half, stamp.model_copy(update=counts))
    size = _line(_released(fewer, model_id, exports, votable), whole)
    return replace(trial, tile_size=_tile_size([path for path, _ in tiles]), release_size=size, release=took)


def spread(jobs: Sequence[ClassifyJob]) -> list[ClassifyJob]:
    """Jobs in such an order that the first few, however many, are of all kinds and from everywhere in the list."""
    kinds: dict[TileKind, list[ClassifyJob]] = defaultdict(list)
    for job in jobs:
        kinds[job.tile.kind].append(job)
    in_turn = zip_longest(*(_far_apart(of_kind) for of_kind in kinds.values()))
    return [job for job in chain.from_iterable(in_turn) if job is not None]


def _far_apart(jobs: list[ClassifyJob]) -> list[ClassifyJob]:
    """The middle first, then the middles of the halves, and so on: numbers with their bits reversed."""
    bits = len(jobs).bit_length()
    places = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1, 2**bits))
    order = dict.fromkeys(place * len(jobs) >> bits for place in places)
    return [jobs[place] for place in order]


def _classified(jobs: list[PilotJob], seconds: float, where: WorkerSettings) -> PilotResult:
    """Classify one job after the other until the time is over."""
    measured: list[PilotTile] = []
    failed: dict[str, str] = {}
    began, ready = time.monotonic(), 0.0
    with closing(run_tasks(measure, jobs, where)) as outcomes:  # type: ignore[type-var]  # it is a generator
        for outcome in outcomes:
            now = time.monotonic()
            if outcome.receipt is None:
                failed[outcome.name] = outcome.error.strip().splitlines()[-1]
            else:
                measured.append(outcome.receipt)
            loading = outcome.receipt.loading if outcome.receipt else 0.0
            ready = ready or now - outcome.seconds + loading
            if now - ready >= seconds:
                break
    workers = min(where.count, len(jobs)) if where.kind == "local" else 1
    return PilotResult(workers, ready - began, measured, failed)


def measure(trial: PilotJob) -> PilotTile:
    """Classify a tile, or as much of it as can be done in the seconds of the trial, and say how long it took.

    Raises what `pipeline.survey.classify.classify` raises.
    """
    job, began = trial.job, time.monotonic()
    predictor = predictor_for(Path(job.models), job.model_id, job.device, job.batch)
    side = predictor.recipe.image_size
    predictor.predict(torch.zeros((2, 3, side, side), dtype=torch.uint8, device=predictor.device))
    loading = time.monotonic() - began
    inputs = job.tile.stop - job.tile.start
    if inputs > job.batch:
        first = replace(_cut(job, job.batch), catalog=f"{job.catalog}-first")
        began = time.monotonic()
        classify(first)
        most = int(job.batch * trial.seconds / (time.monotonic() - began))
        job = _cut(job, max(job.batch, min(most, inputs)))
    began = time.monotonic()
    receipt = classify(job)
    seconds = time.monotonic() - began
    rows = receipt.classified + receipt.unclassified
    share = (job.tile.stop - job.tile.start) / inputs if inputs > 0 else 1.0
    return PilotTile(job.tile.tile_id, job.tile.kind, receipt.objects, rows, share, seconds, loading)


def _cut(job: ClassifyJob, inputs: int) -> ClassifyJob:
    """The same for the first inputs of the tile only."""
    tile = replace(job.tile, stop=job.tile.start + inputs)
    return replace(job, tile=with_fingerprint(tile, names_of(tile), job.reading))


def _tile_size(paths: Sequence[Path]) -> SizeModel:
    """Of committed tiles: what belongs to their columns grows with the rows, the rest of a file does not."""
    fixed = in_columns = rows = 0
    for path in paths:
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        columns = sum(group.column(i).total_compressed_size for group in groups for i in range(group.num_columns))
        fixed += path.stat().st_size - columns
        in_columns += columns
        rows += metadata.num_rows
    return SizeModel(fixed / len(paths), in_columns / rows)


def _released(catalog: Path, model_id: str, exports: bool, votable: bool) -> tuple[int, int]:
    """Rows and bytes of a release of what is committed."""
    release = publish(catalog, model_id, exports=exports)
    assert release is not None  # tiles are committed
    layout = layout_of(catalog, release.release)
    left_out = [] if votable else list(layout.export.glob("*.vot"))
    return release.objects, folder_size(layout.root) - sum(path.stat().st_size for path in left_out)


def _line(less: tuple[int, int], more: tuple[int, int]) -> SizeModel:
    """The straight line through two releases, each as rows and bytes; all is per row where there is only one row."""
    if more[0] == less[0]:
        return SizeModel(0.0, more[1] / more[0])
    slope = max(more[1] - less[1], 0) / (more[0] - less[0])
    return SizeModel(more[1] - slope * more[0], slope)
