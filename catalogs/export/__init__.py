"""A release as single files that other tools open: Parquet with VO metadata, FITS, VOTable.

Imports schema and paths. Start with `writers`; `vo_metadata` has units, UCDs and descriptions.
"""
