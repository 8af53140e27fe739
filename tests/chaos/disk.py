"""A disk that is full: a small tmpfs in a mount namespace of its own, which needs no root and leaves no mount behind.

The namespace lives as long as one process, which does nothing else; the disk is seen from outside below /proc.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.processes import Way, ended_at_last, said, wait
from tests.chaos.results import Result
from tests.chaos.stage import Stage

_MEGABYTES = 64
_WORDS = ("No space left on device", "free some space")  # of the story, which has no words of its own; of the command


class NoSmallDisk(Exception):
    """This system lets us mount nothing, not even for ourselves."""


@dataclass(frozen=True)
class SmallDisk:
    """A mounted tmpfs: at `inside` for processes of the namespace of process `pid`, at `outside` for all others."""

    pid: int
    inside: Path

    @property
    def outside(self) -> Path:
        return Path(f"/proc/{self.pid}/root{self.inside}")

    def leave(self, free: int) -> None:
        """Fill the disk, so that so many bytes are free."""
        ballast, seen = self.outside / "ballast", os.statvfs(self.outside)
        with ballast.open("ab") as file:
            size = file.tell() + seen.f_bavail * seen.f_frsize - free
            file.truncate(min(size, file.tell()))
            if size > 0:
                os.posix_fallocate(file.fileno(), 0, size)

    def clear(self) -> None:
        """Take away what fills the disk."""
        (self.outside / "ballast").unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mount a small disk at a folder, for its own namespace only.

    Raises
    ------
    NoSmallDisk : the system allows neither a mount nor a user namespace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = f'mount -t tmpfs -o size={_MEGABYTES}m,mode=700 chaos "{folder}" && echo mounted && exec sleep 3600'
    told = []
    for namespaces in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        holder = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert holder.stdout is not None and holder.stderr is not None
            if holder.stdout.readline().strip() == "mounted":
                yield SmallDisk(holder.pid, folder)
                return
            told.append(holder.stderr.read().strip())
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.communicate()
    raise NoSmallDisk(f"no tmpfs could be mounted: {'; '.join(told)}")


def inside(path: Path) -> tuple[int, Path]:
    """The process in whose mount namespace a path lies, and the path as it is there; 0 for a path of ours."""
    found = re.fullmatch(r"/proc/(\d+)/root(/.*)", str(path))
    return (int(found[1]), Path(found[2])) if found else (0, path)


def entering(namespace: int) -> list[str]:
    """What stands before a command to run it in the mount namespace of a process; nothing for 0."""
    if not namespace:
        return []
    user = [f"--user=/proc/{namespace}/ns/user", "--preserve-credentials"] if _of_another_user(namespace) else []
    return ["nsenter", *user, f"--mount=/proc/{namespace}/ns/mnt"]


def enter(namespace: int) -> None:
    """Go into the mount namespace of a process; only a process with a single thread can."""
    library = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    for kind in ["user", "mnt"] if _of_another_user(namespace) else ["mnt"]:
        handle = os.open(f"/proc/{namespace}/ns/{kind}", os.O_RDONLY)
        if library.setns(handle, 0) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {kind} of process {namespace}")
        os.close(handle)


def _of_another_user(namespace: int) -> bool:
    """Whether a process lives in a user namespace of its own."""
    return Path(f"/proc/{namespace}/ns/user").readlink() != Path("/proc/self/ns/user").readlink()


def disk_full(stage: Stage, way: Way, disk: SmallDisk, name: str, free: int) -> Result:
    """Survey with so many bytes free, until the disk is full; then with room."""
    workspace = stage.fresh(disk.outside / name, half=True)
    disk.leave(free)
    result = Result(f"{way.name}, disk full")
    with ended_at_last(way.start(workspace)) as child:
        status = wait(child)
    result.note(workspace, child, f"{free >> 10} KiB free")
    if status != 0 and not any(words in said(child) for words in _WORDS):
        result.wrong.append(f"the error does not say what to do: {said(child)[-600:]}")
    disk.clear()
    return result.finish(stage, way, workspace)


def size_of(root: Path) -> int:
    """Bytes that the catalogue of a workspace takes on a disk of 4 KiB pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in (root / "catalog").rglob("*") if path.is_file())
