"""The one place that knows which reader belongs to which kind of sky tile."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from pipeline.config.inputs import ReadingSettings
from pipeline.core.errors import BadInput, InputChanged
from pipeline.core.object_ids import printable
from pipeline.readers.stamps import Item, StampBatch, in_batches, quarantine_entry
from pipeline.tiles.checksums import check_sum, check_sums, sums_of
from pipeline.tiles.sky_tile import (
    FOLDER_KINDS,
    SkyTile,
    TileKind,
    check_unchanged,
    files_of,
    names_of,
    table_of,
    touched,
)


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
    edges = reading.bricks.complete_edges
    files = files_of(tile, names, edges=edges)
    before = touched(files)
    check_unchanged(tile, names, salt, edges=edges)
    try:
        sound, differing = _sound(tile, names, reading)
        yield from in_batches(chain(differing, _items(tile, sound, reading)), batch)
    except BadInput:
        _check_untouched(tile, files, before)
        raise
    _check_untouched(tile, files, before)
    check_unchanged(tile, names, salt, edges=edges)


def _check_untouched(tile: SkyTile, files: list[Path], before: list[tuple[int, int] | None]) -> None:
    """Make sure that files were not even away for an instant while they were read; raises InputChanged."""
    if touched(files) != before:
        raise InputChanged(f"{tile.path}: files were moved or written while they were read; run again")


def _sound(tile: SkyTile, names: list[str], reading: ReadingSettings) -> tuple[list[str], list[Item]]:
    """The inputs of a folder whose checksums agree, where there are any, and entries for the others.

    A file that holds many objects, or one of a brick's own files, that differs makes the tile unusable: BadInput.
    """
    if not reading.input.verify_sums:
        return names, []
    if tile.kind not in FOLDER_KINDS:
        check_sums(files_of(tile, names, edges=False))
        return names, []
    sound: list[str] = []
    differing: list[Item] = []
    sums, folder = sums_of(Path(tile.path)), Path(tile.path)
    for name in names:
        try:
            if name in sums:
                check_sum(folder / name, sums[name])
            sound.append(name)
        except BadInput as bad:
            differing.append(quarantine_entry(folder / name, printable(f"{tile.source}/{name}"), bad))
    return sound, differing


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
