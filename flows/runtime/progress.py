"""Progress of long work, kept by Prefect beside whatever shows it to the person at the terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from pipeline.core.progress import Display, Step, current_display, ignore, progress_display

_log = logging.getLogger(__name__)

_SECONDS = 5.0  # between two reports to the server: each costs it 20 ms and a row


def kept_by_prefect() -> AbstractContextManager[None]:
    """Keep the progress of the work done inside as progress artifacts of the task that runs."""
    return progress_display(_kept(current_display()))


def _kept(beside: Display | None) -> Display:
    @contextmanager
    def display(title: str, total: int) -> Iterator[Step]:
        artifact = create_progress_artifact(0.0, description=title)
        done, last, kept = 0, time.monotonic(), True

        def keep() -> None:
            nonlocal kept
            if not kept:
                return
            try:
                update_progress_artifact(artifact, progress=100.0 * done / max(1, total))  # type: ignore[arg-type]
            except HTTPError as error:  # the work is worth more than its progress, and hours may be left of it
                _log.warning("Prefect's server went away (%s); the work goes on, its progress is no longer kept", error)
                kept = False

        with beside(title, total) if beside else nullcontext(ignore) as step:

            def both(more: int, note: str) -> None:
                nonlocal done, last
                step(more, note)
                done += more
                if time.monotonic() - last >= _SECONDS:
                    last = time.monotonic()
                    keep()

            yield both
        keep()

    return display
