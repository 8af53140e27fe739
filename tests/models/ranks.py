"""What the processes of a group do in the tests of distributed training; each leaves what it found in a file.

In a module of its own, because started processes import what they run.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.multiprocessing import spawn

from models.training.config import LoopSettings
from models.training.distributed import Group, SyncBatchNorm2d, joined, synchronise_batch_norm
from models.training.trainer import TrainingDiverged, train_network
from tests.models.toys import CPU, EVERYTHING, PLAIN, RECIPE, TRAINING, VALIDATION, changed, little, network, toy

SMOOTH = changed(EVERYTHING, epochs=3, drop_path=0.0, head_dropout=0.0, learning_rate=5e-4, ema_decay=0.5)
"""Without what draws in the forward pass; and slow enough for rounding to stay rounding."""

TRAININGS: dict[str, LoopSettings] = {
    "sync": SMOOTH,
    "lean": changed(SMOOTH, checkpoint_activations=True),
    "apart": changed(SMOOTH, sync_batch_norm=False),
    "apart, plain": changed(SMOOTH, sync_batch_norm=False, ema_decay=0.0, select="best"),
    "random": changed(EVERYTHING, epochs=1, optimizer="lookahead_radam", accumulate=2, select="best"),
}
UNEQUAL = (slice(0, 6), slice(6, 8))  # parts of a batch of eight


def batch(step: int = 0) -> tuple[Tensor, Tensor]:
    """Values float32 (8, 4, 5, 5) far from zero, and weights of their outputs in the loss."""
    generator = torch.Generator().manual_seed(step)
    values = torch.randn(8, 4, 5, 5, generator=generator) * torch.tensor([1.0, 3.0, 0.1, 10.0]).view(1, 4, 1, 1) + 100
    return values, torch.randn(8, 4, 5, 5, generator=generator)


def normalise(norm: nn.BatchNorm2d, rows: slice) -> dict[str, Tensor]:
    """Two training steps on some rows of a batch, and what came of it; gradients are those of the second."""
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    for step in range(2):
        values, weights = batch(step)
        x = values[rows].requires_grad_()
        norm.zero_grad()
        y = norm(x)
        (y * weights[rows]).sum().backward()
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    gradients = {"x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return {"y": y.detach(), **gradients, **norm.state_dict(), "later": norm.eval()(values[rows]).detach()}


def part_of_network(group: Group) -> dict[str, Any]:
    """Output, gradients and statistics of a whole network for this process's part of eight images."""
    net = little()
    synchronise_batch_norm(net)
    shared = group.share(net, CPU)
    rows = group.part(8)
    logits = shared(TRAINING.pixels[rows].float() / 255)
    nn.functional.cross_entropy(logits, TRAINING.labels[rows]).backward()
    return {"logits": logits.detach(), "gradients": [p.grad for p in net.parameters()], "state": net.state_dict()}


def trained(group: Group, folder: Path, name: str) -> dict[str, Any]:
    settings = TRAININGS[name]
    result = train_network(
        network(settings),
        toy(70, 1),
        VALIDATION,
        settings,
        RECIPE,
        device=CPU,
        checkpoint=folder / f"{name}-{group.world}.pt",
        group=group,
    )
    history = [{**vars(record), "images_per_second": 0.0} for record in result.history]
    return {"history": history, "weights": result.network.state_dict(), "logits": result.validation_logits}


def broken_in_one(group: Group, folder: Path) -> str:
    """The message of a training in which the second process meets a loss that is no number, in its third step."""
    from tests.models.training.test_trainer import Breaks

    net = Breaks(2 if group.rank == 1 else 1000, "nan")
    try:
        train_network(
            net, TRAINING, VALIDATION, PLAIN, RECIPE, device=CPU, checkpoint=folder / "broken.pt", group=group
        )
    except TrainingDiverged as error:
        return str(error)
    return ""


def listening() -> list[str]:
    """Addresses that this process listens at."""
    found = psutil.Process().net_connections("inet")
    return [one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN]


def _member(rank: int, world: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with joined(rank, world, f"tcp://127.0.0.1:{port}", CPU) as group:
        found: dict[str, Any] = {
            "listening": listening(),
            "mean": group.mean(torch.tensor([float(rank), 1.0])),
            "few": group.gather(torch.arange(3)[group.part(3)]),
            "many": group.gather(torch.arange(22).view(11, 2)[group.part(11)]),
            "none": group.gather(torch.empty(0, 0)),
            "norm": normalise(SyncBatchNorm2d(4), UNEQUAL[rank]),
            "network": part_of_network(group),
            "broken": broken_in_one(group, folder),
            **{name: trained(group, folder, name) for name in TRAININGS},
        }
    torch.save(found, folder / f"{rank}.pt")


def in_two_processes(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found, by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_member, args=(2, port, folder), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
