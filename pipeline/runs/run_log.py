"""What a run says of itself, as JSON lines in `reports/logs/<what>-<run_id>.jsonl`: one file a run, one line a message.

A line holds utc, level, logger, message, exception, host, pid, run_id, unit and tile_id: the last two are null outside
units of work, `tile_id` also within units that are no sky tile. The line on how a unit ended has outcome, seconds,
objects and worker as well. What units say on workers, in other processes and on other machines, comes back with their
outcomes (`capture_logs`, `log_result`).

Nothing changes at the terminal, secrets are taken out, and a full disk costs lines but never the run.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.core.redaction import redact
from pipeline.core.versions import software_versions

if TYPE_CHECKING:
    from pipeline.config.workspace import Workspace  # it names the settings of the workers, which gather what units say

_log = logging.getLogger(__name__)

PACKAGES = ("flows", "pipeline", "models", "catalogs")
_MOST_LINES = 50  # kept of what one unit says: they travel with its outcome
_MOST_TEXT = 4000  # characters of a message or an exception


@dataclass(frozen=True)
class LogRecord:
    """One message as plain values, to travel between processes; `utc` in ISO 8601, by the clock of its host."""

    utc: str
    level: str
    logger: str
    message: str
    exception: str
    host: str
    pid: int


class FinishedTask(Protocol):
    """What is logged of a unit of work that has ended; `error` is empty when it went well."""

    @property
    def name(self) -> str: ...
    @property
    def error(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def worker(self) -> str: ...
    @property
    def said(self) -> Sequence[LogRecord]: ...


class RunLog:
    """The log of a run, written as long as its context lasts; `path` is its file.

    Writing raises nothing: lines that the disk does not take are counted, and the number is said at the end.
    """

    def __init__(self, path: Path, run: str, run_id: str) -> None:
        self.path, self._run, self._run_id = path, run, run_id
        self._file: int | None = None
        self._lost, self._why, self._torn = 0, "", False
        self._lock = threading.Lock()
        self._around = ExitStack()

    def __enter__(self) -> RunLog:
        self._around.enter_context(_listening())
        token = _run_log.set(self)
        self._around.callback(_run_log.reset, token)
        versions = ", ".join(f"{name} {number}" for name, number in software_versions().items())
        log_only(logging.INFO, f"{self._run} begins: {versions}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is None:
            log_only(logging.INFO, f"{self._run} ends")
        else:
            log_only(logging.ERROR, f"{self._run} ends with an error", "".join(traceback.format_exception(error)))
        self._around.close()
        if self._file is not None:
            os.close(self._file)
        if self._lost:
            _log.warning("%d lines could not be written to the log %s (%s)", self._lost, self.path, self._why)

    def write(self, said: LogRecord, unit: str | None = None, tile_id: str | None = None, **more: Any) -> None:
        """Add one line; raises nothing."""
        values = {**asdict(said), "run_id": self._run_id, "unit": unit, "tile_id": tile_id, **more}
        text = json.dumps(values, ensure_ascii=False) + "\n"
        self._append(text.encode("utf-8", "backslashreplace"))  # a lone surrogate as JSON escapes it

    def _append(self, line: bytes) -> None:
        with self._lock:
            whole = b"\n" + line if self._torn else line  # what is left of a line stands alone
            try:
                if self._file is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                written = os.write(self._file, whole)
            except OSError as error:
                self._lost, self._why = self._lost + 1, str(error.strerror)
                return
            self._torn = written < len(whole)
            if self._torn:
                self._lost, self._why = self._lost + 1, "the disk is full"


def logging_to(workspace: Workspace, what: str, run_id: str) -> RunLog:
    """A context in which everything that our packages say at INFO and above goes to the log of a run.

    `what` is the kind of run: survey, train, retrain. An error that leaves the context is the last line. Within the
    context of another log, lines go to the inner one alone.
    """
    return RunLog(log_path(workspace, what, run_id), f"{what} {run_id}", run_id)


def log_path(workspace: Workspace, what: str, run_id: str) -> Path:
    """Where the log of a run lies."""
    return workspace.reports / "logs" / f"{what}-{run_id}.jsonl"


def log_only(level: int, message: str, exception: str = "") -> None:
    """Write to the log of the run, if there is one, what the person at the terminal is told in another way."""
    log = _run_log.get()
    if log is not None:
        log.write(_said(level, _log.name, message, exception))


def log_result(ended: FinishedTask, *, tile: bool = False, objects: int | None = None) -> None:
    """Write what a unit said, and how it ended, to the log of the run, if there is one.

    `tile` says that the unit is a sky tile, and `objects` how many it had. Seconds and worker are null where the worker
    died.
    """
    log = _run_log.get()
    if log is None:
        return
    tile_id = ended.name if tile else None
    for said in ended.said:
        log.write(said, ended.name, tile_id)
    outcome, level = ("failed", logging.ERROR) if ended.error else ("done", logging.INFO)
    log.write(
        _said(level, _log.name, f"{ended.name} {outcome}", ended.error),
        ended.name,
        tile_id,
        outcome=outcome,
        seconds=ended.seconds if ended.worker else None,
        objects=objects,
        worker=ended.worker or None,
    )


class LogCapture:
    """What a unit says while it runs: the last lines of it."""

    def __init__(self) -> None:
        self._last: deque[LogRecord] = deque(maxlen=_MOST_LINES)
        self._all = 0

    def add(self, said: LogRecord) -> None:
        self._last.append(said)
        self._all += 1

    @property
    def said(self) -> tuple[LogRecord, ...]:
        """The last lines, after one that tells how many came before."""
        more = self._all - len(self._last)
        before = [_said(logging.INFO, _log.name, f"{more} earlier lines of this unit were not kept")] if more else []
        return (*before, *self._last)


@contextmanager
def capture_logs() -> Iterator[LogCapture]:
    """Gather what our packages say at INFO and above in this thread, instead of writing it to the log of the run."""
    lines = LogCapture()
    token = _gathered.set(lines)
    try:
        with _listening():
            yield lines
    finally:
        _gathered.reset(token)


_run_log: ContextVar[RunLog | None] = ContextVar("run_log", default=None)
_gathered: ContextVar[LogCapture | None] = ContextVar("gathered", default=None)


class _CaptureHandler(logging.Handler):
    """Hears every record of our packages and passes it to whoever listens in this context."""

    def emit(self, record: logging.LogRecord) -> None:
        lines, log = _gathered.get(), _run_log.get()
        if lines is None and log is None:
            return
        said = _said(record.levelno, record.name, _message(record), _exception(record), record.created)
        if lines is not None:
            lines.add(said)
        elif log is not None:
            log.write(said)


class _ForwardHandler(logging.Handler):
    """Passes records on to where they went before, from the level on that was shown before."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().callHandlers(record)


_EAR = _CaptureHandler(logging.INFO)
_listeners = 0
_listeners_lock = threading.Lock()
_as_it_was: list[tuple[logging.Logger, int, bool, logging.Handler]] = []


@contextmanager
def _listening() -> Iterator[None]:
    """Have our packages' loggers pass INFO to `_EAR`, and to everybody else what they passed before."""
    global _listeners
    with _listeners_lock:
        _listeners += 1
        if _listeners == 1:
            _as_it_was.extend(_listen_to(logging.getLogger(package)) for package in PACKAGES)
    try:
        yield
    finally:
        with _listeners_lock:
            _listeners -= 1
            if _listeners == 0:
                while _as_it_was:
                    _leave_alone(*_as_it_was.pop())


def _listen_to(logger: logging.Logger) -> tuple[logging.Logger, int, bool, logging.Handler]:
    shown = logger.getEffectiveLevel()
    before = (logger, logger.level, logger.propagate, _ForwardHandler(shown))
    if logger.propagate:
        logger.addHandler(before[-1])
    logger.setLevel(min(shown, logging.INFO))
    logger.propagate = False
    logger.addHandler(_EAR)
    return before


def _leave_alone(logger: logging.Logger, level: int, propagate: bool, onward: logging.Handler) -> None:
    logger.removeHandler(_EAR)
    logger.removeHandler(onward)
    logger.propagate = propagate
    logger.setLevel(level)


def _said(level: int, logger: str, message: str, exception: str = "", created: float | None = None) -> LogRecord:
    when = datetime.fromtimestamp(created, UTC) if created else datetime.now(UTC)
    message, exception = redact(message), redact(exception)
    return LogRecord(
        utc=when.isoformat(timespec="milliseconds"),
        level=logging.getLevelName(level),
        logger=logger,
        message=message[:_MOST_TEXT],
        exception=exception[-_MOST_TEXT:],  # of a traceback the end tells most
        host=socket.gethostname(),
        pid=os.getpid(),
    )


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # its arguments do not fit
        return f"{record.msg} {record.args}"


def _exception(record: logging.LogRecord) -> str:
    return "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
