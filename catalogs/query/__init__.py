"""Questions to a release: SQL, circles on the sky, and the catalogue as a Python object.

Imports releases and whatever lies below. Start with `catalog` (`catalogs.open`); `sql` runs statements, `cone_search`
knows CONE(ra, dec, radius).
"""
