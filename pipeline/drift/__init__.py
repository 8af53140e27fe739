"""Drift: whether the new objects of a release differ from the earlier ones by more than chance explains.

It may import `catalogs` and, within the pipeline, `readers`, `runs`, `simulation`, `config`, `tiles` and `core`.
Start reading in `monitor.py`; `counts.py`, `statistics.py` and `comparison.py` follow in the order of the data.
"""
