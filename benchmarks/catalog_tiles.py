"""Simulated committed tiles for `benchmarks/catalog.py`: positions over a footprint, predictions drawn at random.

No network has seen an object of them: they have the columns, types and rules of the catalogue, no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from catalogs.healpix import healpix_29
from catalogs.schema import (
    QualityFlag,
    arrow_schema,
    certainty_columns,
    certainty_flags,
    count_classified,
    is_reliable,
    label_columns,
)
from catalogs.tiles import TileMetadata, commit, read_tile_metadata, tile_path

MODEL = "simulated-0000"
SLUGS = ["disturbed", "merging", "round", "in_between", "cigar", "barred", "tight", "loose", "edge_on", "edge_on_bulge"]
SEED = 5
PATCH_SIDE = 2.0  # degrees; 5,465 such patches cover the footprint below
CENTRE = (185.0, 25.0)  # degrees; fewer tiles than patches lie around it


@dataclass(frozen=True)
class Tile:
    """A patch of sky of height `PATCH_SIDE` and how many objects it holds; corner and width in degrees."""

    number: int
    rows: int
    ra: float
    dec: float
    width: float

    @property
    def name(self) -> str:
        return f"simulated-{self.number:05d}"


def simulated_sky(rows: int, tiles: int) -> list[Tile]:
    """Tiles over a simplified footprint of the Legacy Surveys (north and south galactic caps), in all `rows` objects.

    Sides follow right ascension and declination, so that tiles and HEALPix pixels cut each other, as in real life.
    The number of objects of a tile scatters by half of its mean (standard deviation).
    """
    patches = []
    for dec in np.arange(-66.0, 84.0, PATCH_SIDE):
        middle = np.radians(dec + PATCH_SIDE / 2)
        count = int(360 * np.cos(middle) // PATCH_SIDE)
        for ra in np.arange(count) * 360.0 / count:
            around = np.radians(ra + 180 / count)
            pole_ra, pole_dec = np.radians(192.859), np.radians(27.128)  # of the Galaxy
            sine = np.sin(middle) * np.sin(pole_dec) + np.cos(middle) * np.cos(pole_dec) * np.cos(around - pole_ra)
            latitude = np.degrees(np.arcsin(sine))
            if (latitude > 22 and dec > -12) or (latitude < -22 and dec < 33):
                there = np.radians(CENTRE)
                near = np.sin(middle) * np.sin(there[1]) + np.cos(middle) * np.cos(there[1]) * np.cos(around - there[0])
                patches.append((-float(near), float(ra), float(dec), 360.0 / count))
    if not 0 < tiles <= min(len(patches), rows):
        raise SystemExit(f"--tiles must be 1 to {min(len(patches), rows)}, each with a row")
    rng = np.random.default_rng(SEED)
    weights = rng.gamma(4.0, size=tiles)
    counts = 1 + rng.multinomial(rows - tiles, weights / weights.sum())
    chosen = sorted(patches)[:tiles]
    return [Tile(n, int(counts[n]), ra, dec, width) for n, (_, ra, dec, width) in enumerate(chosen)]


def object_id(tile: Tile, row: int) -> int:
    """The id of an object, made of release, brick and number as a TARGETID of DESI is."""
    return (9010 << 42) + (tile.number << 22) + row


def simulated_rows(tile: Tile, edition: int = 0) -> pa.Table:
    """The rows of a tile with one more than it has, as Arrow table; editions differ in pixels and predictions."""
    count = tile.rows + 1
    rng = np.random.default_rng([SEED, tile.number])
    low, high = np.sin(np.radians([tile.dec, tile.dec + PATCH_SIDE]))
    ra, dec = tile.ra + rng.random(count) * tile.width, np.degrees(np.arcsin(rng.uniform(low, high, count)))
    mag = rng.normal(17.8, 0.9, count).clip(10, 19).astype(np.float32)
    classified = rng.random(count) > 0.005
    rng = np.random.default_rng([SEED, tile.number, edition])
    weights = rng.gamma(0.3, size=(count, len(SLUGS))) + 1e-9
    p = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    sets, novelty = p > 0.1, rng.random(count)
    labels = label_columns(p, classified, SLUGS)
    flags = certainty_flags(sets, 0.5 + rng.random(count) / 2, novelty.round(4))
    flags |= np.where(rng.random(count) < 0.04, int(QualityFlag.BRIGHT_STAR), 0)
    flags = np.where(classified, flags, int(QualityFlag.UNCLASSIFIED)).astype(np.int32)
    objid = np.arange(count)
    columns = {
        "_healpix_29": healpix_29(ra, dec),
        "object_id": object_id(tile, 0) + objid,
        "source_name": [f"{tile.name}.fits#{i}" for i in objid],
        "ra": ra,
        "dec": dec,
        "release": np.full(count, 9010, np.int16),
        "brickid": np.full(count, tile.number, np.int32),
        "objid": objid.astype(np.int32),
        "tile_id": [tile.name] * count,
        **labels,
        **certainty_columns(sets, rng.random(count) * 0.1, novelty, 8, classified),
        "quality_flags": flags,
        "is_reliable": is_reliable(labels["confidence"], flags),
        "bad_pixel_fraction": np.zeros(count, np.float32),
        "maskbits": np.where(flags & int(QualityFlag.BRIGHT_STAR), 2, 0).astype(np.int32),
        "pixscale": np.full(count, 0.262, np.float32),
        "mag_r": mag,
        "survey_layer": ["simulated-grz"] * count,
        "model_id": [MODEL] * count,
        "run_id": [f"run-{edition}"] * count,
        "input_digest": rng.integers(-(2**63), 2**63, count),
        "mjd_predicted": np.full(count, 61_000.5 + edition),
    }
    return pa.table(columns, schema=arrow_schema(SLUGS))


def patched_rows(tile: Tile) -> tuple[pa.Table, np.ndarray]:
    """The rows of a tile after its patch, and the ids that differ: one object gone, one new, a third of all changed."""
    ids = np.arange(tile.rows + 1)
    changed = (ids % 3 == 0) | (ids == tile.rows)
    table = pa.concat_tables(
        [
            simulated_rows(tile).filter(pa.array(~changed)),
            simulated_rows(tile, 1).filter(pa.array(changed & (ids > 0))),
        ]
    )
    return table, object_id(tile, 0) + ids[changed]


def commit_tile(catalog: Path, tile: Tile, table: pa.Table, made_of: str) -> None:
    """Commit rows of a tile; `made_of` is the fingerprint of its input."""
    classified = count_classified(table)
    stamp = TileMetadata(
        tile_id=tile.name,
        source=f"{tile.name}.fits",
        fingerprint=made_of,
        model_id=MODEL,
        recipe_digest="simulated",
        run_id=table["run_id"][-1].as_py(),
        class_slugs=SLUGS,
        classified=classified,
        unclassified=table.num_rows - classified,
    )
    commit(catalog, table, stamp)


def write_tiles(catalog: Path, tiles: Sequence[Tile]) -> int:
    """Commit those of the tiles that are not there; returns how many."""
    written = 0
    for tile in tiles:
        made_of = f"simulated-{SEED}-{tile.number}-{tile.rows}"
        stamp = read_tile_metadata(tile_path(catalog, MODEL, tile.name))
        if stamp is None or not stamp.matches(fingerprint=made_of, model_id=MODEL, recipe_digest="simulated"):
            commit_tile(catalog, tile, simulated_rows(tile).slice(0, tile.rows), made_of)
            written += 1
    return written
