"""From labelled images to a calibrated model folder.

Imports survey and whatever lies below it; evaluation and promotion build on it. Start with `plan` (what is learned
from, and the model id), then `train` (the run) and `fit` (the unit: what each process does).
"""
