"""The unit of work: one sky tile in, one committed file out.

`classify` is a plain function of small arguments that runs in any process. It reads in bounded chunks, keeps only
rows, and ends with an atomic commit; whether it ran is told by that file alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from catalogs.healpix import healpix_29
from catalogs.schema import (
    QualityFlag,
    arrow_schema,
    certainty_columns,
    certainty_flags,
    is_reliable,
    label_columns,
)
from catalogs.tiles import QuarantineEntry, TileMetadata, commit, read_tile_metadata, tile_path
from models.inference.predictor import Predictor, predictor_for
from models.preprocessing import Preprocessing
from pipeline.config.inputs import ReadingSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.core.object_ids import printable
from pipeline.core.times import utc_of
from pipeline.ingest.planning import origin_of
from pipeline.readers.dispatch import read_tile
from pipeline.readers.stamps import Stamp, StampBatch, quarantine_entry
from pipeline.survey.domain_checks import domain_flags, split_by_rule
from pipeline.survey.duplicates import with_duplicates_flagged
from pipeline.survey.prediction_reuse import PreviousPredictions
from pipeline.survey.quarantine import with_history
from pipeline.tiles.sky_tile import FOLDER_KINDS, SkyTile, names_of

_log = logging.getLogger(__name__)

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
    predictor = predictor_for(Path(job.models), job.model_id, job.device, job.batch)
    path = tile_path(Path(job.catalog), job.model_id, job.tile.tile_id)
    before = read_tile_metadata(path)
    made = _made(job, predictor, PreviousPredictions.from_tile(path, job.model_id, predictor.recipe.digest))
    unclassified = int(np.count_nonzero(made.table["label_id"].to_numpy() < 0))
    stamp = TileMetadata(
        tile_id=job.tile.tile_id,
        source=job.tile.source,
        origin=origin_of(job.tile, Path(job.catalog)),
        fingerprint=job.tile.fingerprint,
        model_id=job.model_id,
        recipe_digest=predictor.recipe.digest,
        run_id=job.run_id,
        class_slugs=predictor.card.class_slugs,
        classified=made.table.num_rows - unclassified,
        unclassified=unclassified,
        quarantine=with_history(made.quarantine, before, utc_of(job.mjd)),
        rejected=made.rejected,
        set_aside=made.set_aside,
        found=made.found,
        remarks=made.remarks,
        reused=made.reused,
    )
    commit(Path(job.catalog), made.table, stamp)
    _tell(stamp)
    return TileReceipt(job.tile.tile_id, stamp.classified, unclassified, len(stamp.quarantine))


def _tell(stamp: TileMetadata) -> None:
    """Log what is out of the ordinary about a tile."""
    if stamp.rejected:
        _log.info("nothing of it could be used (%s): %s", stamp.rejected, stamp.quarantine[0].detail)
    elif stamp.quarantine:
        _log.info("%d of %d inputs gave no row", len(stamp.quarantine), stamp.inputs)
    for remark in stamp.remarks:
        _log.info(remark)


@dataclass
class _Made:
    """What reading and classifying a tile gave: rows sorted by position, and everything its stamp will say.

    `rejected` is the reason when the tile as a whole was refused, `found` how many inputs it was seen to hold.
    """

    table: pa.Table
    found: int = -1
    quarantine: list[QuarantineEntry] = field(default_factory=list)
    rejected: str = ""
    set_aside: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    reused: int = 0


def _made(job: ClassifyJob, predictor: Predictor, before: PreviousPredictions | None) -> _Made:
    """Read, classify and gather a tile, batch by batch."""
    schema = arrow_schema(predictor.card.class_slugs)
    made = _Made(schema.empty_table(), max(job.tile.stop - job.tile.start, -1))
    tables: list[pa.Table] = []
    ids: set[int] = set()
    try:
        for number, batch in enumerate(read_tile(job.tile, job.reading, job.batch), 1):
            if number % _BATCHES_BETWEEN_TRIMS == 0:
                _give_back_freed_memory()
            _note(made, batch)
            known, wrong = split_by_rule(batch, predictor.recipe, job.tile.path)
            fresh, repeated = _without_repeats(known, ids, job.tile.path)
            made.quarantine += batch.quarantine + wrong + repeated
            if fresh.stamps:
                columns, reused = _columns(fresh, predictor, job, before)
                made.reused += reused
                tables.append(pa.table(columns, schema=schema))
    except BadInput as bad:
        return _Made(made.table, -1, _whole_tile(job.tile, bad), bad.reason, remarks=made.remarks)
    if tables:
        table = pa.concat_tables(tables).sort_by([("_healpix_29", "ascending"), ("object_id", "ascending")])
        made.table = with_duplicates_flagged(table)
    return made


def _note(made: _Made, batch: StampBatch) -> None:
    """Keep what the reader says about the tile as a whole."""
    for note in batch.notes:
        made.found = max(made.found, note.rows)
        made.remarks += [printable(remark) for remark in note.remarks]
        for reason, count in note.set_aside.items():
            made.set_aside[reason] = made.set_aside.get(reason, 0) + count


def _give_back_freed_memory() -> None:
    """Return free pages to the system, where the C library can (glibc).

    The rows that are kept lie scattered between the freed pixels of their batches, so that the heap grows by 17 MB with
    each batch of 16 stamps. Now and then costs little; always (MALLOC_TRIM_THRESHOLD_) makes the unit up to three times
    as slow, by page faults.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _whole_tile(tile: SkyTile, bad: BadInput) -> list[QuarantineEntry]:
    """One entry for each input of a tile of which nothing can be used; one where their number is unknown."""
    path = Path(tile.path)
    if tile.kind in FOLDER_KINDS:
        return [quarantine_entry(path / name, printable(f"{tile.source}/{name}"), bad) for name in names_of(tile)]
    rows = [f"#{row}" for row in range(tile.start, tile.stop)] or [""]
    return [quarantine_entry(path, tile.source + row, bad) for row in rows]


def _without_repeats(batch: StampBatch, seen: set[int], path: str) -> tuple[StampBatch, list[QuarantineEntry]]:
    """Take out stamps whose object id came before in this tile: an error to report, not an overwrite."""
    kept: list[Stamp] = []
    repeated: list[QuarantineEntry] = []
    for stamp in batch.stamps:
        if stamp.object_id in seen:
            detail = f"object_id {stamp.object_id} occurs twice in {path}; the first one is kept"
            repeated.append(
                quarantine_entry(Path(path), stamp.source_name, BadInput(Reason.DUPLICATE_OBJECT_ID, detail))
            )
        else:
            seen.add(stamp.object_id)
            kept.append(stamp)
    return StampBatch(kept), repeated


def _columns(
    batch: StampBatch, predictor: Predictor, job: ClassifyJob, before: PreviousPredictions | None
) -> tuple[dict[str, np.ndarray], int]:
    """All columns of the primary table for the stamps of one batch, and how many predictions were taken over."""
    pixels = model_pixels(batch, predictor.recipe, predictor.device)
    stamps, digests = batch.stamps, pixel_digests(pixels)
    ids = np.array([s.object_id for s in stamps], dtype=np.int64)
    flags = np.array([s.quality for s in stamps], dtype=np.int64)
    flags |= domain_flags(batch, predictor.recipe, predictor.card)
    classified = (flags & QualityFlag.UNCLASSIFIED) == 0
    rows = before.lookup(ids, digests) if before else np.full(len(stamps), -1)
    rows[~classified] = -1
    said = _said(pixels, classified, rows, predictor, job, before)
    flags |= said.pop("quality_flags")
    ra, dec = np.array([s.ra for s in stamps]), np.array([s.dec for s in stamps])
    keys = np.array([s.survey_keys for s in stamps])
    columns = {
        "_healpix_29": healpix_29(ra, dec),
        "object_id": ids,
        "source_name": _texts(s.source_name for s in stamps),
        "ra": ra,
        "dec": dec,
        "release": _int16(keys[:, 0]),
        "brickid": keys[:, 1].astype(np.int32),
        "objid": keys[:, 2].astype(np.int32),
        "tile_id": _texts([job.tile.tile_id] * len(stamps)),
        **said,
        "quality_flags": flags.astype(np.int32),
        "is_reliable": is_reliable(said["confidence"], flags),
        "bad_pixel_fraction": np.array([s.bad_pixel_fraction for s in stamps], dtype=np.float32),
        "maskbits": np.array([s.maskbits for s in stamps], dtype=np.int32),
        "pixscale": batch.pixscale.astype(np.float32),
        "mag_r": np.array([s.mag_r for s in stamps], dtype=np.float32),
        "survey_layer": _texts(s.survey_layer for s in stamps),
        "model_id": _texts([job.model_id] * len(stamps)),
        "input_digest": digests,
    }
    return columns, int((rows >= 0).sum())


def _said(
    pixels: Tensor,
    classified: np.ndarray,
    rows: np.ndarray,
    predictor: Predictor,
    job: ClassifyJob,
    before: PreviousPredictions | None,
) -> dict[str, np.ndarray]:
    """The columns that a prediction determines: from the commit before at `rows`, by the network where these are −1."""
    fresh = rows < 0
    parts = []
    if fresh.any():
        parts.append((fresh, _predicted(pixels[torch.from_numpy(fresh)], classified[fresh], predictor, job)))
    if before is not None and not fresh.all():
        parts.append((~fresh, before.columns(rows[~fresh])))
    said = {name: np.empty(len(rows), dtype=values.dtype) for name, values in parts[0][1].items()}
    for where, columns in parts:
        for name, values in columns.items():
            said[name][where] = values
    return said


def _predicted(pixels: Tensor, classified: np.ndarray, predictor: Predictor, job: ClassifyJob) -> dict[str, np.ndarray]:
    """What the network says of model-ready pixels uint8 (N, 3, S, S); `quality_flags` holds the bits it sets alone."""
    said, count = predictor.predict(pixels), len(pixels)
    return {
        **label_columns(said.probabilities, classified, predictor.card.class_slugs),
        **certainty_columns(said.sets, said.spread, said.novelty, said.n_views, classified),
        "quality_flags": np.where(classified, certainty_flags(said.sets, said.agreement, said.novelty), 0),
        "run_id": _texts([job.run_id] * count),
        "mjd_predicted": np.full(count, job.mjd),
    }


def _texts(values: Iterable[str]) -> np.ndarray:
    return np.array(list(values), dtype=object)


def _int16(release: np.ndarray) -> np.ndarray:
    """Release numbers as int16, −1 where they do not fit (none of the survey's does not: they are below 20,000)."""
    return np.where(release <= np.iinfo(np.int16).max, release, -1).astype(np.int16)


def model_pixels(batch: StampBatch, recipe: Preprocessing, device: torch.device) -> Tensor:
    """Model-ready pixels uint8 (N, 3, S, S) of a batch, made on the device."""
    pixels = torch.from_numpy(batch.pixels).to(device)
    make = recipe.pixels_from_flux if batch.is_flux else recipe.pixels_from_rgb
    return make(pixels, batch.pixscale)


def pixel_digests(pixels: Tensor) -> np.ndarray:
    """A digest of each stamp's model-ready pixels: int64 (N,)."""
    rows = pixels.cpu().numpy()
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)
