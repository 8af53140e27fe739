"""Units of work for the tests of the workers; in a module, because functions sent to workers cannot live in a test."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.execution.process_group import Rank, rank_from_environment


@dataclass(frozen=True)
class Sum:
    """A job: what to do, and the folder in which every try leaves a file."""

    number: int
    folder: str
    what: str = ""
    fails: int = 0

    @property
    def name(self) -> str:
        return f"job-{self.number}"

    def tries(self) -> int:
        return len(list(Path(self.folder).glob(f"{self.name}.*")))


def work(job: Sum) -> int:
    """Twice the number, unless the job says otherwise."""
    tried = job.tries()
    (Path(job.folder) / f"{job.name}.{time.monotonic_ns()}").touch()
    if job.what == "bug":
        raise ZeroDivisionError("one divided by nothing")
    if job.what == "disk" and tried < job.fails:
        raise OSError(errno.EIO, "the disk hiccups")
    if job.what == "gone":
        raise FileNotFoundError(errno.ENOENT, "no such file", "x")
    if job.what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.what == "last words":  # it ends well, and its worker dies before or as the result is fetched
        threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGKILL)).start()
    if job.what in ("slow", "long"):
        time.sleep(0.3 if job.what == "slow" else 3)
    if job.what == "stuck":
        time.sleep(100)
    return 2 * job.number


def threads(job: Sum) -> tuple[int, int]:
    """Process id and torch's threads there."""
    import torch

    return os.getpid(), torch.get_num_threads()


@dataclass(frozen=True)
class Meeting:
    """A job of a group: what its second process does in each attempt; each process leaves a file with its pid."""

    folder: str
    attempts: tuple[str, ...] = ("",)
    name: str = "the meeting"

    def pids(self) -> list[list[int]]:
        """Process ids by attempt and rank."""
        found = [sorted(Path(self.folder).glob(f"{i}.*")) for i in range(len(self.attempts))]
        return [[int(path.read_text()) for path in paths] for paths in found]

    def enter(self, seat: Rank) -> str:
        """What this member does in this attempt; leaves its file."""
        attempt = len(list(Path(self.folder).glob(f"*.{seat.rank}")))
        (Path(self.folder) / f"{attempt}.{seat.rank}").write_text(str(os.getpid()))
        return self.attempts[attempt] if seat.rank == min(1, seat.world - 1) else ""


def meet(job: Meeting, seat: Rank) -> dict[str, object]:
    """Form a process group, add up the ranks, and wait for each other, unless the job says otherwise."""
    import torch
    from torch import distributed

    what = job.enter(seat)
    if what == "done early":  # and its worker dies when its result is in
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return {}
    if what == "stay":  # away from the others, who wait
        time.sleep(100)
    if what == "port taken":
        raise distributed.DistNetworkError("the address is already in use")
    group = f"tcp://{seat.address}:{seat.port}"
    distributed.init_process_group("gloo", init_method=group, rank=seat.rank, world_size=seat.world)
    total = torch.tensor([seat.rank + 1])
    distributed.all_reduce(total)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what.startswith("refuse"):
        if what == "refuse and leave":  # which the others notice before anyone knows why
            distributed.destroy_process_group()
        raise UserError("the second member refuses")
    distributed.barrier()
    distributed.destroy_process_group()
    return {"total": int(total), "pid": os.getpid(), "seat": seat, "threads": torch.get_num_threads()}


if __name__ == "__main__":  # as torchrun starts it
    seat = rank_from_environment()
    assert seat is not None
    meet(Meeting(os.environ["FOLDER"]), seat)
