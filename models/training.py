"""One training loop: schedule, augmentation, moving average, mixed precision, a checkpoint each epoch, resume.

Images are uint8 tensors held by the caller (in memory or mapped from disk); batches are augmented on the device. Each
epoch draws all its randomness from (seed, epoch), so that a killed training resumes from the last finished epoch to
the very same weights on a CPU. The loop knows nothing of files of images, class names or sky positions.
"""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from models.astroformer import weight_decay_groups
from models.augment import build_augmentation, mixup, soft_targets
from models.errors import ModelError
from models.files import sync
from models.recipe import Recipe
from models.settings import LoopSettings

_STEPS_UNSEEN = 20  # a look at the loss makes the CPU wait for the GPU


class TrainingDiverged(RuntimeError):
    """The loss or the weights are no longer numbers; the last finished epoch's checkpoint is kept."""


@dataclass(frozen=True)
class LabelledPixels:
    """Model-ready pixels uint8 (N, 3, S, S) with labels int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class EpochRecord:
    """One line of the training curve; losses in nats, the learning rate after the epoch."""

    epoch: int
    loss: float
    learning_rate: float
    validation_loss: float
    validation_accuracy: float
    images_per_second: float


@dataclass(frozen=True)
class Trained:
    """The outcome: the network with its final (averaged) weights, validation logits float32 (N, C), the curve."""

    network: nn.Module
    validation_logits: Tensor
    history: list[EpochRecord]


def train_network(
    network: nn.Module,
    training: LabelledPixels,
    validation: LabelledPixels,
    settings: LoopSettings,
    recipe: Recipe,
    *,
    device: torch.device,
    checkpoint: Path,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Trained:
    """Train `network` in place, or go on from `checkpoint` when there is one.

    Raises
    ------
    TrainingDiverged : the loss or a weight became infinite or NaN.
    ModelError : the checkpoint can not be read.
    """
    network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = _Run(network, training, settings, recipe, device)
    history = run.resume(checkpoint)
    for epoch in range(len(history), settings.epochs):
        started = time.monotonic()
        loss = run.epoch(epoch)
        speed = run.images_per_epoch / (time.monotonic() - started)
        logits = predict_logits(run.final(), validation.pixels, recipe, device=device)
        history.append(_record(epoch, loss, run.learning_rate, logits, validation.labels, speed))
        run.save(checkpoint, history)
        if on_epoch:
            on_epoch(history[-1])
    final = run.final()
    return Trained(final, predict_logits(final, validation.pixels, recipe, device=device), history)


def predict_logits(
    network: nn.Module, pixels: Tensor, recipe: Recipe, *, device: torch.device, batch_size: int = 128
) -> Tensor:
    """Logits float32 (N, C), on the CPU, of model-ready pixels uint8 (N, 3, S, S); in evaluation mode."""
    network.eval()
    with torch.inference_mode():
        parts = [
            network(recipe.to_input(pixels[i : i + batch_size].to(device))).float().cpu()
            for i in range(0, len(pixels), batch_size)
        ]
    return torch.cat(parts) if parts else torch.empty(0, 0)


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An epoch's order of images, int64 (N,), in which every class present comes (nearly) equally often.

    Each class is gone through in random order again and again, so that no image of a class is drawn a third time
    before all its others were drawn twice.
    """
    classes, inverse = np.unique(labels, return_inverse=True)
    share, rest = divmod(len(labels), len(classes))
    extra = set(rng.permutation(len(classes))[:rest].tolist())
    drawn: list[np.ndarray] = []
    for c in range(len(classes)):
        members = np.flatnonzero(inverse == c)
        wanted = share + (c in extra)
        rounds = [rng.permutation(members) for _ in range(math.ceil(wanted / len(members)))]
        drawn.append(np.concatenate(rounds)[:wanted])
    return rng.permutation(np.concatenate(drawn))


class _Run:
    """The moving parts of one training: weights, their average, optimizer, schedule."""

    def __init__(
        self, network: nn.Module, data: LabelledPixels, settings: LoopSettings, recipe: Recipe, device: torch.device
    ) -> None:
        self.network, self.data, self.settings, self.recipe, self.device = network, data, settings, recipe, device
        self.labels = data.labels.numpy()
        self.batch_size = min(settings.batch_size, len(data))
        self.steps_per_epoch = len(data) // self.batch_size
        self.average = AveragedModel(network, multi_avg_fn=_warm_average(settings.ema_decay), use_buffers=True)
        groups = weight_decay_groups(network, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: self._rate(step))
        self.augment = build_augmentation(
            rotate=settings.rotate,
            mirror=settings.mirror,
            zoom=settings.zoom,
            shift=settings.shift,
            randaugment_ops=settings.randaugment_ops,
            randaugment_magnitude=settings.randaugment_magnitude,
        )
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self.autocast = settings.mixed_precision and has_bfloat16

    @property
    def learning_rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    @property
    def images_per_epoch(self) -> int:
        return self.steps_per_epoch * self.batch_size  # the rest, less than a batch, is another one each epoch

    def _rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero (Loshchilov & Hutter 2017), as a factor of the peak rate."""
        warmup = round(self.settings.warmup_epochs * self.steps_per_epoch)
        total = self.settings.epochs * self.steps_per_epoch
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    def final(self) -> nn.Module:
        return self.average.module if self.settings.ema_decay else self.network

    def epoch(self, epoch: int) -> float:
        """One pass; returns the mean loss. All randomness comes from (seed, epoch)."""
        self.network.train()
        devices = [self.device] if self.device.type == "cuda" else []
        losses: list[Tensor] = []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.settings.seed * 1_000_003 + epoch)
            for images, targets in self._batches(epoch):
                losses.append(self._step(images, targets))
                if len(losses) % _STEPS_UNSEEN == 1 and not torch.isfinite(losses[-1]):
                    break
        curve = torch.stack(losses).cpu()
        broken = (~curve.isfinite()).nonzero().flatten().tolist()
        if broken:
            raise self._diverged(f"the loss is {float(curve[broken[0]])}", epoch, broken[0])
        if not self._finite_weights():  # a gradient of the last step, which no loss has seen
            raise self._diverged("weights are not finite", epoch, len(losses) - 1)
        return float(curve.mean())

    def _diverged(self, what: str, epoch: int, step: int) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what} in epoch {epoch + 1}, step {step + 1} of {self.steps_per_epoch}. The last finished epoch is kept; "
            "lower training.learning_rate or training.clip_gradient and train again"
        )

    def _finite_weights(self) -> bool:
        """Whether all weights and buffers are numbers; their average takes part in every step, so it tells."""
        states = self.average.module.state_dict().values()
        return all(bool(state.isfinite().all()) for state in states if state.is_floating_point())

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng([self.settings.seed, epoch])
        order = balanced_order(self.labels, rng) if self.settings.stratified else rng.permutation(len(self.labels))
        for start in range(0, self.images_per_epoch, self.batch_size):
            index = torch.from_numpy(order[start : start + self.batch_size])
            yield self.data.pixels[index].to(self.device), self.data.labels[index].to(self.device)

    def _step(self, pixels: Tensor, labels: Tensor) -> Tensor:
        images = self.augment(pixels.float() / 255) * 255
        images = self.recipe.to_input(images)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            targets = soft_targets(labels, self.num_classes, self.settings.label_smoothing)
            images, targets = mixup(images, targets, self.settings.mixup)
            loss = F.cross_entropy(self.network(images), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.clip_gradient:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_gradient)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.network)
        return loss.detach()

    @property
    def num_classes(self) -> int:
        return int(self.network.get_submodule("head.fc").weight.shape[0])  # type: ignore[union-attr,index]

    def resume(self, checkpoint: Path) -> list[EpochRecord]:
        """Load what `save` wrote, if it is there; returns the curve so far. Raises ModelError when it is damaged."""
        if not checkpoint.exists():
            return []
        try:
            state = torch.load(checkpoint, map_location=self.device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            return [EpochRecord(**record) for record in state["history"]]
        except torch.OutOfMemoryError:  # a RuntimeError that says nothing about the file
            raise
        except (RuntimeError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
            # Not in torch's words: they recommend to load the file with weights_only=False.
            raise ModelError(f"{checkpoint}: damaged or of another training; delete it to begin anew") from error

    def save(self, checkpoint: Path, history: list[EpochRecord]) -> None:
        """Write everything needed to go on, beside and renamed: a kill never leaves half a checkpoint."""
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": [vars(record) for record in history],
        }
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        beside = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}")
        try:
            torch.save(state, beside)
            sync(beside)
            os.replace(beside, checkpoint)
        finally:
            beside.unlink(missing_ok=True)


def _warm_average(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """Moving average whose memory grows with the steps, so that the start does not dominate short trainings.

    It is given all tensors of one type at once, and changes the averaged ones in place.
    """

    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            n = float(updates)
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))
        else:  # counters of batch norm, indices of position tables
            torch._foreach_copy_(averaged, current)

    return average


def _record(
    epoch: int, loss: float, rate: float, logits: Tensor, labels: Tensor, images_per_second: float
) -> EpochRecord:
    if len(labels) == 0:
        return EpochRecord(epoch, loss, rate, math.nan, math.nan, images_per_second)
    return EpochRecord(
        epoch=epoch,
        loss=loss,
        learning_rate=rate,
        validation_loss=float(F.cross_entropy(logits, labels)),
        validation_accuracy=float((logits.argmax(1) == labels).float().mean()),
        images_per_second=images_per_second,
    )
