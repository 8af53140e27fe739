"""Processes that train one network together: the group they form, and batch norm over all of them.

A group of one needs nothing of this; the loop asks a `Group` all the same, so that there is one loop. Where the
processes come from (Dask, torchrun) is not known here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.nn.parallel import DistributedDataParallel

_LOOPBACK = "127.0.0.1"
_PATIENCE = timedelta(minutes=10)  # for the slowest member: rank 0 writes a checkpoint meanwhile


@dataclass(frozen=True)
class Group:
    """The place of this process among `world` that train together."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """The rows of this process out of `total`: contiguous, disjoint, together all; whole pairs."""
        share = -(-total // (2 * self.world)) * 2
        return slice(min(total, self.rank * share), min(total, (self.rank + 1) * share))

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the group of a tensor that each process has."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes in the order of `part`, on the CPU of each."""
        if self.world == 1:
            return rows
        parts: list[Tensor] = [rows] * self.world
        dist.all_gather_object(parts, rows)
        return torch.cat([part for part in parts if len(part)]) if any(len(part) for part in parts) else rows

    def agree(self, network: nn.Module) -> None:
        """Give all processes the buffers of rank 0: statistics of batch norm that are not synchronised differ."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def share(self, network: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
        """The network as the loop calls it: gradients are averaged over the group."""
        if self.world == 1:
            return network
        assert isinstance(network, nn.Module)
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices)

    def without_gradient_sync(self, shared: Callable[..., Tensor], yes: bool) -> AbstractContextManager[None]:
        """Within, and when `yes`, gradients add up in this process only: more parts of the batch are to come."""
        if not yes or self.world == 1:
            return nullcontext()
        assert isinstance(shared, DistributedDataParallel)
        return shared.no_sync()


ALONE = Group()


@contextmanager
def joined(rank: int, world: int, address: str, device: torch.device, name: str = "group") -> Iterator[Group]:
    """Form the group; `address` is tcp://host:port where rank 0 listens. gloo on CPUs, nccl on GPUs.

    `name` is that of the training: the same processes may form one group after another.

    Raises ConnectionError when the port is taken.
    """
    if world == 1:
        yield ALONE
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    meeting = _meeting(rank, world, address, name)
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=_PATIENCE, **meeting)
    try:
        yield Group(rank, world)
    finally:
        dist.destroy_process_group()


def _meeting(rank: int, world: int, address: str, name: str) -> dict[str, Any]:
    """Where the processes meet, as an argument of `init_process_group`.

    By itself torch listens on every interface of the machine, and gloo on the one of the machine's name. Neither asks
    for a password, so processes that meet on the loopback interface are kept there.
    """
    place = urlsplit(address)
    if "TORCHELASTIC_USE_AGENT_STORE" in os.environ and place.hostname and place.port:
        # torchrun listens itself, and its store outlives a group: without names of its own, the next group would read
        # the addresses of the last one and wait for connections that nobody accepts.
        agent = TCPStore(place.hostname, place.port, world, is_master=False, timeout=_PATIENCE)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return {"store": PrefixStore(f"{name}/{attempt}", agent)}
    if place.hostname != _LOOPBACK or place.port is None:
        return {"init_method": address}  # several machines
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    listening: dict[str, Any] = {}
    if rank == 0:
        try:
            listening = {"is_master": True, "master_listen_fd": socket.create_server((_LOOPBACK, place.port)).detach()}
        except OSError as error:
            raise ConnectionError(f"{address}: nobody can listen there ({error.strerror})") from error
    return {"store": TCPStore(_LOOPBACK, place.port, world, timeout=_PATIENCE, **listening)}


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the group; each process adds to the sum of all, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the mean and variance of the batches of all processes; same names and buffers as batch norm.

    torch's own does this on GPUs only. Two passes (mean, then squares about it) keep float32 from cancelling.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        full = x.float()
        sums = torch.cat([full.sum((0, 2, 3)), full.new_full((1,), full.numel() / full.shape[1])])
        sums = _Sum.apply(sums)
        count = sums[-1].detach()
        mean = (sums[:-1] / count).view(1, -1, 1, 1)
        variance = (_Sum.apply((full - mean).square().sum((0, 2, 3))) / count).view(1, -1, 1, 1)
        self._remember(mean.detach().flatten(), variance.detach().flatten() * count / (count - 1))
        scale = self.weight.view(1, -1, 1, 1) * torch.rsqrt(variance + self.eps)
        return ((full - mean) * scale + self.bias.view(1, -1, 1, 1)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def synchronise_batch_norm(network: nn.Module) -> None:
    """Put `SyncBatchNorm2d` in the place of each batch norm, with the same parameters and buffers."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                synchronised = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
                synchronised.__dict__.update(child.__dict__)
                setattr(parent, name, synchronised)
