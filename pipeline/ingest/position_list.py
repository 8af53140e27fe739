"""Bricks for a list of positions: which position is cut from which brick, and which from none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.config.inputs import ReadingSettings
from pipeline.core.errors import BadInput, UserError
from pipeline.core.object_ids import printable
from pipeline.ingest.discovery import brick_tile, with_fingerprint
from pipeline.readers.stamps import on_sky
from pipeline.tiles.brick_grid import brick_ids, brick_name, neighbours
from pipeline.tiles.file_names import TileKind
from pipeline.tiles.sky_tile import SkyTile


def for_positions(tiles: Sequence[SkyTile], catalogue: Path, folder: Path, reading: ReadingSettings) -> list[SkyTile]:
    """The tiles with bricks that cut a list of positions instead of the survey's objects.

    Each position goes to the brick whose box it is in or, where that brick is not there, to one whose images reach it.
    Bricks without any are left out; positions without a brick make a tile of their own. Small tables for the workers
    are written to `folder`.

    Raises
    ------
    UserError : the list is not there or cannot be read.
    """
    from pipeline.readers.bricks.positions import read_list, write_prepared

    if not catalogue.is_file():
        raise UserError(f"{catalogue}: no such file; give a list of positions (CSV, Parquet, FITS with ra and dec)")
    rows = read_list(catalogue)
    bricks: dict[str, SkyTile] = {}
    for tile in tiles:
        if tile.kind is TileKind.BRICK:
            bricks.setdefault(tile.brick, tile)
    where = _bricks_of(rows, bricks, reading)
    others = [tile for tile in tiles if tile.kind is not TileKind.BRICK]
    cut = [
        brick_tile(Path(bricks[brick].path), brick, reading, write_prepared(rows[where == brick], folder))
        for brick in sorted(set(where) - {""})
    ]
    rest = rows[where == ""]
    if len(rest):
        table = write_prepared(rest, folder)
        source = f"positions@{printable(catalogue.name)}"
        outside = SkyTile(TileKind.POSITIONS, str(catalogue), source, 0, 0, len(rest), "", tables=(str(table),))
        others.append(with_fingerprint(outside, [], reading))
    return cut + others


def _bricks_of(rows: pd.DataFrame, bricks: dict[str, SkyTile], reading: ReadingSettings) -> np.ndarray:
    """The name of the brick that each position is cut from, empty if there is none: object (N,)."""
    ra, dec = rows["ra"].to_numpy(), rows["dec"].to_numpy()
    usable = np.array([on_sky(*place) for place in zip(ra, dec, strict=True)], dtype=bool)
    where = np.full(len(rows), "", dtype=object)
    nominal = brick_ids(ra[usable], dec[usable])
    names = {number: brick_name(number) for number in np.unique(nominal).tolist()}
    where[usable] = [names[number] for number in nominal.tolist()]
    for name in names.values():
        if name not in bricks:
            here = np.flatnonzero(where == name)
            where[here] = _reached(
                ra[here], dec[here], [other for other in neighbours(name) if other in bricks], bricks, reading
            )
    return where


def _reached(
    ra: np.ndarray, dec: np.ndarray, candidates: list[str], bricks: dict[str, SkyTile], reading: ReadingSettings
) -> np.ndarray:
    """The first of the candidates whose images hold each position, empty if none does: object (n,)."""
    from pipeline.readers.bricks.wcs import find_wcs

    found = np.full(len(ra), "", dtype=object)
    for name in candidates:
        try:
            frame = find_wcs(Path(bricks[name].path), name, reading.bricks)
        except BadInput:
            continue
        found[(found == "") & frame.holds(ra, dec)] = name
    return found
