"""Releases: committed tiles of one model, published as an immutable HATS collection with everything that proves it.

Imports export, schema, tiles and paths. Start with `build`, which reads in the order of the steps; `registry` knows
which releases exist and which is current.
"""
