"""The optimisers: AdamW, and RAdam inside lookahead, reckoned again by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.training.optimizers import Lookahead, optimizer_for
from tests.models.toys import PLAIN, changed, little, network


def test_lookahead_goes_half_the_way_every_six_steps() -> None:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(0.0)
        layer.bias.fill_(10.0)
    ahead = Lookahead(layer)
    for step in range(1, 13):
        with torch.no_grad():
            layer.weight.add_(1.0)
        ahead.step()
        # fast weights 1 … 5, 6 → 3; then 4 … 8, 9 → 6
        wanted = {6: 3.0, 12: 6.0}.get(step, float(step if step < 6 else step - 3))
        assert layer.weight.tolist() == [[wanted, wanted]]
    assert layer.bias.tolist() == [10.0]


def test_lookahead_goes_on_from_its_state() -> None:
    def wander(net: nn.Module, ahead: Lookahead, steps: int) -> None:
        for _ in range(steps):
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.mul_(1.1)
            ahead.step()

    straight, broken = little(), little()
    one, two = Lookahead(straight), Lookahead(broken)
    wander(straight, one, 17)
    wander(broken, two, 8)
    kept = [tensor.clone() for tensor in two.state()]
    other = little(seed=5)
    third = Lookahead(other)
    other.load_state_dict(broken.state_dict())
    third.load_state(kept)
    wander(other, third, 9)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), other.parameters(), strict=True))


def test_a_state_of_another_network_or_none_is_an_error() -> None:
    ahead = Lookahead(little())
    with pytest.raises(IndexError):
        ahead.load_state([])
    with pytest.raises(RuntimeError):
        ahead.load_state(Lookahead(nn.Linear(2, 3)).state())


@pytest.mark.parametrize("name", ["adamw", "lookahead_radam"])
def test_weights_decay_apart_from_gradients_and_biases_do_not(name: str) -> None:
    """Without any gradient a step multiplies weights by 1 − rate · decay and leaves the rest."""
    net = network()
    optimizer, ahead = optimizer_for(net, changed(PLAIN, optimizer=name, learning_rate=0.1, weight_decay=0.5))
    assert (ahead is not None) == (name == "lookahead_radam")
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = {key for key, value in net.named_parameters() if not torch.equal(value, before[key])}
    for key in decayed:
        torch.testing.assert_close(net.get_parameter(key).detach(), before[key] * (1 - 0.1 * 0.5))
    assert decayed == {
        key
        for key, value in before.items()
        if value.ndim > 1 and not key.endswith("relative_position_bias_table") and value.abs().sum() > 0
    }


def test_radam_is_rectified() -> None:
    """Its first five steps follow the momentum alone: the step is the rate times the gradient (Liu et al. 2020)."""
    layer = nn.Linear(1, 1, bias=False)
    optimizer, _ = optimizer_for(
        layer, changed(PLAIN, optimizer="lookahead_radam", learning_rate=0.1, weight_decay=0.0)
    )
    for _ in range(5):
        before = layer.weight.item()
        layer.weight.grad = torch.full((1, 1), 3.0)
        optimizer.step()
        assert layer.weight.item() == pytest.approx(before - 0.1 * 3.0, rel=1e-5)
