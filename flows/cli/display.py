"""What the command line shows: progress bars on the error stream, tables and JSON on the output."""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipeline.core.progress import Step

_errors = Console(stderr=True)
_LINE_SECONDS = 10.0  # between two lines of progress if there is no terminal
_PLAIN_WIDTH = 100_000  # of an output that is no terminal: never cut or fold a row


def progress_bar(title: str, total: int) -> AbstractContextManager[Step]:
    """A bar on the error stream; where that is no terminal, a line now and then."""
    return _bar(title, total) if _errors.is_terminal else _lines(title, total)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Step]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_errors) as progress:
        bar = progress.add_task(title, total=total, note="")
        yield lambda done, note: progress.update(bar, advance=done, note=note)


@contextmanager
def _lines(title: str, total: int) -> Iterator[Step]:
    done, last = 0, -_LINE_SECONDS

    def step(more: int, note: str) -> None:
        nonlocal done, last
        done += more
        if done >= total or time.monotonic() - last >= _LINE_SECONDS:
            last = time.monotonic()
            print_message(f"{title}: {done} of {total}" + (f", {note}" if note else ""))

    yield step


def print_message(text: str) -> None:
    """A line for the person who waits, on the error stream, so that the output stays clean for scripts."""
    _errors.print(visible(text), highlight=False, markup=False, soft_wrap=True)


def visible(text: str) -> str:
    """The text without characters that a terminal would obey: names of files may hold them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def rows_of(table: pa.Table) -> list[tuple[Any, ...]]:
    """Rows of a table as plain values; a float32 0.9822 is 0.9822, not 0.98220002651."""
    columns = [
        [None if v is None else float(str(np.float32(v))) for v in column.to_pylist()]
        if pa.types.is_float32(column.type)
        else column.to_pylist()
        for column in table.columns
    ]
    return list(zip(*columns, strict=True))


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """An aligned table on the output."""
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    table = Table(*header, title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*[Text(visible(_text(value))) for value in row])  # no markup: names may hold brackets
    console.print(table)


def print_csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Comma-separated values on the output; nothing for a null."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def print_json(value: Any) -> None:
    """JSON on the output; what JSON has no word for (NaN, infinity) becomes null."""
    print(json.dumps(_plain(value), indent=1, default=str))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.10g}"  # a position keeps its milliarcseconds
    return "" if value is None else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
