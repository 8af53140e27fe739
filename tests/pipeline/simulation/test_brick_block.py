"""A simulated block of bricks: what is cut equals the mosaic it was made from, and every row is accounted for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.wcs import WCS

from catalogs.schema import QualityFlag
from pipeline.config.inputs import BrickSettings, ReadingSettings
from pipeline.ingest.discovery import discover
from pipeline.readers.dispatch import read_tile
from pipeline.readers.stamps import Stamp
from pipeline.simulation import SimulatedBricks, write_bricks
from pipeline.survey.plan import find_inputs, make_plan, start_run
from pipeline.survey.run import classify_tiles, release_catalogue
from pipeline.survey.summary import make_summary
from pipeline.tiles.sky_tile import SkyTile
from tests.conftest import Small


@dataclass(frozen=True)
class Seen:
    """What reading a block gave, over all of its bricks."""

    rows: int
    set_aside: int
    refused: int
    compared: int
    across: int
    names: list[str]


def window(wcs: WCS, stamp: Stamp, side: int) -> tuple[int, int, int]:
    """First row and column in the mosaic, and side, of the native pixels that a stamp must hold."""
    native = side * (2 if stamp.pixscale > 0.4 else 1)
    column, row = wcs.all_world2pix(stamp.ra, stamp.dec, 0)
    return round(float(row) - (native - 1) / 2), round(float(column) - (native - 1) / 2), native


def averaged(pixels: np.ndarray) -> np.ndarray:
    fours = np.stack([pixels[:, y::2, x::2] for y in (0, 1) for x in (0, 1)])
    return np.where((fours == 0).any(axis=0), 0, fours.mean(axis=0, dtype=np.float32))


def compare(block: SimulatedBricks, mosaic: np.ndarray, tile: SkyTile, stamp: Stamp, side: int) -> tuple[bool, bool]:
    """Whether the stamp lies within the mosaic, and then equals it; and whether it reaches beyond its own brick."""
    y, x, native = window(block.block.wcs, stamp, side)
    brick = next(b for b in block.block.bricks if b.name == tile.brick)
    inside = y >= 0 and x >= 0 and y + native <= mosaic.shape[1] and x + native <= mosaic.shape[2]
    beyond = not (
        brick.x0 <= x
        and x + native <= brick.x0 + block.block.side
        and brick.y0 <= y
        and y + native <= brick.y0 + block.block.side
    )
    if inside:
        want = mosaic[:, y : y + native, x : x + native]
        np.testing.assert_array_equal(stamp.pixels, averaged(want) if native > side else want)
    return inside, beyond


def read_block(block: SimulatedBricks, mosaic: np.ndarray, side: int) -> Seen:
    reading = ReadingSettings(bricks=BrickSettings(stamp_pixels=side))
    rows, aside, refused, found, names = 0, 0, 0, Counter[tuple[bool, bool]](), []
    for tile in discover([block.root], 1000, reading).tiles:
        for batch in read_tile(tile, reading, 64):
            rows += sum(note.rows for note in batch.notes if note.rows > 0)
            aside += sum(sum(note.set_aside.values()) for note in batch.notes)
            refused += len(batch.quarantine)
            for stamp in batch.stamps:
                found[compare(block, mosaic, tile, stamp, side)] += 1
                names.append(stamp.source_name)
    return Seen(rows, aside, refused, found[True, True] + found[True, False], found[True, True], names)


def check(block: SimulatedBricks, mosaic: Path, side: int) -> Seen:
    seen = read_block(block, np.load(mosaic, mmap_mode="r"), side)
    truth = pd.read_csv(block.truth)
    assert seen.rows == len(seen.names) + seen.set_aside + seen.refused
    assert len(set(seen.names)) == len(seen.names) <= len(truth)
    assert {name.split("/")[1] for name in seen.names} <= set(truth["brick"] + "#" + truth["objid"].astype(str))
    assert seen.across > 0 and seen.compared >= 0.6 * len(seen.names)
    return seen


def test_stamps_of_a_small_block_equal_the_mosaic_across_every_edge(tmp_path: Path) -> None:
    block = write_bricks(
        tmp_path / "in", seed=4, columns=2, rows=2, galaxies=60, side=400, mosaic=tmp_path / "mosaic.npy"
    )
    seen = check(block, tmp_path / "mosaic.npy", 96)
    assert seen.across >= 3 and len(seen.names) > 40


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_five_thousand_galaxies_on_nine_bricks_close_the_audit(small: Small, tmp_path: Path) -> None:
    mosaic = tmp_path / "mosaic.npy"
    block = write_bricks(tmp_path / "in" / "sky", seed=5, columns=3, rows=3, galaxies=5000, mosaic=mosaic)
    seen = check(block, mosaic, 256)
    mosaic.unlink()
    assert seen.across > 40 and len(seen.names) > 4900
    workspace = small.elsewhere(tmp_path / "W")
    run = start_run(workspace, None)
    tiles = find_inputs(workspace, [tmp_path / "in"]).tiles
    failed = classify_tiles(workspace, run, make_plan(workspace, run, tiles))
    release = release_catalogue(workspace, run, tiles)
    summary = make_summary(workspace, run, tiles, 0, failed, release, None)
    assert not failed and len(tiles) == 9 and release is not None
    assert summary.objects == len(seen.names) + seen.refused
    parts = (summary.classified, summary.unclassified, summary.quarantined, summary.out_of_footprint)
    assert summary.objects == sum(parts) + summary.duplicates
    assert summary.objects + sum(summary.set_aside.values()) == seen.rows
    assert summary.duplicates == summary.duplicates_across_tiles == 0
    folder = workspace.catalog / "releases" / release.release
    rows = pd.read_parquet(folder / "export" / "morphology.parquet")
    assert rows["object_id"].is_unique and len(rows) == len(seen.names)
    assert not (rows["quality_flags"] & int(QualityFlag.DUPLICATE_POSITION)).any()
    for flag in (QualityFlag.SATURATED, QualityFlag.BRIGHT_STAR, QualityFlag.LARGE_GALAXY_MASK, QualityFlag.LOW_DEPTH):
        assert (rows["quality_flags"] & int(flag)).any(), flag
    assert (rows["survey_layer"] == "simulated-grz").all()
