"""An end for units that take too long: the process that runs one ends itself.

A thread cannot be stopped from outside, and code in C may hold the interpreter; so a watchdog of the C library's
threads ends the process and leaves the stack of every thread on the error stream, where the worker's log is. Who
started the process (Dask's nanny) sees it end and starts another. Knows nothing of units, nor of Dask.
"""

from __future__ import annotations

import faulthandler
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_numbers = itertools.count()
_ends: dict[int, float] = {}  # when each block that is under way must be over, on the monotonic clock


@contextmanager
def process_ends_after(seconds: float) -> Iterator[None]:
    """End this process, with status 1, unless the block is left within so many seconds; 0: no limit.

    Blocks of several threads may be under way: there is one watchdog for a process, set to the earliest end.
    """
    if not seconds:
        yield
        return
    number = next(_numbers)
    with _lock:
        _ends[number] = time.monotonic() + seconds
        _set_watchdog()
    try:
        yield
    finally:
        with _lock:
            del _ends[number]
            _set_watchdog()


def _set_watchdog() -> None:
    if _ends:
        left = max(0.001, min(_ends.values()) - time.monotonic())
        faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__ or sys.stderr)
    else:
        faulthandler.cancel_dump_traceback_later()
