"""Where the simulated objects are on the sky: a patch per tile, and a region of its own for the benchmark.

All positions lie inside the DECaLS footprint. Tiles take cells of a fixed grid in the north galactic part, the
benchmark lies in the south galactic part, so no position is shared. Must not know about galaxies, pixels or files.
"""

from __future__ import annotations

import numpy as np

PATCH_DEG = 0.25
RA_START, RA_STEP, RA_CELLS = 125.0, 0.30, 400  # degrees; 0.30 deg of RA are wider than a patch at every Dec used
DEC_START, DEC_STEP, DEC_CELLS = 1.0, 0.26, 107  # degrees
MAX_TILES = RA_CELLS * DEC_CELLS
SLOTS_ACROSS = 128  # objects of a tile take slots of 7 arcsec, so that two never lie within 3 arcsec of each other
MAX_GALAXIES = SLOTS_ACROSS**2
SLOT_USED = 0.5  # share of a slot's width in which its object is placed
BENCHMARK_RA = (2.0, 42.0)  # degrees
BENCHMARK_DEC = (-4.0, 28.0)  # degrees

_PATCHES, _SLOTS = 101, 102  # names of the two random streams used here


def patch_centre(seed: int, tile: int) -> tuple[float, float]:
    """Right ascension and declination (degrees) of a tile's patch. Every tile of a seed has its own patch.

    Raises ValueError if `tile` is not 0 to MAX_TILES - 1.
    """
    if not 0 <= tile < MAX_TILES:
        raise ValueError(f"tile must be 0 to {MAX_TILES - 1}, as many as the footprint has patches, found {tile}")
    cell = int(np.random.default_rng([seed, _PATCHES]).permutation(MAX_TILES)[tile])
    ra_cell, dec_cell = cell % RA_CELLS, cell // RA_CELLS
    return RA_START + RA_STEP * (ra_cell + 0.5), DEC_START + DEC_STEP * (dec_cell + 0.5)


def tile_positions(seed: int, tile: int, galaxies: int) -> tuple[np.ndarray, np.ndarray]:
    """Right ascension and declination (degrees, float64 (galaxies,)) of the first objects of a tile.

    Object k is the same however many are asked for. Raises ValueError above MAX_GALAXIES.
    """
    if not 0 <= galaxies <= MAX_GALAXIES:
        raise ValueError(f"galaxies must be 0 to {MAX_GALAXIES} a tile, found {galaxies}: write more tiles instead")
    rng = np.random.default_rng([seed, _SLOTS, tile])
    slot = rng.permutation(MAX_GALAXIES)[:galaxies]
    within = (rng.random((MAX_GALAXIES, 2))[:galaxies] - 0.5) * SLOT_USED
    east = ((slot % SLOTS_ACROSS + 0.5 + within[:, 0]) / SLOTS_ACROSS - 0.5) * PATCH_DEG
    north = ((slot // SLOTS_ACROSS + 0.5 + within[:, 1]) / SLOTS_ACROSS - 0.5) * PATCH_DEG
    ra, dec = patch_centre(seed, tile)
    return ra + east / np.cos(np.radians(dec)), dec + north


def benchmark_position(rng: np.random.Generator) -> tuple[float, float]:
    """A random right ascension and declination (degrees) in the benchmark's region, uniform on the sphere."""
    low, high = np.sin(np.radians(BENCHMARK_DEC))
    return float(rng.uniform(*BENCHMARK_RA)), float(np.degrees(np.arcsin(rng.uniform(low, high))))
