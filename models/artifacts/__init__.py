"""Model folders on disk: cards, champion and history, weights that cannot run code.

Imports networks and uncertainty. Start with `registry`, which needs no torch.
"""
