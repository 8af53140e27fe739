"""Every setting of the loop does something, and those that must not change the outcome do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.training.config import LoopSettings
from models.training.trainer import train_network
from tests.models.toys import (
    EVERYTHING,
    PLAIN,
    RECIPE,
    TRAINING,
    changed,
    curve,
    little,
    network,
    one_epoch,
    run_of,
    same_weights,
    toy,
    train,
)

OTHER: dict[str, Any] = {
    "batch_size": 8,
    "accumulate": 2,  # by the statistics of batch norm
    "optimizer": "lookahead_radam",
    "learning_rate": 1e-3,
    "warmup_epochs": 0.0,
    "weight_decay": 0.5,
    "clip_gradient": 0.1,
    "label_smoothing": 0.2,
    "mixup": 0.8,
    "cutmix": 1.0,
    "randaugment_ops": 1,
    "rotate": True,
    "mirror": True,
    "zoom": 0.2,
    "shift": 0.1,
    "drop_path": 0.5,
    "head_dropout": 0.5,
    "ema_decay": 0.1,
    "stratified": False,
    "seed": 1,
}
# Of no influence alone, in one epoch, on a CPU, or in one process.
SEEN_ELSEWHERE = {
    "epochs",
    "randaugment_magnitude",
    "mixed_precision",
    "select",
    "sync_batch_norm",
    "compile",
    "checkpoint_activations",
}


def test_every_setting_changes_the_weights() -> None:
    assert set(OTHER) | SEEN_ELSEWHERE == set(LoopSettings.model_fields)
    assert not set(OTHER) & SEEN_ELSEWHERE
    data = toy(32, 4, weights=(6, 2, 1))
    reference = one_epoch(PLAIN, data)
    assert same_weights(reference, one_epoch(PLAIN, data))
    assert [k for k, v in OTHER.items() if same_weights(reference, one_epoch(changed(PLAIN, **{k: v}), data))] == []


def test_strength_of_randaugment_counts() -> None:
    weak = changed(PLAIN, randaugment_ops=2, randaugment_magnitude=1)
    data = toy(32, 4)
    assert not same_weights(one_epoch(weak, data), one_epoch(changed(weak, randaugment_magnitude=29), data))


def gradients(settings: LoopSettings, *, training: bool) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of the first batch, before clipping; batch norm by its running statistics or the batch's."""
    run = run_of(settings)
    run.network.train(training)
    pixels, labels, views = next(run._batches(0))
    targets = torch.nn.functional.one_hot(labels, 3).float()
    images, targets = views.mix(RECIPE.to_input(views.apply(pixels.float() / 255) * 255), targets)
    return run._gradients(images, targets), [p.grad for p in run.network.parameters() if p.grad is not None]


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts: int) -> None:
    whole_loss, whole = gradients(changed(EVERYTHING, drop_path=0.0, head_dropout=0.0), training=False)
    settings = changed(EVERYTHING, drop_path=0.0, head_dropout=0.0, accumulate=parts)
    loss, found = gradients(settings, training=False)
    torch.testing.assert_close(loss, whole_loss)
    assert len(found) == len(whole) > 50
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-4)


def test_keeping_fewer_activations_changes_nothing(tmp_path: Path) -> None:
    """Bit by bit, with stochastic depth, dropout and batch norm under way, which draw or count in the forward pass."""
    settings = changed(EVERYTHING, epochs=2, drop_path=0.4, head_dropout=0.4)
    plain = train(tmp_path / "plain.pt", settings)
    lean = train(tmp_path / "lean.pt", changed(settings, checkpoint_activations=True))
    assert same_weights(plain.network, lean.network)
    assert curve(plain) == curve(lean)
    assert lean.network.stages[0].checkpoint_activations and not plain.network.stages[0].checkpoint_activations


@pytest.mark.slow  # the compiler may need a minute on a busy machine
def test_a_compiled_network_trains_to_the_same_weights_but_for_rounding(tmp_path: Path) -> None:
    settings = changed(PLAIN, epochs=2)
    plain = train(tmp_path / "plain.pt", settings, net=little())
    compiled = train(tmp_path / "compiled.pt", changed(settings, compile=True), net=little())
    assert [r.loss for r in compiled.history] == pytest.approx([r.loss for r in plain.history], rel=1e-4)
    torch.testing.assert_close(compiled.network.state_dict(), plain.network.state_dict(), atol=1e-3, rtol=1e-3)


def test_mixed_precision_is_for_gpus_with_bfloat16() -> None:
    assert not run_of(PLAIN).autocast  # a CPU trains in float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_learns_in_bfloat16(compiled: bool, tmp_path: Path) -> None:
    settings = changed(EVERYTHING, epochs=8, randaugment_ops=0, learning_rate=3e-3, compile=compiled)
    gpu = torch.device("cuda")
    assert run_of(settings, TRAINING, device=gpu).autocast
    trained = train_network(
        network(settings), toy(192, 1), toy(96, 2), settings, RECIPE, device=gpu, checkpoint=tmp_path / "c.pt"
    )
    assert trained.history[-1].validation_accuracy > 0.8
