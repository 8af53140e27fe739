"""Galaxies of the ten Galaxy10 classes, drawn as sums of layers by a physical recipe; stars and galaxies around them.

Imports no other district. Start with `classes`, a recipe for each class; `layers` turns shapes, colours and dust into
light.
"""
