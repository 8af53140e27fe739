"""The unit of a survey: one sky tile in, one committed file out.

`classify` is a plain function of small arguments that runs in any process. It reads a tile in bounded batches; each
batch goes through the same steps (screen, render, predict, rows), of which only the rows are kept. It ends with an
atomic commit, and the committed file is the only record that the tile is done.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from catalogs.tiles import commit, read_tile_metadata, tile_path
from models.inference.predictor import predictor_for
from pipeline.config.inputs import ReadingSettings
from pipeline.core.errors import BadInput
from pipeline.core.times import utc_of
from pipeline.readers.dispatch import read_tile
from pipeline.survey.prediction import PreviousPredictions, predict, render_stamps
from pipeline.survey.rows import rows_of
from pipeline.survey.screening import screen
from pipeline.survey.tile_result import TileResult, log_outcome
from pipeline.tiles.sky_tile import SkyTile, origin_of

_BATCHES_BETWEEN_TRIMS = 8


@dataclass(frozen=True)
class ClassifyJob:
    """What a worker needs to classify one tile: strings and numbers, under 1 KB."""

    tile: SkyTile
    models: str
    model_id: str
    catalog: str
    run_id: str
    mjd: float
    device: str
    batch: int
    reading: ReadingSettings

    @property
    def name(self) -> str:
        return self.tile.tile_id


@dataclass(frozen=True)
class TileReceipt:
    """What became of one tile."""

    tile_id: str
    classified: int
    unclassified: int
    quarantined: int

    @property
    def objects(self) -> int:
        """All inputs of the tile."""
        return self.classified + self.unclassified + self.quarantined


def classify(job: ClassifyJob) -> TileReceipt:
    """Classify every object of a tile and commit the rows.

    Raises
    ------
    OSError : the system failed; nothing was committed.
    pipeline.core.errors.InputChanged : files of the tile changed since it was found; nothing was committed.
    models.errors.ModelError : the model cannot be loaded.
    """
    tile, catalog = job.tile, Path(job.catalog)
    predictor = predictor_for(Path(job.models), job.model_id, job.device, job.batch)
    card, preprocessing = predictor.card, predictor.preprocessing
    path = tile_path(catalog, job.model_id, tile.tile_id)
    previous = PreviousPredictions.from_tile(path, job.model_id, preprocessing.digest)
    result = TileResult(tile)
    object_ids: set[int] = set()
    try:
        for number, batch in enumerate(read_tile(tile, job.reading, job.batch), 1):
            if number % _BATCHES_BETWEEN_TRIMS == 0:
                _return_freed_memory()
            screened = screen(batch, object_ids, tile.path, preprocessing, card)
            result.count(batch, screened.refused)
            if not screened.stamps:
                continue
            pixels = render_stamps(screened.batch, preprocessing, predictor.device)
            prediction = predict(pixels, screened, predictor, previous, job.run_id, job.mjd)
            result.add(rows_of(screened, prediction, tile.tile_id, card), prediction.reused)
    except BadInput as bad:
        result = result.refused(bad)
    table = result.table(card.class_slugs)
    metadata = result.metadata(
        table,
        previous=read_tile_metadata(path),
        utc=utc_of(job.mjd),
        origin=origin_of(tile, catalog),
        run_id=job.run_id,
        model_id=job.model_id,
        recipe_digest=preprocessing.digest,
        class_slugs=card.class_slugs,
    )
    commit(catalog, table, metadata)
    log_outcome(metadata)
    return TileReceipt(tile.tile_id, metadata.classified, metadata.unclassified, len(metadata.quarantine))


def _return_freed_memory() -> None:
    """Return free pages to the system, where the C library can (glibc).

    The rows that are kept lie scattered between the freed pixels of their batches, so that the heap grows by 17 MB with
    each batch of 16 stamps. Trimming every few batches costs little; trimming always (MALLOC_TRIM_THRESHOLD_) makes the
    unit up to three times as slow, by page faults.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
