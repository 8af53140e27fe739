"""Cutouts within tar and zip archives, read as streams; nothing is unpacked to disk.

Start with `reader`; `tar_stream` reads tar with bounded memory.
"""
