"""A simulated sky: galaxies of the ten Galaxy10 classes drawn by a physical recipe and written as real sky arrives.

It lets anyone try the whole pipeline, with a known truth, before downloading survey data; all it writes is marked
simulated. Imports core and tiles, neither torch nor models: the colour rule comes in as an argument. Start with
`stamps.simulate_stamp`, one galaxy on a stamp; `writers` and `bricks.write` write files of many.
"""

from pipeline.simulation.bricks.write import SimulatedBricks, block_steps, write_bricks
from pipeline.simulation.stamps import SimulatedStamp, simulate_stamp
from pipeline.simulation.writers import (
    SimulatedSky,
    TileTruth,
    simulate,
    tile_object,
    write_cutout_tile,
    write_galaxy10,
    write_hdf5_tile,
)

__all__ = [
    "SimulatedBricks",
    "SimulatedSky",
    "SimulatedStamp",
    "TileTruth",
    "block_steps",
    "simulate",
    "simulate_stamp",
    "tile_object",
    "write_bricks",
    "write_cutout_tile",
    "write_galaxy10",
    "write_hdf5_tile",
]
