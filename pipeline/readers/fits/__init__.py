"""FITS files checked before memory is taken: what headers declare, planes, windows, columns, compressed tiles.

Start with `headers`, which walks the layout of a file; `files` reads pixels and tables; `compressed` unpacks tiles.
"""
