"""What is kept of every run: its log, its record, and the locks that keep runs apart.

Imports config, tiles and core. Start with `run_log`; `records` are what releases say of their runs.
"""
