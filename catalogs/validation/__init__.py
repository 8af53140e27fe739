"""The audit of a release: whether its files, rows, counts and provenance agree with each other and with the tiles.

Imports releases and whatever lies below. Start with `audit`; each other module holds one group of checks.
"""
