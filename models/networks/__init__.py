"""Astroformer in all variants, other networks by name, and weights from other implementations.

Imports no other district. Start with `astroformer`; `factory` creates any network by name.
"""
