"""A trained model in use: pixels in, calibrated probabilities, prediction sets and OOD scores out.

Imports every other district of models. Start with `predictor`; `ensemble` runs networks and views, `predictions` makes
their logits into confidences.
"""
