"""Which model is champion: the gate that compares a candidate with it, promotion, rollback, and retraining.

It may import every other district of the pipeline except `inspection`.
Start reading in `compare.py` for the gate, in `retraining.py` for the way from labels to a candidate.
"""
