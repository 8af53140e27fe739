"""Rows of the catalogue: those of a batch, and the flag of objects at the same place."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from catalogs.healpix import close_pairs, healpix_29
from catalogs.schema import QualityFlag, arrow_schema, is_reliable
from models.artifacts.registry import ModelCard
from pipeline.survey.prediction import BatchPrediction
from pipeline.survey.screening import ScreenedBatch

SAME_POSITION = 1.0  # arcsec
_INT16_MAX = np.iinfo(np.int16).max  # release numbers of the survey are below 20,000; others become −1


def rows_of(screened: ScreenedBatch, prediction: BatchPrediction, tile_id: str, card: ModelCard) -> pa.Table:
    """The rows of one batch, with the columns of `catalogs.schema`."""
    stamps, count = screened.stamps, len(screened.stamps)
    predicted = dict(prediction.columns)
    flags = screened.flags | predicted.pop("quality_flags")
    ra, dec = np.array([s.ra for s in stamps]), np.array([s.dec for s in stamps])
    keys = np.array([s.survey_keys for s in stamps])
    columns = {
        "_healpix_29": healpix_29(ra, dec),
        "object_id": screened.object_ids,
        "source_name": np.array([s.source_name for s in stamps], dtype=object),
        "ra": ra,
        "dec": dec,
        "release": np.where(keys[:, 0] <= _INT16_MAX, keys[:, 0], -1).astype(np.int16),
        "brickid": keys[:, 1].astype(np.int32),
        "objid": keys[:, 2].astype(np.int32),
        "tile_id": np.full(count, tile_id, dtype=object),
        **predicted,
        "quality_flags": flags.astype(np.int32),
        "is_reliable": is_reliable(predicted["confidence"], flags),
        "bad_pixel_fraction": np.array([s.bad_pixel_fraction for s in stamps], dtype=np.float32),
        "maskbits": np.array([s.maskbits for s in stamps], dtype=np.int32),
        "pixscale": screened.batch.pixscale.astype(np.float32),
        "mag_r": np.array([s.mag_r for s in stamps], dtype=np.float32),
        "survey_layer": np.array([s.survey_layer for s in stamps], dtype=object),
        "model_id": np.full(count, card.model_id, dtype=object),
        "input_digest": prediction.digests,
    }
    return pa.table(columns, schema=arrow_schema(card.class_slugs))


def flag_duplicates(table: pa.Table) -> pa.Table:
    """Rows of the catalogue with `duplicate_position` set where a brighter or earlier row has the same position."""
    second = second_at_position(table["ra"].to_numpy(), table["dec"].to_numpy(), table["mag_r"].to_numpy())
    if not second.any():
        return table
    flags = table["quality_flags"].to_numpy().copy()
    flags[second] |= int(QualityFlag.DUPLICATE_POSITION)
    reliable = is_reliable(table["confidence"].to_numpy(), flags)
    for name, values in (("quality_flags", flags), ("is_reliable", reliable)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values))
    return table


def second_at_position(ra: np.ndarray, dec: np.ndarray, mag_r: np.ndarray) -> np.ndarray:
    """Which objects have a brighter one within an arcsec, or one before them in order: bool (N,).

    `ra`, `dec` in degrees; `mag_r` NaN if unknown, which counts as faint.
    """
    pairs = close_pairs(ra, dec, SAME_POSITION)
    rank = np.empty(len(ra), dtype=np.int64)
    rank[np.argsort(np.where(np.isnan(mag_r), np.inf, mag_r), kind="stable")] = np.arange(len(ra))
    second = np.zeros(len(ra), dtype=bool)
    second[np.where(rank[pairs[:, 0]] > rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1])] = True
    return second
