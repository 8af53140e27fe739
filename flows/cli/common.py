"""What commands share: the workspace, a place to write in, progress, Prefect's environment."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

from flows.cli.display import print_message, progress_bar
from flows.runtime import environment as prefect_home
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.core.errors import UserError
from pipeline.core.progress import progress_display

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def workspace_of(arguments: argparse.Namespace) -> Workspace:
    """The workspace that the options name, with `--set` applied."""
    return open_workspace(arguments.workspace, arguments.set)


def make_root(workspace: Workspace) -> None:
    """Create the workspace's folder, or say why it cannot be one."""
    try:
        workspace.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{workspace.root} cannot be a workspace ({error.strerror}); choose another with --workspace"
        ) from error
    if not os.access(workspace.root, os.W_OK | os.X_OK):
        raise UserError(f"{workspace.root} cannot be written; choose another workspace with --workspace DIR")


def bars() -> AbstractContextManager[None]:
    """Progress of long work is shown on the error stream."""
    return progress_display(progress_bar)


def flow_ready(workspace: Workspace, debug: bool) -> None:
    """Everything a flow needs around it: a workspace to write in, Prefect's environment set before its import."""
    make_root(workspace)
    prefect_home.prepare(workspace.root, debug=debug)
    if not prefect_home.server_configured() and "prefect" not in sys.modules:
        print_message("starting a temporary Prefect server (set PREFECT_API_URL to use your own) …")


def simulated_mark(yes: bool) -> str:
    """What stands behind a result of simulated galaxies."""
    return " (simulated)" if yes else ""


def short(path: Path) -> str:
    """A path as seen from here, where it lies below."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


class RenamedOption(argparse.Action):
    """An option by its old name, which is accepted for a release: `new_name` takes the value."""

    def __init__(self, option_strings: Sequence[str], dest: str, new_name: str) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self._new_name = new_name

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest, None) is not None:
            parser.error(f"{option_string} is the old name of {self._new_name}: give one of them")
        warn_of_old_name(str(option_string), self._new_name)
        setattr(namespace, self.dest, values)


def warn_of_old_name(old: str, new: str) -> None:
    """Say on the error stream that a name of the command line has changed."""
    print_message(f"{old} is now called {new}; the old name works for this release only")


def count(text: str) -> int:
    """An argument that counts something."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def at_least_one(text: str) -> int:
    """An argument that counts something of which there must be one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value
