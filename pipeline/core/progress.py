"""How far long work is: the work says so, whoever shows it listens. Nobody listens unless asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

Step = Callable[[int, str], None]
"""Called with how many more units are done and a few words on how it goes."""

Display = Callable[[str, int], AbstractContextManager[Step]]
"""Called with a title and a total; shows progress as long as the context lasts."""


def ignore(done: int, note: str) -> None:
    """The step of a display that nobody watches."""


_display: ContextVar[Display | None] = ContextVar("display", default=None)


def track(title: str, total: int) -> AbstractContextManager[Step]:
    """Announce `total` units of work; the context gives the function to call as they are done."""
    display = _display.get()
    return display(title, total) if display else nullcontext(ignore)


def current_display() -> Display | None:
    """The display that shows progress at present; None when nobody watches."""
    return _display.get()


@contextmanager
def progress_display(display: Display) -> Iterator[None]:
    """Let `display` show all progress of the work done inside."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)
