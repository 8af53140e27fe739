"""One training loop: schedule, augmentation, moving average, mixed precision, a checkpoint each epoch, resume.

Images are uint8 tensors held by the caller (in memory or mapped from disk); batches are augmented on the device. Each
epoch draws all its randomness from (seed, epoch), so that a killed training resumes from the last finished epoch to
the same weights on a CPU. The loop knows nothing of files of images, class names or sky positions.
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

from models.errors import ModelError
from models.files import fsync
from models.preprocessing import Preprocessing
from models.training.augmentation import AugmentationPlan, draw_augmentation, soft_targets
from models.training.config import LoopSettings
from models.training.distributed import ALONE, Group, synchronise_batch_norm
from models.training.optimizers import optimizer_for

_STEPS_UNSEEN = 20  # a look at the loss makes the CPU wait for the GPU


class TrainingDiverged(RuntimeError):
    """The loss or the weights are no longer numbers; the last finished epoch's checkpoint is kept."""


@dataclass(frozen=True)
class LabelledPixels:
    """The rows of an image set that one purpose uses.

    `pixels` uint8 (N, 3, S, S) and `labels` int64 (N,) are those of the whole set, in memory or mapped from disk;
    `rows` int64 (n,) says which of them are meant.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class EpochRecord:
    """One line of the training curve.

    Losses in nats; the learning rate after the epoch; the mean norm of the gradients before they were clipped.
    """

    epoch: int
    loss: float
    learning_rate: float
    validation_loss: float
    validation_accuracy: float
    gradient_norm: float
    images_per_second: float


@dataclass(frozen=True)
class TrainingResult:
    """The outcome: the network with its final weights, validation logits float32 (n, C), the curve."""

    network: nn.Module
    validation_logits: Tensor
    history: list[EpochRecord]


def train_network(
    network: nn.Module,
    training: LabelledPixels,
    validation: LabelledPixels,
    settings: LoopSettings,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    checkpoint: Path,
    group: Group = ALONE,
    on_step: Callable[[int], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrainingResult:
    """Train `network` in place, or go on from `checkpoint` when there is one.

    All processes of a group call this with the same arguments. `on_step` hears how many images each step took,
    `on_epoch` of each epoch that is there, also of those that the checkpoint brought.

    Raises
    ------
    TrainingDiverged : the loss or a weight became infinite or NaN.
    ModelError : the checkpoint cannot be read.
    ValueError : the batch cannot be shared out among the processes in whole pairs.
    """
    batch = _batch(len(training), settings.batch_size)
    if batch % (2 * group.world):
        raise ValueError(
            f"batches of {batch} images (batch_size = {settings.batch_size}, {len(training)} training images): "
            f"{group.world} processes need a multiple of {2 * group.world} that is no larger than the training split"
        )
    network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Trainer(network, training, settings, preprocessing, device, group)
    history = run.resume(checkpoint)
    for record in history if on_epoch else ():
        on_epoch(record)  # type: ignore[misc]
    for epoch in range(len(history), settings.epochs):
        started = time.monotonic()
        loss, norm = run.epoch(epoch, on_step)
        speed = run.images_per_epoch / (time.monotonic() - started)
        group.agree(run.averaged())
        logits = _validate(run.averaged(), validation, preprocessing, device, group)
        truth = validation.labels[validation.rows]
        history.append(_record(epoch, loss, norm, run.learning_rate, logits, truth, speed))
        run.remember_best(history)
        if group.is_first:
            run.save(checkpoint, history)
        if on_epoch:
            on_epoch(history[-1])
    final = run.final()
    return TrainingResult(final, _validate(final, validation, preprocessing, device, group), history)


def _validate(
    network: nn.Module, validation: LabelledPixels, preprocessing: Preprocessing, device: torch.device, group: Group
) -> Tensor:
    """Logits of the validation split; each process computes a part of them."""
    rows = validation.rows[group.part(len(validation))]
    return group.gather(predict_logits(network, validation.pixels, preprocessing, device=device, rows=rows))


def predict_logits(
    network: nn.Module,
    pixels: Tensor,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    rows: Tensor | None = None,
    batch_size: int = 128,
) -> Tensor:
    """Logits float32 (n, C), on the CPU, of model-ready pixels uint8 (N, 3, S, S), or of some rows of them."""
    rows = torch.arange(len(pixels)) if rows is None else rows
    network.eval()
    with torch.inference_mode():
        parts = [
            network(preprocessing.to_input(pixels[rows[i : i + batch_size]].to(device))).float().cpu()
            for i in range(0, len(rows), batch_size)
        ]
    return torch.cat(parts) if parts else torch.empty(0, 0)


def images_per_epoch(images: int, batch_size: int) -> int:
    """Training images that an epoch passes over: whole batches; the rest, less than one, is another each epoch."""
    batch = _batch(images, batch_size)
    return images // batch * batch


def _batch(images: int, batch_size: int) -> int:
    """Images a step: those wanted, or as many whole pairs as there are. Raises ValueError for a single image."""
    if images < 2:
        raise ValueError(f"{images} training images: at least 2 are needed")
    return min(batch_size, images // 2 * 2)


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


class Trainer:
    """The moving parts of one training: weights, their average, optimizer, schedule."""

    def __init__(
        self,
        network: nn.Module,
        data: LabelledPixels,
        settings: LoopSettings,
        preprocessing: Preprocessing,
        device: torch.device,
        group: Group,
    ) -> None:
        self.network, self.data, self.settings, self.preprocessing = network, data, settings, preprocessing
        self.device, self.group = device, group
        self.labels = data.labels[data.rows].numpy()
        self.batch_size = _batch(len(data), settings.batch_size)
        self.images_per_epoch = images_per_epoch(len(data), settings.batch_size)
        self.steps_per_epoch = self.images_per_epoch // self.batch_size
        self.mine = group.part(self.batch_size)
        if settings.sync_batch_norm and group.world > 1:
            synchronise_batch_norm(network)
        self.average = AveragedModel(network, multi_avg_fn=_warm_average(settings.ema_decay), use_buffers=True)
        self.optimizer, self.lookahead = optimizer_for(network, settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: self._rate(step))
        self.shared = group.share(torch.compile(network) if settings.compile else network, device)
        self.best: dict[str, Tensor] = {}
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self.autocast = settings.mixed_precision and has_bfloat16

    @property
    def learning_rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def _rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero (Loshchilov & Hutter 2017), as a factor of the peak rate."""
        total = self.settings.epochs * self.steps_per_epoch
        warmup = min(round(self.settings.warmup_epochs * self.steps_per_epoch), total // 2)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    def averaged(self) -> nn.Module:
        """The network that is validated: with averaged weights where they are kept."""
        return self.average.module if self.settings.ema_decay else self.network

    def final(self) -> nn.Module:
        """The network that the training ends with."""
        network = self.averaged()
        if self.best:
            network.load_state_dict(self.best)
        return network

    def epoch(self, epoch: int, on_step: Callable[[int], None] | None) -> tuple[float, float]:
        """One pass; returns the mean loss and the gradient norm. All randomness comes from (seed, epoch, rank)."""
        self.network.train()
        devices = [self.device] if self.device.type == "cuda" else []
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.settings.seed * 1_000_003 + epoch + 7_919 * self.group.rank)
            for pixels, labels, views in self._batches(epoch):
                loss, norm = self._step(pixels, labels, views)
                losses.append(loss)
                norms.append(norm)
                if on_step:
                    on_step(self.batch_size)
                if len(losses) % _STEPS_UNSEEN == 1 and not torch.isfinite(self.group.mean(loss)):
                    break
        curve = self.group.mean(torch.stack(losses)).cpu()
        broken = (~curve.isfinite()).nonzero().flatten().tolist()
        if broken:
            raise self._diverged(f"the loss is {float(curve[broken[0]])}", epoch, broken[0])
        if not self._finite_weights():  # a gradient of the last step, which no loss has seen
            raise self._diverged("weights are not finite", epoch, len(losses) - 1)
        return float(curve.mean()), float(torch.stack(norms).mean())

    def _diverged(self, what: str, epoch: int, step: int) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what} in epoch {epoch + 1}, step {step + 1} of {self.steps_per_epoch}. The last finished epoch is kept; "
            "lower training.learning_rate or training.clip_gradient and train again"
        )

    def _finite_weights(self) -> bool:
        """Whether all weights and buffers are numbers; their average takes part in every step, so it tells."""
        states = self.average.module.state_dict().values()
        return all(bool(state.isfinite().all()) for state in states if state.is_floating_point())

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, AugmentationPlan]]:
        """This process's part of each batch. Order and views of the whole batch are drawn alike in all processes."""
        rng = np.random.default_rng([self.settings.seed, epoch])
        order = balanced_order(self.labels, rng) if self.settings.stratified else rng.permutation(len(self.labels))
        for start in range(0, self.images_per_epoch, self.batch_size):
            views = draw_augmentation(self.settings, self.batch_size, rng).part(self.mine)
            rows = self.data.rows[torch.from_numpy(order[start : start + self.batch_size][self.mine])]
            yield self.data.pixels[rows].to(self.device), self.data.labels[rows].to(self.device), views

    def _step(self, pixels: Tensor, labels: Tensor, views: AugmentationPlan) -> tuple[Tensor, Tensor]:
        images = self.preprocessing.to_input(views.apply(pixels.float() / 255) * 255)
        targets = soft_targets(labels, self.num_classes, self.settings.label_smoothing)
        images, targets = views.mix(images, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(images, targets)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_gradient or math.inf)
        self.optimizer.step()
        self.schedule.step()
        if self.lookahead:
            self.lookahead.step()
        self.average.update_parameters(self.network)
        return loss, norm.detach()

    def _gradients(self, images: Tensor, targets: Tensor) -> Tensor:
        """Gradients of the mean loss of the batch, part by part; returns the loss."""
        size = -(-len(images) // self.settings.accumulate)
        total = torch.zeros((), device=self.device)
        for start in range(0, len(images), size):
            last = start + size >= len(images)
            with self.group.without_gradient_sync(self.shared, not last):
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
                    logits = self.shared(images[start : start + size])
                    loss = F.cross_entropy(logits.float(), targets[start : start + size], reduction="sum") / len(images)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    @property
    def num_classes(self) -> int:
        return int(self.network.num_classes)  # type: ignore[arg-type]

    def remember_best(self, history: list[EpochRecord]) -> None:
        """Keep the weights of this epoch when it is the best so far on the validation split, and that is wanted."""
        losses = [record.validation_loss for record in history]
        if self.settings.select == "best" and losses[-1] <= min(losses):
            self.best = {name: state.detach().clone() for name, state in self.averaged().state_dict().items()}

    def resume(self, checkpoint: Path) -> list[EpochRecord]:
        """Load what `save` wrote, if it is there; returns the curve so far. Raises ModelError when it is damaged."""
        if self.group.is_first:  # a process that was killed as it wrote left gigabytes nobody would see
            for leftover in checkpoint.parent.glob(f".{checkpoint.name}.*"):
                leftover.unlink(missing_ok=True)
        if not checkpoint.exists():
            return []
        try:
            state = torch.load(checkpoint, map_location=self.device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            if self.lookahead:
                self.lookahead.load_state(state["lookahead"])
            self.best = state["best"]
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
            "lookahead": self.lookahead.state() if self.lookahead else [],
            "best": self.best,
            "history": [vars(record) for record in history],
        }
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        beside = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}")
        try:
            torch.save(state, beside)
            fsync(beside)
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
    epoch: int, loss: float, norm: float, rate: float, logits: Tensor, labels: Tensor, images_per_second: float
) -> EpochRecord:
    if len(labels) == 0:
        return EpochRecord(epoch, loss, rate, math.nan, math.nan, norm, images_per_second)
    return EpochRecord(
        epoch=epoch,
        loss=loss,
        learning_rate=rate,
        validation_loss=float(F.cross_entropy(logits, labels)),
        validation_accuracy=float((logits.argmax(1) == labels).float().mean()),
        gradient_norm=norm,
        images_per_second=images_per_second,
    )
