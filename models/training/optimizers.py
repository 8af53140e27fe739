"""The optimizers of the training loop: AdamW, or RAdam inside lookahead."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.astroformer import weight_decay_groups
from models.training.config import LoopSettings

_STEPS, _SHARE = 6, 0.5  # of lookahead, as in its paper


class Lookahead:
    """Slow weights that follow the fast ones every few steps and then replace them (Zhang et al. 2019)."""

    def __init__(self, network: nn.Module) -> None:
        self._fast: list[Tensor] = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._slow = [parameter.detach().clone() for parameter in self._fast]
        self._steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """To be called after each step of the fast optimizer."""
        self._steps += 1
        if self._steps % _STEPS == 0:
            torch._foreach_lerp_(self._slow, self._fast, _SHARE)
            torch._foreach_copy_(self._fast, self._slow)

    def state(self) -> list[Tensor]:
        """What a checkpoint must keep: the number of steps, then the slow weights."""
        return [torch.tensor(self._steps), *self._slow]

    def load_state(self, state: list[Tensor]) -> None:
        """The inverse of `state`."""
        self._steps = int(state[0])
        torch._foreach_copy_(self._slow, state[1:])


def optimizer_for(network: nn.Module, settings: LoopSettings) -> tuple[torch.optim.Optimizer, Lookahead | None]:
    """The optimizer that the settings name, and lookahead where it belongs to it."""
    groups = weight_decay_groups(network, settings.weight_decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate), None
    return torch.optim.RAdam(groups, lr=settings.learning_rate, decoupled_weight_decay=True), Lookahead(network)
