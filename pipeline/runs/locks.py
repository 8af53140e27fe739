"""One survey and one retraining of a workspace at a time, by locks that the system drops with their process.

A lock is `flock` on a hidden file. The file says who holds it, for people only: what counts is the lock, which a
killed run cannot leave behind. Between machines it holds where the file system passes `flock` on, as NFS does since
Linux 2.6.12.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pipeline.core.errors import UserError

_TICK = 0.2  # seconds between two tries
_GLANCE = 1.0  # seconds; `holder` takes a lock for an instant, which must not stop a run that starts just then


@dataclass(frozen=True)
class LockHolder:
    """Who holds a lock: a run, its process on a machine, and since when (ISO 8601, UTC)."""

    run_id: str
    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"{self.run_id}, process {self.pid} on {self.host}, since {self.since}"


class AlreadyRunning(UserError):
    """Another process does this already."""


def survey_lock(catalog: Path) -> Path:
    """The lock of surveys: it stands beside what they write."""
    return catalog / ".survey.lock"


def retraining_lock(models: Path) -> Path:
    """The lock of retrainings."""
    return models / ".retraining.lock"


@contextmanager
def exclusive(path: Path, run_id: str, what: str, *, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock; waits up to `wait` seconds for who has it. `what` names the work in the error.

    Raises
    ------
    Busy : another process holds it; the message names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _take(file, path, what, max(wait, _GLANCE))
        since = datetime.now(UTC).isoformat(timespec="seconds")
        _say(file, json.dumps(asdict(LockHolder(run_id, os.getpid(), socket.gethostname(), since))))
        try:
            yield
        finally:
            _say(file, "")


def holder(path: Path) -> LockHolder | None:
    """Who holds a lock now; None when nobody does."""
    if not path.is_file():
        return None
    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(path)
    return None


def _take(file: IO[str], path: Path, what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as busy:
            if time.monotonic() > end:
                raise AlreadyRunning(
                    f"another {what} of {path.parent} is under way ({_read(path)}); nothing has to be done twice: run "
                    "again when it has ended"
                ) from busy
        time.sleep(_TICK)


def _say(file: IO[str], text: str) -> None:
    """Replace what the file says; on a full disk it says nothing, the lock holds all the same."""
    with suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.pwrite(file.fileno(), text.encode(), 0)


def _read(path: Path) -> LockHolder:
    """What the file says; it is empty for an instant after the lock was taken."""
    try:
        return LockHolder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return LockHolder("an unknown run", 0, "an unknown machine", "just now")
