"""Labelled images: how each kind is opened, how they are split, and the cache of their model-ready pixels.

Imports readers, config and core, and models for preprocessing. Start with `image_set`; `loading` says which images are
meant, `splits` shares them out by position on the sky.
"""
