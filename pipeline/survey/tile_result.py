"""What reading and classifying a sky tile gave: rows, inputs without one, remarks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalogs.schema import arrow_schema
from catalogs.tiles import QuarantineEntry, TileMetadata, with_history
from pipeline.core.errors import BadInput
from pipeline.core.object_ids import printable
from pipeline.readers.stamps import StampBatch, quarantine_entry
from pipeline.survey.rows import flag_duplicates
from pipeline.tiles.file_names import FOLDER_KINDS
from pipeline.tiles.sky_tile import SkyTile, names_of

_log = logging.getLogger(__name__)


class TileResult:
    """Everything that reading and classifying one tile gave, gathered batch by batch."""

    def __init__(self, tile: SkyTile) -> None:
        self._tile = tile
        self._tables: list[pa.Table] = []
        self._quarantine: list[QuarantineEntry] = []
        self._found = max(tile.stop - tile.start, -1)  # inputs that the tile was seen to hold; −1 if unknown
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


def log_outcome(metadata: TileMetadata) -> None:
    """Log what is out of the ordinary about a tile."""
    if metadata.rejected:
        _log.info("nothing of it could be used (%s): %s", metadata.rejected, metadata.quarantine[0].detail)
    elif metadata.quarantine:
        _log.info("%d of %d inputs gave no row", len(metadata.quarantine), metadata.inputs)
    for remark in metadata.remarks:
        _log.info(remark)
