"""Temperature scaling recovers a temperature that is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.uncertainty.temperature import fit_temperature


def overconfident(temperature: float, count: int = 6000) -> tuple[Tensor, Tensor]:
    """Logits (N, 5) that are `temperature` times those the labels were drawn from."""
    generator = torch.Generator().manual_seed(3)
    honest = 2.0 * torch.randn(count, 5, generator=generator)
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator).squeeze(1)
    return honest * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    assert fit_temperature(*overconfident(temperature)) == pytest.approx(temperature, rel=0.05)


def test_likelihood_becomes_the_best_there_is() -> None:
    logits, labels = overconfident(2.5)
    fitted = F.cross_entropy(logits / fit_temperature(logits, labels), labels)
    assert fitted < F.cross_entropy(logits, labels) - 0.1
    for temperature in torch.linspace(0.2, 6.0, 60):
        assert fitted <= F.cross_entropy(logits / temperature, labels) + 1e-6


@given(st.integers(0, 10**6), st.floats(-3, 5), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_whatever_the_logits_the_temperature_is_a_number_and_no_call_changes(
    seed: int, power: float, count: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 4, generator=generator) * 10**power
    temperature = fit_temperature(logits, torch.randint(0, 4, (count,), generator=generator))
    assert 0.05 <= temperature <= 20
    assert torch.equal((logits / temperature).argmax(1), logits.argmax(1))


def test_nothing_to_fit_leaves_confidences_alone() -> None:
    assert fit_temperature(torch.empty(0, 4), torch.empty(0, dtype=torch.int64)) == 1.0


def test_all_right_or_all_wrong_stays_within_bounds() -> None:
    labels = torch.arange(40) % 4
    right = F.one_hot(labels, 4).float()
    assert fit_temperature(right, labels) == 0.05
    assert fit_temperature(right.roll(1, 1), labels) == 20.0


def test_logits_of_a_broken_network_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]))


def test_logits_made_in_inference_mode_are_welcome() -> None:
    with torch.inference_mode():
        logits, labels = overconfident(2.0, 500)
        logits = logits.double()
    assert fit_temperature(logits, labels.clone()) == pytest.approx(2.0, rel=0.2)
