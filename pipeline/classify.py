"""The unit of work: one sky tile in, one committed file out.

`classify` is a plain function of small arguments that runs in any process. It reads in bounded chunks, keeps only
rows, and ends with an atomic commit; whether it ran is told by that file alone.
"""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from catalogs.schema import (
    QualityFlag,
    arrow_schema,
    certainty_columns,
    certainty_flags,
    is_reliable,
    label_columns,
)
from catalogs.sky import healpix_29
from catalogs.tile_store import Quarantined, TileStamp, commit
from models.predictor import Predictor, predictor_for
from models.recipe import Recipe
from pipeline.errors import BadInput, Reason
from pipeline.identity import printable
from pipeline.readers.settings import UNKNOWN_RENDERING, InputSettings
from pipeline.readers.tile import read_tile
from pipeline.sky_tiles import SkyTile, TileKind, names_of, origin_of
from pipeline.stamps import Stamp, StampBatch, refused

_BATCHES_BETWEEN_TRIMS = 8
_SCALE_MARGIN = 0.05  # pixel scales this far (relative) beyond those of the training still count as inside


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
    input: InputSettings

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


def classify(job: ClassifyJob) -> TileReceipt:
    """Classify every object of a tile and commit the rows.

    Raises
    ------
    OSError : the system failed; nothing was committed.
    pipeline.errors.InputChanged : files of the tile changed since it was found; nothing was committed.
    models.errors.ModelError : the model can not be loaded.
    """
    predictor = predictor_for(Path(job.models), job.model_id, job.device, job.batch)
    table, quarantine, rejected = _rows(job, predictor)
    unclassified = int(np.count_nonzero(table["label_id"].to_numpy() < 0))
    stamp = TileStamp(
        tile_id=job.tile.tile_id,
        source=job.tile.source,
        origin=origin_of(job.tile, Path(job.catalog)),
        fingerprint=job.tile.fingerprint,
        model_id=job.model_id,
        recipe_digest=predictor.recipe.digest,
        run_id=job.run_id,
        class_slugs=predictor.card.class_slugs,
        classified=table.num_rows - unclassified,
        unclassified=unclassified,
        quarantine=quarantine,
        rejected=rejected,
    )
    commit(Path(job.catalog), table, stamp)
    return TileReceipt(job.tile.tile_id, stamp.classified, unclassified, len(quarantine))


def _rows(job: ClassifyJob, predictor: Predictor) -> tuple[pa.Table, list[Quarantined], str]:
    """Rows sorted by position, refused inputs, and the reason when the tile as a whole was refused."""
    schema = arrow_schema(predictor.card.class_slugs)
    tables: list[pa.Table] = []
    quarantine: list[Quarantined] = []
    ids: set[int] = set()
    rejected = ""
    try:
        for number, batch in enumerate(read_tile(job.tile, job.input, job.batch), 1):
            if number % _BATCHES_BETWEEN_TRIMS == 0:
                _give_back_freed_memory()
            fresh, repeated = _without_repeats(batch, ids, job.tile.path)
            quarantine += batch.quarantine + repeated
            if fresh.stamps:
                tables.append(pa.table(_columns(fresh, predictor, job), schema=schema))
    except BadInput as bad:
        tables, rejected = [], bad.reason
        quarantine = _whole_tile(job.tile, bad)
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    return table.sort_by([("_healpix_29", "ascending"), ("object_id", "ascending")]), quarantine, rejected


def _give_back_freed_memory() -> None:
    """Return free pages to the system, where the C library can (glibc).

    The rows that are kept lie scattered between the freed pixels of their batches, so that the heap grows by 17 MB with
    each batch of 16 stamps. Now and then costs little; always (MALLOC_TRIM_THRESHOLD_) makes the unit up to three times
    as slow, by page faults.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _whole_tile(tile: SkyTile, bad: BadInput) -> list[Quarantined]:
    """One entry for each input of a tile of which nothing can be used; one where their number is unknown."""
    path = Path(tile.path)
    if tile.kind is not TileKind.HDF5:
        return [refused(path / name, printable(f"{tile.source}/{name}"), bad) for name in names_of(tile)]
    rows = [f"#{row}" for row in range(tile.start, tile.stop)] or [""]
    return [refused(path, tile.source + row, bad) for row in rows]


def _without_repeats(batch: StampBatch, seen: set[int], path: str) -> tuple[StampBatch, list[Quarantined]]:
    """Take out stamps whose object id came before in this tile: an error to report, not an overwrite."""
    kept: list[Stamp] = []
    repeated: list[Quarantined] = []
    for stamp in batch.stamps:
        if stamp.object_id in seen:
            detail = f"object_id {stamp.object_id} occurs twice in {path}; the first one is kept"
            repeated.append(refused(Path(path), stamp.source_name, BadInput(Reason.DUPLICATE_OBJECT_ID, detail)))
        else:
            seen.add(stamp.object_id)
            kept.append(stamp)
    return StampBatch(kept), repeated


def _columns(batch: StampBatch, predictor: Predictor, job: ClassifyJob) -> dict[str, np.ndarray | list[str]]:
    """All columns of the primary table for the stamps of one batch."""
    pixels = model_pixels(batch, predictor.recipe, predictor.device)
    said = predictor.predict(pixels)
    flags = _flags(batch, predictor)
    classified = (flags & QualityFlag.UNCLASSIFIED) == 0
    flags |= np.where(classified, certainty_flags(said.sets, said.agreement, said.novelty), 0)
    labels = label_columns(said.probabilities, classified, predictor.card.class_slugs)
    stamps = batch.stamps
    ra, dec = np.array([s.ra for s in stamps]), np.array([s.dec for s in stamps])
    keys = np.array([s.survey_keys for s in stamps])
    count = len(stamps)
    return {
        "_healpix_29": healpix_29(ra, dec),
        "object_id": np.array([s.object_id for s in stamps], dtype=np.int64),
        "source_name": [s.source_name for s in stamps],
        "ra": ra,
        "dec": dec,
        "release": _int16(keys[:, 0]),
        "brickid": keys[:, 1].astype(np.int32),
        "objid": keys[:, 2].astype(np.int32),
        "tile_id": [job.tile.tile_id] * count,
        **labels,
        **certainty_columns(said.sets, said.spread, said.novelty, said.n_views, classified),
        "quality_flags": flags.astype(np.int32),
        "is_reliable": is_reliable(labels["confidence"], flags),
        "bad_pixel_fraction": np.array([s.bad_pixel_fraction for s in stamps], dtype=np.float32),
        "pixscale": batch.pixscale.astype(np.float32),
        "survey_layer": [s.survey_layer for s in stamps],
        "model_id": [job.model_id] * count,
        "run_id": [job.run_id] * count,
        "input_digest": pixel_digests(pixels),
        "mjd_predicted": np.full(count, job.mjd),
    }


def _int16(release: np.ndarray) -> np.ndarray:
    """Release numbers as int16, −1 where they do not fit (none of the survey's does not: they are below 20,000)."""
    return np.where(release <= np.iinfo(np.int16).max, release, -1).astype(np.int16)


def model_pixels(batch: StampBatch, recipe: Recipe, device: torch.device) -> Tensor:
    """Model-ready pixels uint8 (N, 3, S, S) of a batch, made on the device."""
    pixels = torch.from_numpy(batch.pixels).to(device)
    make = recipe.pixels_from_flux if batch.is_flux else recipe.pixels_from_rgb
    return make(pixels, batch.pixscale)


def pixel_digests(pixels: Tensor) -> np.ndarray:
    """A digest of each stamp's model-ready pixels: int64 (N,)."""
    rows = pixels.cpu().numpy()
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


def _flags(batch: StampBatch, predictor: Predictor) -> np.ndarray:
    """Quality bits int64 (N,): what the reader saw, and how the stamp differs from the training images."""
    recipe, scale = predictor.recipe, batch.pixscale
    flags = np.array([s.quality for s in batch.stamps], dtype=np.int64)
    height, width = batch.stamps[0].pixels.shape[1:] if batch.is_flux else batch.stamps[0].pixels.shape[:2]
    known = np.isfinite(scale)
    resampled = ~recipe.is_training_scale(scale) & (known | (min(height, width) != recipe.field_pixels))
    lowest, highest = predictor.card.envelope.get("pixscale") or (-np.inf, np.inf)
    with np.errstate(invalid="ignore"):
        outside = known & ((scale < lowest * (1 - _SCALE_MARGIN)) | (scale > highest * (1 + _SCALE_MARGIN)))
    rendering = np.array([recipe.colour.name if batch.is_flux else s.rendering for s in batch.stamps])
    differs = (rendering != recipe.rendering) | (rendering == UNKNOWN_RENDERING)
    for condition, flag in (
        (~recipe.covers_field(scale, height, width), QualityFlag.FOV_MISMATCH),
        (resampled, QualityFlag.RESAMPLED),
        (outside, QualityFlag.PIXSCALE_OUTSIDE_TRAINING),
        (differs, QualityFlag.COLOUR_RULE_DIFFERS),
    ):
        flags[condition] |= int(flag)
    return flags
