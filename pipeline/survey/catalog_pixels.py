"""The pixels of catalogued objects, read again from their sky tiles by the readers of the survey.

A row of the catalogue is only good for training or comparing with the pixels that it was made from, so each field of
view is checked against the `input_digest` of its row. This module must not know what the rows are used for.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.inference.predictor import chosen_device
from models.preprocessing import Preprocessing
from pipeline.config.workspace import Workspace
from pipeline.core.errors import BadInput, InputChanged, UserError, is_transient
from pipeline.core.progress import track
from pipeline.datasets.pixel_cache import ensure_pixels, map_pixels
from pipeline.readers.dispatch import read_tile
from pipeline.readers.stamps import StampBatch
from pipeline.survey.plan import tiles_in
from pipeline.survey.prediction import pixel_digests, render_stamps
from pipeline.tiles.sky_tile import SkyTile

_log = logging.getLogger(__name__)

MISSING, CHANGED, OK = range(3)  # status of a row, also as it stands in the files of the cache
_CHUNK = 64  # fields of view

ROW_COLUMNS = "object_id, source_name, tile_id, origin, ra, dec, pixscale::DOUBLE AS pixscale, input_digest"
"""What to SELECT FROM morphology JOIN tiles USING (tile_id), at least, for rows whose pixels are to be loaded."""


@dataclass(frozen=True)
class CatalogPixels:
    """Fields of view of n rows of a release, in files of the cache, one for each sky tile.

    A record of a file is one byte, the status of the row, and its field uint8 (side, side, 3). Row i has record
    `record[i]` (int64) of file `tile[i]` (int64), −1 where its tile is no longer there; `counts` are the records of
    each file. `status` uint8 (n,) is that of each row: `OK`, `CHANGED` (other pixels than the catalogue was made from)
    or `MISSING`.
    """

    side: int
    files: tuple[Path, ...]
    counts: tuple[int, ...]
    tile: np.ndarray
    record: np.ndarray
    status: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """The rows whose pixels are those that the catalogue was made from: ascending int64 (k,)."""
        return np.flatnonzero(self.status == OK)

    def left_out(self) -> dict[str, int]:
        """How many rows cannot be used, by reason."""
        return {
            "no longer there": int((self.status == MISSING).sum()),
            "other pixels than the release was made from": int((self.status == CHANGED).sum()),
        }

    def chunks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """RGB uint8 (m, side, side, 3), north up, of rows out of `usable`, in their order; m is bounded."""
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            fields = np.empty((len(chunk), 3 * self.side**2), dtype=np.uint8)
            for number in np.unique(self.tile[chunk]).tolist():
                of_file = self.tile[chunk] == number
                records = map_pixels(self.files[number], _shape(self.counts[number], self.side))
                fields[of_file] = records[torch.from_numpy(self.record[chunk[of_file]])].numpy()[:, 1:]
            yield fields.reshape(-1, self.side, self.side, 3)

    def pixels(self, preprocessing: Preprocessing, pixscale: np.ndarray, rows: np.ndarray) -> Tensor:
        """Model-ready pixels uint8 (m, 3, S, S) of rows out of `usable`; `pixscale` float64 (n,), arcsec, of all rows.

        They are the values that the survey gives to a network with this preprocessing, whose field of view must be
        that of the fields.
        """
        scales, parts, first = field_scales(pixscale, preprocessing)[rows], [], 0
        for chunk in self.chunks(rows):
            parts.append(preprocessing.pixels_from_rgb(torch.from_numpy(chunk), scales[first : first + len(chunk)]))
            first += len(chunk)
        size = preprocessing.image_size
        return torch.cat(parts) if parts else torch.empty(0, 3, size, size, dtype=torch.uint8)


def load_catalog_pixels(
    workspace: Workspace, catalog_preprocessing: Preprocessing, preprocessing: Preprocessing, rows: pa.Table, title: str
) -> CatalogPixels:
    """Read the fields of view of rows of a release from the sky tiles as they are now.

    The fields are cut out as `preprocessing` does before it scales them to the network's size. So the files serve
    networks of any size, and their pixels, like those of other image sets, pass through a preprocessing once more to
    the values that `render_stamps` gives. A tile with a wanted row is read whole, in this process. What was read of it
    is kept, so that more rows cost only the tiles that they are in, and a killed run goes on with the next tile.

    Parameters
    ----------
    catalog_preprocessing : that of the release's model, to which `input_digest` belongs.
    rows : n rows with the columns of `ROW_COLUMNS`, no object twice.
    title : names the work in the progress display.

    Raises
    ------
    UserError : a tile changed while it was read, or there is no room for the files.
    """
    parts = [
        _part(workspace, tile, rows, index, catalog_preprocessing, preprocessing)
        for tile, index in _tiles_of(workspace, rows)
    ]
    unread = [part for part in parts if not part.path.is_file()]
    if unread:
        with track(title, sum(len(part.index) for part in unread)) as step:
            for part in unread:
                part.ensure(workspace, rows)
                step(len(part.index), "")
    tile, record = (np.full(rows.num_rows, -1, dtype=np.int64) for _ in range(2))
    status = np.full(rows.num_rows, MISSING, dtype=np.uint8)
    for number, part in enumerate(parts):
        tile[part.index], record[part.index] = number, np.arange(len(part.index))
        status[part.index] = map_pixels(part.path, part.shape)[:, 0].numpy()
    files, counts = tuple(part.path for part in parts), tuple(len(part.index) for part in parts)
    return CatalogPixels(preprocessing.field_pixels, files, counts, tile, record, status)


def field_scales(pixscale: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Pixel scales float64 (n,), arcsec, of the fields of stamps of these scales.

    A field was brought to a scale of the training; where that of its stamp is unknown (NaN), the whole picture is the
    field.
    """
    unchanged = preprocessing.is_training_scale(pixscale) | np.isnan(pixscale)
    return np.where(unchanged, pixscale, preprocessing.pixel_scales[0])


@dataclass(frozen=True)
class _TilePart:
    """The wanted rows `index` (int64) of one tile, and the file of their fields.

    `digested` is the preprocessing of the pixels whose digest is compared, `field` that which makes a field of a stamp.
    """

    tile: SkyTile
    index: np.ndarray
    digested: Preprocessing
    field: Preprocessing
    path: Path

    @property
    def shape(self) -> tuple[int, int]:
        return _shape(len(self.index), self.field.field_pixels)

    def ensure(self, workspace: Workspace, rows: pa.Table) -> None:
        """Write the file, if it is not there yet; rows that are not found in the tile stay 0, which is `MISSING`."""

        def write(file: BinaryIO) -> None:
            file.truncate(self.shape[0] * self.shape[1])
            for record, status, picture in _read_fields(workspace, self, rows.take(self.index)):
                file.seek(record * self.shape[1])
                file.write(bytes([status]) + picture.tobytes())

        ensure_pixels(self.path, self.shape, write)


def _part(
    workspace: Workspace,
    tile: SkyTile,
    rows: pa.Table,
    index: np.ndarray,
    digested: Preprocessing,
    preprocessing: Preprocessing,
) -> _TilePart:
    # The normalisation changes no pixels: preprocessings that differ in it alone share a file.
    digested = replace(digested, mean=Preprocessing.mean, std=Preprocessing.std)
    size = preprocessing.field_pixels
    field = replace(preprocessing, image_size=size, mean=Preprocessing.mean, std=Preprocessing.std)
    digest = hashlib.sha256("\0".join((digested.digest, field.digest, tile.tile_id, tile.fingerprint)).encode())
    for name in ("object_id", "input_digest"):
        digest.update(rows[name].to_numpy()[index].tobytes())
    return _TilePart(tile, index, digested, field, workspace.cache / "sky" / f"{digest.hexdigest()[:16]}.u8")


def _shape(count: int, side: int) -> tuple[int, int]:
    """Records and bytes of each in a file of fields."""
    return count, 1 + 3 * side**2


def _tiles_of(workspace: Workspace, rows: pa.Table) -> list[tuple[SkyTile, np.ndarray]]:
    """Sky tiles of the rows as they are now, each with the numbers (int64) of its rows; without those that are gone."""
    home = workspace.catalog.parent
    origins = sorted({home / origin for origin in rows["origin"].to_pylist() if origin})
    existing = [origin for origin in origins if origin.exists()]
    if not existing:
        return []
    rows_of: dict[str, list[int]] = {}
    for row, tile_id in enumerate(rows["tile_id"].to_pylist()):
        rows_of.setdefault(tile_id, []).append(row)
    tiles = tiles_in(workspace, existing)
    return [(tile, np.array(rows_of[tile.tile_id])) for tile in tiles if tile.tile_id in rows_of]


def _read_fields(workspace: Workspace, part: _TilePart, rows: pa.Table) -> Iterator[tuple[int, int, np.ndarray]]:
    """Number, status and field uint8 (F, F, 3) of each row of a part that is found in its tile."""
    number_of = {object_id: number for number, object_id in enumerate(rows["object_id"].to_pylist())}
    digests = rows["input_digest"].to_numpy()
    device = torch.device(chosen_device(workspace.settings.workers.device))
    try:
        for batch in read_tile(part.tile, workspace.settings.reading, workspace.settings.survey.batch):
            # An id that occurs twice in a tile stands for its first stamp, as in the survey.
            stamps = {stamp.object_id: stamp for stamp in reversed(batch.stamps) if stamp.object_id in number_of}
            if not stamps:
                continue
            wanted = StampBatch(list(stamps.values()))
            digests_now = pixel_digests(render_stamps(wanted, part.digested, device))
            pictures = render_stamps(wanted, part.field, device).permute(0, 2, 3, 1).cpu().numpy()
            for object_id, digest, picture in zip(stamps, digests_now, pictures, strict=True):
                number = number_of.pop(object_id)
                yield number, OK if digest == digests[number] else CHANGED, picture
    except BadInput as bad:
        _log.warning("%s can no longer be read (%s); its objects are left out", part.tile.path, bad)
    except InputChanged as changed:
        raise UserError(f"{changed}") from changed
    except OSError as error:
        if is_transient(error):
            raise
        _log.warning("%s can no longer be opened (%s); its objects are left out", part.tile.path, error)
