"""The one place that knows which reader belongs to which kind of sky tile."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from catalogs.tiles import QuarantineEntry
from pipeline.config.inputs import ReadingSettings
from pipeline.core.errors import InputChanged
from pipeline.core.object_ids import printable
from pipeline.readers.stamps import Item, Stamp, StampBatch, TileNote, quarantine_entry
from pipeline.tiles.checksums import verify
from pipeline.tiles.file_names import TileKind
from pipeline.tiles.sky_tile import SkyTile, names_of, table_of, unchanged

_WAITING_BYTES = 256 << 20  # most pixels that wait for a batch: 64 stamps of 1024 px are 800 MB


def read_tile(tile: SkyTile, reading: ReadingSettings, batch: int) -> Iterator[StampBatch]:
    """All stamps, refused inputs and notes of a tile, at most `batch` stamps in memory at a time.

    Raises
    ------
    BadInput : nothing of the tile can be used.
    InputChanged : the files are not those the tile was found with.
    OSError : the system failed; worth another try.
    """
    names = names_of(tile)
    salt = reading.salt(bricks=tile.kind in (TileKind.BRICK, TileKind.POSITIONS))
    with unchanged(tile, names, salt, edges=reading.bricks.complete_edges):
        sound, differing = verify(tile, names) if reading.input.verify_sums else (names, {})
        refused = (
            quarantine_entry(Path(tile.path) / name, printable(f"{tile.source}/{name}"), bad)
            for name, bad in differing.items()
        )
        yield from in_batches(chain(refused, _items(tile, sound, reading)), batch)


def _items(tile: SkyTile, names: list[str], reading: ReadingSettings) -> Iterator[Item]:
    path = Path(tile.path)
    match tile.kind:  # readers are imported where they are needed: astropy and h5py are slow to load
        case TileKind.BRICK:
            from pipeline.readers.bricks.reader import read_brick

            return read_brick(tile, reading)
        case TileKind.POSITIONS:
            from pipeline.readers.bricks.positions import read_outside

            return read_outside(tile)
        case TileKind.HDF5:
            from pipeline.readers.hdf5 import count_rows, read_hdf5

            if tile.stop < 0:
                count_rows(path)
                raise InputChanged(f"{path} could not be opened when the run began, and can be now; run again")
            return read_hdf5(path, tile.start, tile.stop, tile.source, reading.input)
        case TileKind.ARCHIVE:
            from pipeline.readers.archives.reader import list_members, read_archive

            if tile.stop < 0:
                list_members(path)
                raise InputChanged(f"{path} could not be opened when the run began, and can be now; run again")
            return read_archive(path, tile.start, tile.stop, tile.source, reading.input)
        case TileKind.CUTOUTS:
            from pipeline.readers.cutouts.reader import read_cutouts

            return read_cutouts(path, names, tile.source, reading.input)
        case TileKind.PICTURES:
            from pipeline.readers.images import read_pictures

            return read_pictures(path, names, table_of(path), tile.source, reading.input)


def in_batches(items: Iterator[Item], size: int) -> Iterator[StampBatch]:
    """Gather stamps of equal shape and type into batches; at most `size` stamps, and 256 MiB, wait at any time."""
    waiting: dict[tuple[tuple[int, ...], str], list[Stamp]] = {}
    refused: list[QuarantineEntry] = []
    notes: list[TileNote] = []
    count = memory = 0
    for item in items:
        if not isinstance(item, Stamp):
            refused.append(item) if isinstance(item, QuarantineEntry) else notes.append(item)
            continue
        waiting.setdefault((item.pixels.shape, item.pixels.dtype.str), []).append(item)
        count, memory = count + 1, memory + item.pixels.nbytes
        if count >= size or memory >= _WAITING_BYTES:
            group = waiting.pop(max(waiting, key=lambda kind: len(waiting[kind])))
            count, memory = count - len(group), memory - sum(stamp.pixels.nbytes for stamp in group)
            yield StampBatch(group, refused, notes)
            refused, notes = [], []
    for group in waiting.values():
        yield StampBatch(group, refused, notes)
        refused, notes = [], []
    if refused or notes:
        yield StampBatch([], refused, notes)
