"""FITS files of one galaxy: viewer cutouts and subimage products.

Start with `reader`; `headers` says what a file declares of bands, position and layer; `subimages` joins pieces of
several bricks.
"""
