"""The survey: new sky tiles become rows of the catalogue, and a release.

Imports drift, execution, ingest, datasets and whatever lies below them; training, promotion and inspection build on it.
Start with `plan` (what is to do), then `run` (the steps of a run) and `classify` (the unit: one tile in, one file out).
"""
