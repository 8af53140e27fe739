"""A small classification that can be learned in seconds, and short ways to train on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.networks.factory import create_network
from models.preprocessing import Preprocessing
from models.training.config import LoopSettings
from models.training.distributed import ALONE
from models.training.trainer import EpochRecord, LabelledPixels, Trainer, TrainingResult, train_network

RECIPE, CPU, CLASSES = Preprocessing(image_size=32), torch.device("cpu"), 3
PLAIN = LoopSettings(
    epochs=1,
    batch_size=16,
    warmup_epochs=0.5,
    mixup=0.0,
    label_smoothing=0.0,
    drop_path=0.0,
    head_dropout=0.0,
    rotate=False,
    mirror=False,
    zoom=0.0,
    shift=0.0,
    ema_decay=0.9,
)
EVERYTHING = LoopSettings(epochs=4, batch_size=16, warmup_epochs=1, randaugment_ops=1, mixup=0.5, ema_decay=0.9)


def labelled(pixels: torch.Tensor, labels: torch.Tensor) -> LabelledPixels:
    """A set of its own: all rows."""
    return LabelledPixels(pixels, labels, torch.arange(len(labels)))


def toy(count: int, seed: int, weights: tuple[float, ...] = (1, 1, 1)) -> LabelledPixels:
    """Noise with a bright spot whose size says the class; whatever the rotation."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor(weights, dtype=torch.float), count, replacement=True, generator=generator)
    radius = torch.hypot(*torch.meshgrid(torch.arange(-15.5, 16), torch.arange(-15.5, 16), indexing="ij"))
    spot = torch.exp(-0.5 * (radius / (1.5 + 2.5 * labels.view(-1, 1, 1))) ** 2)
    noise = torch.rand(count, 3, 32, 32, generator=generator)
    return labelled((40 + 60 * noise + 150 * spot[:, None]).to(torch.uint8), labels)


TRAINING, VALIDATION = toy(64, 1), toy(32, 2)


class Little(nn.Module):
    """One convolution with batch norm (so without bias, whose gradient would be rounding alone), and a linear layer."""

    num_classes = CLASSES

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 8, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(nn.functional.gelu(self.norm(self.conv(x))).mean((2, 3)))
        return logits


def little(seed: int = 0) -> Little:
    torch.manual_seed(seed)
    return Little()


def network(settings: LoopSettings = PLAIN) -> nn.Module:
    torch.manual_seed(settings.seed)
    return create_network(
        "cpu_tiny",
        image_size=32,
        num_classes=CLASSES,
        drop_path=settings.drop_path,
        head_dropout=settings.head_dropout,
        checkpoint_activations=settings.checkpoint_activations,
    )


def train(
    checkpoint: Path,
    settings: LoopSettings = PLAIN,
    *,
    training: LabelledPixels = TRAINING,
    validation: LabelledPixels = VALIDATION,
    net: nn.Module | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrainingResult:
    return train_network(
        net or network(settings),
        training,
        validation,
        settings,
        RECIPE,
        device=CPU,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )


def run_of(
    settings: LoopSettings,
    data: LabelledPixels = TRAINING,
    net: nn.Module | None = None,
    device: torch.device = CPU,
) -> Trainer:
    return Trainer((net or network(settings)).to(device), data, settings, RECIPE, device, ALONE)


def one_epoch(settings: LoopSettings, data: LabelledPixels) -> nn.Module:
    run = run_of(settings, data)
    run.epoch(0, None)
    return run.final()


def changed(settings: LoopSettings, **values: Any) -> LoopSettings:
    return LoopSettings(**{**settings.model_dump(by_alias=False), **values})


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == name2 and torch.equal(a, b) for (name, a), (name2, b) in pairs)


def curve(trained: TrainingResult) -> list[EpochRecord]:
    """The curve without what depends on the clock."""
    return [replace(record, images_per_second=0.0) for record in trained.history]
