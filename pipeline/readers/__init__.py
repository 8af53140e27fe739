"""From files to stamps: bricks, cutouts, archives, HDF5 and pictures, with the same kind of output whatever they read.

Imports config, tiles and core; no torch. Start with `dispatch.read_tile`; `stamps` defines what readers yield.
"""
