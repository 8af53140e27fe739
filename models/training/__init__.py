"""The training loop: augmentation, schedule, moving average, checkpoints, several processes.

Imports networks and preprocessing. Start with `trainer.train_network`; `config` has its settings.
"""
