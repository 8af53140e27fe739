"""The one place that knows which reader belongs to which kind of sky tile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from catalogs.tile_store import Quarantined
from pipeline.errors import InputChanged
from pipeline.readers.settings import InputSettings
from pipeline.sky_tiles import SkyTile, TileKind, check_unchanged, names_of, table_of
from pipeline.stamps import Stamp, StampBatch, in_batches


def read_tile(tile: SkyTile, settings: InputSettings, batch: int) -> Iterator[StampBatch]:
    """All stamps and refused inputs of a tile, at most `batch` stamps in memory at a time.

    Raises
    ------
    BadInput : nothing of the tile can be used.
    InputChanged : the files are not those the tile was found with.
    OSError : the system failed; worth another try.
    """
    names = [] if tile.kind is TileKind.HDF5 else names_of(tile)
    check_unchanged(tile, names, settings.salt)
    yield from in_batches(_items(tile, names, settings), batch)
    check_unchanged(tile, names, settings.salt)


def _items(tile: SkyTile, names: list[str], settings: InputSettings) -> Iterator[Stamp | Quarantined]:
    path = Path(tile.path)
    if tile.kind is TileKind.HDF5:  # readers are imported where they are needed: astropy and h5py are slow to load
        from pipeline.readers.hdf5 import count_rows, read_hdf5

        if tile.stop < 0:
            count_rows(path)
            raise InputChanged(f"{path} could not be opened when the run began, and can be now; run again")
        return read_hdf5(path, tile.start, tile.stop, tile.source, settings)
    if tile.kind is TileKind.CUTOUTS:
        from pipeline.readers.cutouts import read_cutouts

        return read_cutouts(path, names, tile.source)
    from pipeline.readers.pictures import read_pictures

    return read_pictures(path, names, table_of(path), tile.source, settings)
