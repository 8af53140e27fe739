"""The command line: common options, and errors in words. The commands stand in `flows.commands`.

Nothing heavy is imported here, so that help, `config` and `query` start at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from flows.commands import (
    audit,
    benchmark,
    catalogue,
    demo,
    explain,
    export,
    galaxy10,
    inputs,
    labels,
    quarantine,
    release,
    settings,
    sky,
    survey,
    training,
)
from flows.commands.common import Subparsers

_TOPICS = (
    demo,
    sky,
    galaxy10,
    training,
    benchmark,
    survey,
    inputs,
    quarantine,
    catalogue,
    explain,
    labels,
    release,
    audit,
    export,
    settings,
)

EXIT_ERROR = 1  # something the user can put right
EXIT_INTERRUPTED = 130
_STATUSES = (
    "exit status: 0 done, or nothing to do; 1 an error that you can put right; 2 a wrong command line; 3 some units "
    "failed, the rest is done; 4 done, but more is in quarantine than survey.alarm allows; 5 a release is damaged or "
    "inconsistent; 130 interrupted"
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
        print(f"morphcat: {_in_words(error)}", file=sys.stderr)
        return EXIT_ERROR


def _set_logging(debug: bool) -> None:
    """Our own logs in full with --debug; of others only what went wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("distributed").setLevel(logging.WARNING if debug else logging.ERROR)
    for package in ("flows", "pipeline", "models", "catalogs"):
        logging.getLogger(package).setLevel(logging.DEBUG if debug else logging.WARNING)


def _in_words(error: Exception) -> str:
    from catalogs.errors import CatalogError
    from models.errors import ModelError
    from pipeline.errors import UserError

    if isinstance(error, (UserError, CatalogError, ModelError)):
        return str(error)
    if isinstance(error, PermissionError):
        return f"{error.filename}: {error.strerror}; choose a workspace you can write, with --workspace DIR"
    if isinstance(error, OSError):
        return f"{error}"
    return f"{type(error).__name__}: {error} (a bug? run again with --debug for the traceback)"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="morphcat",
        description="Galaxy-morphology catalogues from sky tiles of the DESI Legacy Imaging Surveys.",
        epilog=_STATUSES,
    )
    parser.add_argument("--version", action="version", version=f"morphcat {version('morphcat')}")
    _common(parser, "")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for topic in _TOPICS:
        topic.add(subparsers)
    for command in _commands(subparsers):
        _common(command, "_after")
    arguments = parser.parse_args(argv)
    arguments.workspace = Path(arguments.workspace_after or arguments.workspace or "morphcat-workspace")
    arguments.set = [*arguments.set, *arguments.set_after]
    arguments.json = arguments.json or arguments.json_after
    arguments.debug = arguments.debug or arguments.debug_after
    return arguments


def _commands(subparsers: Subparsers) -> Iterator[argparse.ArgumentParser]:
    """Parsers of all commands; of a command that has commands of its own, those of these."""
    for parser in dict.fromkeys(subparsers.choices.values()):
        below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if below:
            yield from _commands(below[0])
        else:
            yield parser


def _common(parser: argparse.ArgumentParser, suffix: str) -> None:
    """Options that may stand before or after the command; `suffix` keeps the two apart until both are read."""
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
