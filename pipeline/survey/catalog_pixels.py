"""Rows of a release whose pixels are read again from their sky tiles, by the readers of the survey.

A row is only good for learning or comparing with the pixels that the catalogue was made from: each field of view is
checked by the `input_digest` of its row. This module must not know what the rows are wanted for.
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
from pipeline.survey.rendering import pixel_digests, render_stamps
from pipeline.tiles.sky_tile import SkyTile

_log = logging.getLogger(__name__)

GONE, CHANGED, TAKEN = range(3)  # what became of a row when its pixels were read again
_BLOCK = 64

ROW_COLUMNS = "object_id, source_name, tile_id, origin, ra, dec, pixscale::DOUBLE AS pixscale, input_digest"
"""What to SELECT FROM morphology JOIN tiles USING (tile_id), at least, for rows that are to be read again."""


@dataclass(frozen=True)
class CatalogPixels:
    """Fields of view of n rows of a release, in files of the cache, one for each sky tile.

    A record of a file is a byte, what became of the row, and its field uint8 (side, side, 3). Row i has record
    `record[i]` (int64) of file `tile[i]` (int64), −1 where its tile is no longer there; `counts` are the records of
    each file. `fates` uint8 (n,) says what became of each row: `TAKEN`, `CHANGED` (other pixels than the catalogue was
    made from) or `GONE`.
    """

    side: int
    files: tuple[Path, ...]
    counts: tuple[int, ...]
    tile: np.ndarray
    record: np.ndarray
    fates: np.ndarray

    @property
    def taken(self) -> np.ndarray:
        """The rows whose pixels are those that the catalogue was made from: ascending int64 (k,)."""
        return np.flatnonzero(self.fates == TAKEN)

    def left_out(self) -> dict[str, int]:
        """How many rows cannot be used, by reason."""
        return {
            "no longer there": int((self.fates == GONE).sum()),
            "other pixels than the release was made from": int((self.fates == CHANGED).sum()),
        }

    def chunks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """RGB uint8 (m, side, side, 3), north up, of rows out of `taken`, in their order, a bounded number each."""
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            fields = np.empty((len(block), 3 * self.side**2), dtype=np.uint8)
            for number in np.unique(self.tile[block]).tolist():
                mine = self.tile[block] == number
                records = map_pixels(self.files[number], _shape(self.counts[number], self.side))
                fields[mine] = records[torch.from_numpy(self.record[block[mine]])].numpy()[:, 1:]
            yield fields.reshape(-1, self.side, self.side, 3)

    def pixels(self, recipe: Preprocessing, pixscale: np.ndarray, rows: np.ndarray) -> Tensor:
        """Model-ready pixels uint8 (m, 3, S, S) of rows out of `taken`; `pixscale` float64 (n,), arcsec, of all rows.

        They are the values that the survey gives to a network of this recipe. The recipe's field of view must be that
        of the fields.
        """
        scales, parts, first = field_scales(pixscale, recipe)[rows], [], 0
        for chunk in self.chunks(rows):
            parts.append(recipe.pixels_from_rgb(torch.from_numpy(chunk), scales[first : first + len(chunk)]))
            first += len(chunk)
        return torch.cat(parts) if parts else torch.empty(0, 3, recipe.image_size, recipe.image_size, dtype=torch.uint8)


def load_catalog_pixels(
    workspace: Workspace, seen: Preprocessing, recipe: Preprocessing, rows: pa.Table, title: str
) -> CatalogPixels:
    """Read the fields of view of rows of a release from the sky tiles as they are now.

    The fields are cut out as `recipe` does before it brings them to the network's size. So the files serve networks of
    any size, and their pixels pass through a recipe once more, like those of other image sets, to the values that
    `render_stamps` gives. A tile with a wanted row is read whole, in this process, and what was read of it is kept, so
    that more rows cost only the tiles that they are in, and a killed run goes on with the next tile.

    Parameters
    ----------
    seen : the recipe of the release's model, which `input_digest` belongs to.
    rows : n rows with the columns of `ROW_COLUMNS`, no object twice.
    title : what is told of the progress.

    Raises
    ------
    UserError : a tile changed while it was read, or there is no room for the files.
    """
    parts = [_part(workspace, tile, rows, index, seen, recipe) for tile, index in _tiles(workspace, rows)]
    missing = [part for part in parts if not part.path.is_file()]
    if missing:
        with track(title, sum(len(part.index) for part in missing)) as step:
            for part in missing:
                part.ensure(workspace, rows)
                step(len(part.index), "")
    tile, record = (np.full(rows.num_rows, -1, dtype=np.int64) for _ in range(2))
    fates = np.full(rows.num_rows, GONE, dtype=np.uint8)
    for number, part in enumerate(parts):
        tile[part.index], record[part.index] = number, np.arange(len(part.index))
        fates[part.index] = map_pixels(part.path, part.shape)[:, 0].numpy()
    files, counts = tuple(part.path for part in parts), tuple(len(part.index) for part in parts)
    return CatalogPixels(recipe.field_pixels, files, counts, tile, record, fates)


def field_scales(pixscale: np.ndarray, recipe: Preprocessing) -> np.ndarray:
    """Pixel scales float64 (n,), arcsec, of the fields of stamps of these scales.

    A field was brought to a scale of the training; where that of its stamp is unknown (NaN), the whole picture is the
    field.
    """
    known = recipe.is_training_scale(pixscale) | np.isnan(pixscale)
    return np.where(known, pixscale, recipe.pixel_scales[0])


@dataclass(frozen=True)
class _Part:
    """The wanted rows `index` (int64) of one tile, and the file of their fields; `whole` makes a field of a stamp."""

    tile: SkyTile
    index: np.ndarray
    seen: Preprocessing
    whole: Preprocessing
    path: Path

    @property
    def shape(self) -> tuple[int, int]:
        return _shape(len(self.index), self.whole.field_pixels)

    def ensure(self, workspace: Workspace, rows: pa.Table) -> None:
        """Have the file written."""

        def write(file: BinaryIO) -> None:
            file.truncate(self.shape[0] * self.shape[1])
            for record, fate, picture in _read(workspace, self, rows.take(self.index)):
                file.seek(record * self.shape[1])
                file.write(bytes([fate]) + picture.tobytes())

        ensure_pixels(self.path, self.shape, write)


def _part(
    workspace: Workspace, tile: SkyTile, rows: pa.Table, index: np.ndarray, seen: Preprocessing, recipe: Preprocessing
) -> _Part:
    # The normalisation changes no pixels: recipes that differ in it alone share a file.
    seen = replace(seen, mean=Preprocessing.mean, std=Preprocessing.std)
    whole = replace(recipe, image_size=recipe.field_pixels, mean=Preprocessing.mean, std=Preprocessing.std)
    digest = hashlib.sha256("\0".join((seen.digest, whole.digest, tile.tile_id, tile.fingerprint)).encode())
    for name in ("object_id", "input_digest"):
        digest.update(rows[name].to_numpy()[index].tobytes())
    return _Part(tile, index, seen, whole, workspace.cache / "sky" / f"{digest.hexdigest()[:16]}.u8")


def _shape(count: int, side: int) -> tuple[int, int]:
    return count, 1 + 3 * side**2


def _tiles(workspace: Workspace, rows: pa.Table) -> list[tuple[SkyTile, np.ndarray]]:
    """The sky tiles of the rows as they are now, and which rows int64 are theirs; none whose files are gone."""
    home = workspace.catalog.parent
    places = sorted({home / origin for origin in rows["origin"].to_pylist() if origin})
    there = [place for place in places if place.exists()]
    if not there:
        return []
    wanted: dict[str, list[int]] = {}
    for row, tile_id in enumerate(rows["tile_id"].to_pylist()):
        wanted.setdefault(tile_id, []).append(row)
    tiles = tiles_in(workspace, there)
    return [(tile, np.array(wanted[tile.tile_id])) for tile in tiles if tile.tile_id in wanted]


def _read(workspace: Workspace, part: _Part, rows: pa.Table) -> Iterator[tuple[int, int, np.ndarray]]:
    """Of each of the rows of a part that is found in its tile: which, what became of it, its field uint8 (F, F, 3)."""
    index_of = {object_id: index for index, object_id in enumerate(rows["object_id"].to_pylist())}
    digests = rows["input_digest"].to_numpy()
    device = torch.device(chosen_device(workspace.settings.workers.device))
    try:
        for batch in read_tile(part.tile, workspace.settings.reading, workspace.settings.survey.batch):
            # An id that occurs twice in a tile stands for its first stamp, as in the survey.
            named = {stamp.object_id: stamp for stamp in reversed(batch.stamps) if stamp.object_id in index_of}
            if not named:
                continue
            wanted = StampBatch(list(named.values()))
            now = pixel_digests(render_stamps(wanted, part.seen, device))
            pictures = render_stamps(wanted, part.whole, device).permute(0, 2, 3, 1).cpu().numpy()
            for object_id, digest, picture in zip(named, now, pictures, strict=True):
                index = index_of.pop(object_id)
                yield index, TAKEN if digest == digests[index] else CHANGED, picture
    except BadInput as bad:
        _log.warning("%s cannot be read any more (%s); its objects are left out", part.tile.path, bad)
    except InputChanged as changed:
        raise UserError(f"{changed}") from changed
    except OSError as error:
        if is_transient(error):
            raise
        _log.warning("%s cannot be opened any more (%s); its objects are left out", part.tile.path, error)
