"""Units of work for the tests of the workers; in a module, because functions sent to workers can not live in a test."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path


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
    if job.what == "slow":
        time.sleep(0.3)
    return 2 * job.number


def threads(job: Sum) -> tuple[int, int]:
    """Process id and torch's threads there."""
    import torch

    return os.getpid(), torch.get_num_threads()
