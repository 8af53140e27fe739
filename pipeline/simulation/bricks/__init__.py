"""Whole survey bricks of the simulated sky: images, masks, exposures, catalogues, as the survey lays them out.

Imports core and tiles. Start with `write`; `block` is the grid of bricks, `scene` what is on it, `mosaic` paints it,
`catalog` and `files` write what the survey would.
"""
