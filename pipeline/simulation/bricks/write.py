"""Writes whole simulated survey bricks: coadds, Tractor tables and sweeps, in the survey's layout of folders.

An operator of a survey gets `<root>/coadd/AAA/<brick>/`, `<root>/tractor/AAA/` and `<root>/sweep/`, AAA being the first
three digits of a brick's name. What differs from real bricks: all of a block lie on one tangent plane and are windows
of one mosaic, so that neighbours agree bit by bit where they overlap; the catalogue is the simulation's truth, not a
fit; everything is marked SIMULATD, and the release number is one that no data release has.

Bricks of another side than 3600 pixels keep the names of the grid though they cover less sky: their positions lie
together around the region's centre and do not agree with the names.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from astropy.io import fits

from pipeline.core.classes import CLASS_SLUGS
from pipeline.simulation.bricks.block import SURVEY_SIDE, Block, block_of
from pipeline.simulation.bricks.catalog import (
    BrickRows,
    Layout,
    objects_of,
    sweep_name,
    sweep_of,
    table_of,
    tractor_rows,
)
from pipeline.simulation.bricks.files import FILES_A_BRICK, write_coadds
from pipeline.simulation.bricks.mosaic import paint
from pipeline.simulation.bricks.scene import scene_of
from pipeline.simulation.writers import temporary_file

REGION = "1498p000"  # on the equator: columns of bricks line up; no simulated tile or benchmark lies there

Tables = Literal["tractor", "sweep", "both"]


@dataclass(frozen=True)
class SimulatedBricks:
    """What `write_bricks` wrote: the folder, where its bricks lie, and the truth table of its galaxies."""

    root: Path
    block: Block
    truth: Path


def block_steps(columns: int, rows: int, galaxies: int) -> int:
    """How much `write_bricks` reports to on_progress in all: its galaxies and its coadd files."""
    return galaxies + columns * rows * FILES_A_BRICK


def write_bricks(
    root: Path,
    *,
    seed: int,
    columns: int,
    rows: int,
    galaxies: int,
    side: int = SURVEY_SIDE,
    overlap: int | None = None,
    region: str = REGION,
    layout: Layout = "dr10",
    tables: Tables = "tractor",
    truth: Path | None = None,
    mosaic: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> SimulatedBricks:
    """Write a block of `columns` x `rows` bricks with `galaxies` targets in all below `root`, replacing that folder.

    Parameters
    ----------
    side, overlap : pixels; overlap None is that of the survey, 165 of 3600, in proportion.
    region : the brick in the block's middle (of an even number, the first one past it to the north and west).
    layout : columns of the tables, as in DR9 and DR10 ("dr10") or in DR8 ("dr8").
    tables : which catalogues to write: a tractor file per brick, sweeps of their primary rows, or both.
    truth : CSV of the targets: brick and objid of the primary row, ra and dec (degrees), class id, slug, mag_r
        (corrected for extinction), shape_r (arcsec); simulated_bricks_truth.csv beside `root` if not given.
    mosaic : a .npy file to keep the mosaic in: float32 (3, H, W), nanomaggies in g, r, z, row 0 south.
    on_progress : called with the number of galaxies drawn, or files written, since its last call; see `block_steps`.

    Every target is in the tables, and is primary in exactly one brick. Objects that the survey would not see, for want
    of exposures in any band, have no row; in a band without exposures the flux is 0, as in the survey.
    Raises UserError if the block cannot be made.
    """
    scene = scene_of(block_of(seed, columns, rows, side=side, overlap=overlap, region=region), galaxies)
    truth = truth or root.parent / "simulated_bricks_truth.csv"
    report = on_progress or _no_progress
    with temporary_file(root) as partial:
        partial.mkdir(parents=True)
        painted = partial / ".mosaic.npy"
        objects = objects_of(scene, paint(scene, painted, report))
        found = []
        for brick in scene.block.bricks:
            folder = partial / "coadd" / brick.name[:3] / brick.name
            found.append(tractor_rows(scene, objects, brick, write_coadds(scene, brick, painted, folder, report)))
        _write_tables(scene.block, found, partial, layout, tables)
        if mosaic is None:
            painted.unlink()
        else:
            mosaic.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(painted, mosaic)
        with temporary_file(truth) as table:
            _write_truth(scene.block, found, table)
    return SimulatedBricks(root, scene.block, truth)


def _no_progress(steps: int) -> None:
    """Report nothing."""


def _write_tables(block: Block, found: list[BrickRows], root: Path, layout: Layout, tables: Tables) -> None:
    if tables != "sweep":
        for brick, rows in zip(block.bricks, found, strict=True):
            path = root / "tractor" / brick.name[:3] / f"tractor-{brick.name}.fits"
            _save(table_of(rows.columns, layout), path)
    if tables != "tractor":
        boxes: dict[str, list[BrickRows]] = {}
        for brick, rows in zip(block.bricks, found, strict=True):
            boxes.setdefault(sweep_name(brick.name), []).append(rows)
        for name, parts in boxes.items():
            _save(sweep_of(parts, layout), root / "sweep" / name)


def _save(table: fits.BinTableHDU, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)


def _write_truth(block: Block, found: list[BrickRows], path: Path) -> None:
    """Write the truth of every target, from its primary row; ten decimals of a degree are 0.4 micro-arcsec."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["brick", "objid", "ra", "dec", "class_id", "slug", "mag_r", "shape_r"])
        for brick, rows in zip(block.bricks, found, strict=True):
            columns = rows.columns
            for i in np.flatnonzero(columns["brick_primary"] & (rows.class_id >= 0)):
                place = (f"{columns['ra'][i]:.10f}", f"{columns['dec'][i]:.10f}")
                kind = (int(rows.class_id[i]), CLASS_SLUGS[rows.class_id[i]])
                values = (f"{rows.mag_r[i]:.4f}", f"{columns['shape_r'][i]:.3f}")
                table.writerow([brick.name, int(columns["objid"][i]), *place, *kind, *values])
