"""What a sky tile is: its names, files, fingerprint and checksums, and the survey's grid of bricks.

Imports core alone; opens no image. Start with `sky_tile`; `file_names` has all rules about names.
"""
