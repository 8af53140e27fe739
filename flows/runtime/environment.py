"""Prefect made ready for a workspace, before Prefect is imported.

With no server configured, Prefect starts a temporary one; each workspace gets its own PREFECT_HOME, so that their run
histories stay apart and no database is shared by accident. A server that is configured (PREFECT_API_URL, or the
profile in the user's own PREFECT_HOME) is used as it is. Servers that are started here have a password: whoever reaches
a Prefect server can have code run, and every user of a machine reaches its loopback interface.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import sys
import tomllib
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.request import urlopen

import psutil

from pipeline.core.errors import UserError

logger = logging.getLogger(__name__)

_DEFAULTS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the first start migrates a database: 18 s on two cores
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # without a network the attempts end in tracebacks
    "DO_NOT_TRACK": "1",
    "PYTHONSAFEPATH": "1",  # else a server imports from the folder one stands in, which may be that of arriving files
}
_PASSWORD = "PREFECT_API_AUTH_STRING"
_DRIVER = "MORPHCAT_DRIVER"  # process id of the driver, inherited by the server that it starts
_SERVED = "served.json"  # in the home: where the server of `morphcat serve` is
_ANSWER_SECONDS = 3.0
_SERVER = "prefect.server.api.server:create_app"
_ROOM = 20_000_000  # bytes; the database of a new server takes 5 MB, and its journal as much for a while


def prepare(workspace: Path, *, debug: bool = False, adopt: bool = True) -> None:
    """Set Prefect's environment for runs of this workspace; what the user has set stays.

    With `adopt` the server of a `morphcat serve` of this workspace is used, where one runs. Failures come to people as
    one line of ours; Prefect's own account of them, with tracebacks, is for `debug`.
    """
    for name, value in {**_DEFAULTS, "PREFECT_LOGGING_LEVEL": "INFO" if debug else "CRITICAL"}.items():
        os.environ.setdefault(name, value)
    if server_configured():
        return
    if "PREFECT_HOME" not in os.environ:
        home = own_home(workspace)
        os.environ["PREFECT_HOME"] = str(home)
        if adopt and (served := server_of(workspace)) is not None:
            os.environ |= {"PREFECT_API_URL": served.url, _PASSWORD: served.password}
            return
        os.environ[_DRIVER] = str(os.getpid())
        end_orphaned_servers(home)
        _check_room(home)
    if "prefect" not in sys.modules:  # which has read its settings by then
        protect()


def protect() -> str:
    """Give servers that this process starts a password, which it sends them, as its children do; returns it."""
    password = os.environ.setdefault("PREFECT_SERVER_API_AUTH_STRING", f"morphcat:{secrets.token_urlsafe(24)}")
    os.environ[_PASSWORD] = password
    return password


def _check_room(home: Path) -> None:
    """Without room for its database a temporary server ends at once, which Prefect tells nobody."""
    free = shutil.disk_usage(home).free
    if free < _ROOM:
        raise UserError(
            f"only {free / 1e6:.0f} MB are free on the disk of {home}, too little for Prefect's database: free some "
            "space, or set PREFECT_API_URL to a server elsewhere, and run again"
        )


def own_home(workspace: Path) -> Path:
    """The workspace's own PREFECT_HOME; its database holds what flows were given, so it is for its owner only."""
    home = workspace / ".prefect"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    return home


@dataclass(frozen=True)
class RunningServer:
    """A Prefect server that `morphcat serve` has started: where its API is, its process, and its password."""

    url: str
    pid: int
    password: str

    def save(self, workspace: Path) -> None:
        """Let other commands of the workspace find it."""
        path = own_home(workspace) / _SERVED
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)))


def server_of(workspace: Path) -> RunningServer | None:
    """The server that serves this workspace now; None when there is none on this machine, or it does not answer.

    The file may be left over, or come with a workspace from elsewhere: only a process of this home is believed.
    """
    home = workspace / ".prefect"
    try:
        served = RunningServer(**json.loads((home / _SERVED).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return served if _is_of(served.pid, home) and is_healthy(served.url) else None


def _is_of(pid: int, home: Path) -> bool:
    """Whether there is such a process, and it was started with this home; never one of another user."""
    try:
        theirs = psutil.Process(pid).environ().get("PREFECT_HOME")
    except (psutil.NoSuchProcess, psutil.AccessDenied, TypeError, ValueError):
        return False
    return theirs is not None and Path(theirs).resolve() == home.resolve()


def is_healthy(url: str) -> bool:
    """Whether a Prefect server answers at this API URL."""
    try:
        with urlopen(f"{url}/health", timeout=_ANSWER_SECONDS) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, ValueError):  # nobody listens, no answer in time, or no URL
        return False


def server_configured() -> bool:
    """Whether the user has named a Prefect server, in the environment or in the active profile."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    home = Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect"))
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return False
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    return bool(profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL"))


def end_orphaned_servers(home: Path) -> int:
    """End temporary servers of this PREFECT_HOME whose driver was killed; returns how many there were.

    A killed driver leaves its server behind as a child of another process; one with a living driver is left alone.
    """
    ended = 0
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if _SERVER in (process.info["cmdline"] or []) and _is_orphan(process, home):
                logger.warning("ending the temporary Prefect server %d of a run that was killed", process.pid)
                process.terminate()
                _, alive = psutil.wait_procs([process], timeout=3)
                for deaf in alive:  # it waits for its killed driver's connections to close
                    deaf.kill()
                ended += 1
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return ended


def _is_orphan(process: psutil.Process, home: Path) -> bool:
    """Whether a server belongs to this home and is no longer the child of the driver that started it."""
    environment = process.environ()
    driver = environment.get(_DRIVER)
    return driver is not None and environment.get("PREFECT_HOME") == str(home) and process.ppid() != int(driver)
