"""The log of a run, as JSON lines in `reports/logs/<what>-<run_id>.jsonl`: one file a run, one line a message.

A line holds utc, level, logger, message, exception, host, pid, run_id, unit and tile_id: the last two are null outside
units of work, `tile_id` also within units that are no sky tile. The line on how a unit result has outcome, seconds,
objects and worker as well. What units log on workers, in other processes and on other machines, comes back with their
results (`capture_logs`, `log_result`).

What is printed at the terminal stays the same, secrets are removed, and a full disk costs lines but never the run.
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
    from pipeline.config.workspace import Workspace  # it names the settings of the workers, which capture logs

_log = logging.getLogger(__name__)

PACKAGES = ("flows", "pipeline", "models", "catalogs")
_MOST_LINES = 50  # kept of what one unit logs: they travel with its result
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
    """What is logged of a finished unit of work; `error` is empty when it succeeded."""

    @property
    def name(self) -> str: ...
    @property
    def error(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def worker(self) -> str: ...
    @property
    def logs(self) -> Sequence[LogRecord]: ...


class RunLog:
    """The log of a run, written as long as its context lasts; `path` is its file.

    Writing raises nothing: lines that the disk does not take are counted, and their number is logged at the end.
    """

    def __init__(self, path: Path, run: str, run_id: str) -> None:
        self.path, self._run, self._run_id = path, run, run_id
        self._file: int | None = None
        self._lost, self._why, self._torn = 0, "", False
        self._lock = threading.Lock()
        self._around = ExitStack()

    def __enter__(self) -> RunLog:
        self._around.enter_context(_capturing())
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

    def write(self, record: LogRecord, unit: str | None = None, tile_id: str | None = None, **more: Any) -> None:
        """Add one line; raises nothing."""
        values = {**asdict(record), "run_id": self._run_id, "unit": unit, "tile_id": tile_id, **more}
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
    """A context in which everything that our packages log at INFO and above goes to the log of a run.

    `what` is the kind of run: survey, train, retrain. An error that leaves the context is the last line. Within the
    context of another log, lines go to the inner one alone.
    """
    return RunLog(log_path(workspace, what, run_id), f"{what} {run_id}", run_id)


def log_path(workspace: Workspace, what: str, run_id: str) -> Path:
    """The path of the log of a run."""
    return workspace.reports / "logs" / f"{what}-{run_id}.jsonl"


def log_only(level: int, message: str, exception: str = "") -> None:
    """Write to the log of the run, if there is one, what the terminal shows in another way."""
    log = _run_log.get()
    if log is not None:
        log.write(_record(level, _log.name, message, exception))


def log_result(result: FinishedTask, *, tile: bool = False, objects: int | None = None) -> None:
    """Write the logs of a unit, and how it ended, to the log of the run, if there is one.

    `tile` says that the unit is a sky tile, and `objects` how many it had. Seconds and worker are null where the worker
    died.
    """
    log = _run_log.get()
    if log is None:
        return
    tile_id = result.name if tile else None
    for record in result.logs:
        log.write(record, result.name, tile_id)
    outcome, level = ("failed", logging.ERROR) if result.error else ("done", logging.INFO)
    log.write(
        _record(level, _log.name, f"{result.name} {outcome}", result.error),
        result.name,
        tile_id,
        outcome=outcome,
        seconds=result.seconds if result.worker else None,
        objects=objects,
        worker=result.worker or None,
    )


class LogCapture:
    """The last records that a unit logs."""

    def __init__(self) -> None:
        self._last: deque[LogRecord] = deque(maxlen=_MOST_LINES)
        self._all = 0

    def add(self, record: LogRecord) -> None:
        self._last.append(record)
        self._all += 1

    @property
    def records(self) -> tuple[LogRecord, ...]:
        """The last records, after one that says how many came before."""
        more = self._all - len(self._last)
        before = [_record(logging.INFO, _log.name, f"{more} earlier lines of this unit were not kept")] if more else []
        return (*before, *self._last)


@contextmanager
def capture_logs() -> Iterator[LogCapture]:
    """Keep what our packages log at INFO and above in this thread, instead of writing it to the log of the run."""
    capture = LogCapture()
    token = _capture.set(capture)
    try:
        with _capturing():
            yield capture
    finally:
        _capture.reset(token)


_run_log: ContextVar[RunLog | None] = ContextVar("run_log", default=None)
_capture: ContextVar[LogCapture | None] = ContextVar("capture", default=None)


class _CaptureHandler(logging.Handler):
    """Passes every record of our packages to the capture, or else the run log, of this context."""

    def emit(self, record: logging.LogRecord) -> None:
        capture, log = _capture.get(), _run_log.get()
        if capture is None and log is None:
            return
        ours = _record(record.levelno, record.name, _message(record), _exception(record), record.created)
        if capture is not None:
            capture.add(ours)
        elif log is not None:
            log.write(ours)


class _ForwardHandler(logging.Handler):
    """Passes records on to the handlers of the root logger, from the level that was in force before."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().callHandlers(record)


_CAPTURE_HANDLER = _CaptureHandler(logging.INFO)
_users = 0
_users_lock = threading.Lock()
_attached: list[tuple[logging.Logger, int, bool, logging.Handler]] = []


@contextmanager
def _capturing() -> Iterator[None]:
    """Let our packages log INFO to `_CAPTURE_HANDLER`, and to all other handlers what they logged before."""
    global _users
    with _users_lock:
        _users += 1
        if _users == 1:
            _attached.extend(_attach(logging.getLogger(package)) for package in PACKAGES)
    try:
        yield
    finally:
        with _users_lock:
            _users -= 1
            if _users == 0:
                while _attached:
                    _detach(*_attached.pop())


def _attach(logger: logging.Logger) -> tuple[logging.Logger, int, bool, logging.Handler]:
    shown = logger.getEffectiveLevel()
    before = (logger, logger.level, logger.propagate, _ForwardHandler(shown))
    if logger.propagate:
        logger.addHandler(before[-1])
    logger.setLevel(min(shown, logging.INFO))
    logger.propagate = False
    logger.addHandler(_CAPTURE_HANDLER)
    return before


def _detach(logger: logging.Logger, level: int, propagate: bool, forward: logging.Handler) -> None:
    logger.removeHandler(_CAPTURE_HANDLER)
    logger.removeHandler(forward)
    logger.propagate = propagate
    logger.setLevel(level)


def _record(level: int, logger: str, message: str, exception: str = "", created: float | None = None) -> LogRecord:
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
