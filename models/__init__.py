"""Networks, their training and their calibrated predictions: torch, and nothing of the sky survey.

Imports neither pipeline nor catalogs; class names arrive as values. Start with `networks.astroformer`, or with
`inference.predictor` for a trained model.
"""
