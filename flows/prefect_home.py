"""Prefect made ready for a workspace, before Prefect is imported.

With no server configured, Prefect starts a temporary one; each workspace gets its own PREFECT_HOME, so that their run
histories stay apart and no database is shared by accident. A server that is configured (PREFECT_API_URL, or the
profile in the user's own PREFECT_HOME) is used as it is.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tomllib
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.request import urlopen

import psutil

from pipeline.errors import UserError

logger = logging.getLogger(__name__)

_DEFAULTS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the first start migrates a database: 18 s on two cores
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # without a network the attempts end in tracebacks
    "DO_NOT_TRACK": "1",
}
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
    if server_configured() or "PREFECT_HOME" in os.environ:
        return
    home = own_home(workspace)
    os.environ["PREFECT_HOME"] = str(home)
    if adopt and (served := server_of(workspace)) is not None:
        os.environ["PREFECT_API_URL"] = served.url
        return
    os.environ[_DRIVER] = str(os.getpid())
    end_orphaned_servers(home)
    _check_room(home)


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
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    return home


@dataclass(frozen=True)
class Served:
    """A Prefect server that `morphcat serve` has started: where its API is, and its process."""

    url: str
    pid: int

    def save(self, workspace: Path) -> None:
        """Let other commands of the workspace find it."""
        path = own_home(workspace) / _SERVED
        path.write_text(json.dumps(asdict(self)))


def server_of(workspace: Path) -> Served | None:
    """The server that serves this workspace now; None when there is none, or it does not answer."""
    try:
        served = Served(**json.loads((workspace / ".prefect" / _SERVED).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return served if is_healthy(served.url) else None


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
