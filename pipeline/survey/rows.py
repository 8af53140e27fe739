"""Rows of the catalogue, batch by batch, and what they add up to for a whole sky tile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalogs.healpix import close_pairs, healpix_29
from catalogs.schema import QualityFlag, arrow_schema, is_reliable
from catalogs.tiles import QuarantineEntry, TileMetadata, with_history
from models.artifacts.registry import ModelCard
from pipeline.core.errors import BadInput
from pipeline.core.object_ids import printable
from pipeline.readers.stamps import StampBatch, quarantine_entry
from pipeline.survey.prediction import BatchPrediction
from pipeline.survey.screening import ScreenedBatch
from pipeline.tiles.file_names import FOLDER_KINDS
from pipeline.tiles.sky_tile import SkyTile, names_of

SAME_PLACE = 1.0  # arcsec


def rows_of(
    screened: ScreenedBatch, digests: np.ndarray, prediction: BatchPrediction, tile_id: str, card: ModelCard
) -> pa.Table:
    """The rows of one batch, with the columns of `catalogs.schema`.

    `digests` int64 (N,) are those of the model-ready pixels.
    """
    stamps, count = screened.stamps, len(screened.stamps)
    predicted = dict(prediction.columns)
    flags = screened.flags | predicted.pop("quality_flags")
    ra, dec = np.array([s.ra for s in stamps]), np.array([s.dec for s in stamps])
    keys = np.array([s.survey_keys for s in stamps])
    columns = {
        "_healpix_29": healpix_29(ra, dec),
        "object_id": screened.object_ids,
        "source_name": _strings(s.source_name for s in stamps),
        "ra": ra,
        "dec": dec,
        "release": _int16(keys[:, 0]),
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
        "survey_layer": _strings(s.survey_layer for s in stamps),
        "model_id": np.full(count, card.model_id, dtype=object),
        "input_digest": digests,
    }
    return pa.table(columns, schema=arrow_schema(card.class_slugs))


class TileResult:
    """Everything that reading and classifying one tile gave, gathered batch by batch."""

    def __init__(self, tile: SkyTile) -> None:
        self._tile = tile
        self._tables: list[pa.Table] = []
        self._quarantine: list[QuarantineEntry] = []
        self._found = max(tile.stop - tile.start, -1)  # inputs that the tile was seen to hold; −1 where unknown
        self._set_aside: Counter[str] = Counter()
        self._remarks: list[str] = []
        self._rejected = ""
        self._reused = 0

    def count(self, batch: StampBatch, refused: list[QuarantineEntry]) -> None:
        """Keep what a batch says of the tile as a whole, and its inputs that give no row."""
        for note in batch.notes:
            self._found = max(self._found, note.rows)
            self._remarks += [printable(remark) for remark in note.remarks]
            self._set_aside.update(note.set_aside)
        self._quarantine += batch.quarantine + refused

    def add(self, rows: pa.Table, reused: int) -> None:
        """Keep the rows of a batch, `reused` of which have the prediction of the previous commit."""
        self._tables.append(rows)
        self._reused += reused

    def refused(self, bad: BadInput) -> TileResult:
        """The result of a tile that cannot be used: an entry for each input, or one if their number is unknown."""
        tile, path = self._tile, Path(self._tile.path)
        result = TileResult(tile)
        result._found, result._remarks, result._rejected = -1, self._remarks, bad.reason
        if tile.kind in FOLDER_KINDS:
            inputs = [(path / name, printable(f"{tile.source}/{name}")) for name in names_of(tile)]
        else:
            rows = [f"#{row}" for row in range(tile.start, tile.stop)] or [""]
            inputs = [(path, tile.source + row) for row in rows]
        result._quarantine = [quarantine_entry(file, source_name, bad) for file, source_name in inputs]
        return result

    def table(self, class_slugs: Sequence[str]) -> pa.Table:
        """All rows, sorted by position, with objects at the same place flagged."""
        if not self._tables:
            return arrow_schema(class_slugs).empty_table()
        rows = pa.concat_tables(self._tables).sort_by([("_healpix_29", "ascending"), ("object_id", "ascending")])
        return flag_duplicates(rows)

    def metadata(self, table: pa.Table, previous: TileMetadata | None, utc: str, **made_with: Any) -> TileMetadata:
        """What the tile file says of itself.

        Parameters
        ----------
        table : the rows, as `table` gives them.
        previous : the metadata of the commit that is replaced, for the history of entries in quarantine.
        utc : the time of the run, ISO 8601.
        made_with : origin, run_id, model_id, recipe_digest and class_slugs of `TileMetadata`.
        """
        unclassified = int(np.count_nonzero(table["label_id"].to_numpy() < 0))
        return TileMetadata(
            tile_id=self._tile.tile_id,
            source=self._tile.source,
            fingerprint=self._tile.fingerprint,
            classified=table.num_rows - unclassified,
            unclassified=unclassified,
            quarantine=with_history(self._quarantine, previous, utc),
            rejected=self._rejected,
            set_aside=dict(self._set_aside),
            found=self._found,
            remarks=self._remarks,
            reused=self._reused,
            **made_with,
        )


def flag_duplicates(table: pa.Table) -> pa.Table:
    """Rows of the catalogue with `duplicate_position` set where a brighter or earlier row has the same position."""
    second = second_at_place(table["ra"].to_numpy(), table["dec"].to_numpy(), table["mag_r"].to_numpy())
    if not second.any():
        return table
    flags = table["quality_flags"].to_numpy().copy()
    flags[second] |= int(QualityFlag.DUPLICATE_POSITION)
    reliable = is_reliable(table["confidence"].to_numpy(), flags)
    for name, values in (("quality_flags", flags), ("is_reliable", reliable)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values))
    return table


def second_at_place(ra: np.ndarray, dec: np.ndarray, mag_r: np.ndarray) -> np.ndarray:
    """Which objects have a brighter one within an arcsec, or one before them in order: bool (N,).

    `ra`, `dec` in degrees; `mag_r` NaN where unknown, which counts as faint.
    """
    pairs = close_pairs(ra, dec, SAME_PLACE)
    rank = np.empty(len(ra), dtype=np.int64)
    rank[np.argsort(np.where(np.isnan(mag_r), np.inf, mag_r), kind="stable")] = np.arange(len(ra))
    second = np.zeros(len(ra), dtype=bool)
    second[np.where(rank[pairs[:, 0]] > rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1])] = True
    return second


def _strings(values: Iterable[str]) -> np.ndarray:
    return np.array(list(values), dtype=object)


def _int16(release: np.ndarray) -> np.ndarray:
    """Release numbers as int16, −1 where they do not fit; those of the survey are below 20,000."""
    return np.where(release <= np.iinfo(np.int16).max, release, -1).astype(np.int16)
