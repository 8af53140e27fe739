"""The command line: common options, and errors as messages. The commands stand in `flows.cli`.

Nothing heavy is imported here, so that help, `config` and `query` start at once.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows.cli import (
    audit,
    benchmark,
    catalogue,
    demo,
    drift,
    explain,
    export,
    galaxy10,
    inputs,
    labels,
    models,
    plan,
    quarantine,
    release,
    retrain,
    serve,
    settings,
    sky,
    status,
    survey,
    training,
    workers,
)
from flows.cli.common import Subparsers
from flows.cli.display import visible
from pipeline.core.redaction import redact

_TOPICS = (
    demo,
    sky,
    galaxy10,
    training,
    models,
    benchmark,
    plan,
    survey,
    inputs,
    quarantine,
    catalogue,
    explain,
    labels,
    release,
    audit,
    drift,
    export,
    retrain,
    serve,
    status,
    settings,
    workers,
)

EXIT_ERROR = 1  # something the user can put right
EXIT_INTERRUPTED = 130
_POSITIONS = ("", "_after", "_verb")  # of common options: before the command, after it, after its verb
_STATUSES = (
    "exit status: 0 done, or nothing to do; 1 an error that you can put right; 2 a wrong command line; 3 some units "
    "failed, the rest is done; 4 done, but more is in quarantine than survey.alarm allows, or status has an alarm; "
    "5 a release is damaged or "
    "inconsistent; 6 the gate refused a model; 130 interrupted"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, as `_STATUSES` says."""
    arguments = _parse(argv)
    _set_logging(arguments.debug)
    try:
        return int(arguments.run(arguments) or 0)
    except KeyboardInterrupt:
        print("interrupted; what is committed stays, run again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.debug:
            raise
        print(f"morphcat: {_safe(_message_of(error))}", file=sys.stderr)
        return EXIT_ERROR


def _set_logging(debug: bool) -> None:
    """Our own logs in full with --debug; of others only what went wrong."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(_SafeFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[terminal])
    logging.getLogger("distributed").setLevel(logging.WARNING if debug else logging.ERROR)
    for package in ("flows", "pipeline", "models", "catalogs"):
        logging.getLogger(package).setLevel(logging.DEBUG if debug else logging.WARNING)


class _SafeFormatter(logging.Formatter):
    """Messages as `_safe` leaves them."""

    def format(self, record: logging.LogRecord) -> str:
        return _safe(super().format(record))


def _safe(text: str) -> str:
    """Without secrets, for what is printed is often kept; and without what a terminal would obey."""
    return visible(redact(text))


def _message_of(error: Exception) -> str:
    from catalogs.errors import CatalogError
    from models.errors import ModelError
    from pipeline.core.errors import UserError

    if isinstance(error, (UserError, CatalogError, ModelError)):
        return str(error)
    if isinstance(error, PermissionError):
        return f"{error.filename}: {error.strerror}; choose a workspace you can write, with --workspace DIR"
    if isinstance(error, OSError):
        return f"{error}" + ("; free some space and run again, what is committed stays" if _is_full(error) else "")
    if _is_lost_server(error):
        return (
            f"Prefect's server does not answer ({error}); what is committed stays: start the server, or unset "
            "PREFECT_API_URL for a temporary one, and run again"
        )
    return f"{type(error).__name__}: {error} (a bug? run again with --debug for the traceback)"


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_lost_server(error: Exception) -> bool:
    """Whether a flow lost its server, or never reached it. Commands that run no flow have not loaded httpx."""
    httpx = sys.modules.get("httpx")
    lost = httpx is not None and isinstance(error, httpx.TransportError)
    return lost or str(error).startswith("Failed to reach API at")  # Prefect's RuntimeError before a flow begins


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="morphcat",
        description="Galaxy-morphology catalogues from sky tiles of the DESI Legacy Imaging Surveys.",
        epilog=_STATUSES,
    )
    parser.add_argument("--version", action="version", version=f"morphcat {version('morphcat')}")
    _add_common_options(parser, "")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for topic in _TOPICS:
        topic.add(subparsers)
    for command, position in _commands(subparsers, _POSITIONS[1]):
        _add_common_options(command, position)
    arguments = parser.parse_args(argv)
    arguments.workspace = Path(next(_values_of(arguments, "workspace"), "morphcat-workspace"))
    arguments.set = [setting for settings in reversed([*_values_of(arguments, "set")]) for setting in settings]
    arguments.json = any(_values_of(arguments, "json"))
    arguments.debug = any(_values_of(arguments, "debug"))
    return arguments


def _values_of(arguments: argparse.Namespace, option: str) -> Iterator[Any]:
    """What is given for a common option, the last position first."""
    for position in reversed(_POSITIONS):
        if value := getattr(arguments, option + position, None):
            yield value


def _commands(subparsers: Subparsers, position: str) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Parsers of all commands, with the position where they stand; of a command that takes a verb, those of its verbs.

    Where the verb may be left out, the command itself is one too, and its verbs stand in a position of their own.
    """
    for parser in dict.fromkeys(subparsers.choices.values()):
        below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not below or not below[0].required:
            yield parser, position
        if below:
            yield from _commands(below[0], position if below[0].required else _POSITIONS[2])


def _add_common_options(parser: argparse.ArgumentParser, suffix: str) -> None:
    """Options that may stand in any of the places; `suffix` keeps them apart until all are read."""
    parser.add_argument(
        "--workspace", metavar="DIR", dest=f"workspace{suffix}", help="folder of everything (./morphcat-workspace)"
    )
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        dest=f"set{suffix}",
        help="change a setting for this call; repeatable",
    )
    parser.add_argument(
        "--json", action="store_true", dest=f"json{suffix}", help="print the result as JSON, for scripts"
    )
    parser.add_argument("--debug", action="store_true", dest=f"debug{suffix}", help="print tracebacks and logs")


if __name__ == "__main__":
    sys.exit(main())
