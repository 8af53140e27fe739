"""How good models are: the benchmark of one model, grids of experiments, the leaderboard, statistics of comparisons.

It may import every other district of the pipeline except `promotion` and `inspection`.
Start reading in `evaluate.py` for one model, in `grid.py` for many.
"""
