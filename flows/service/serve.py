"""`morphcat serve`: one process that keeps the flows of a workspace running by schedule and by event.

Without a Prefect server of the user's own it starts one, on the loopback interface, with a password and its database in
the workspace, and ends it when it ends. What a service that was killed left behind is put right at the next start: its
server is ended, its runs are said to have crashed, and runs that were missed are replaced by one look at the present
state.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast
from uuid import UUID

import psutil

from flows.runtime import environment as prefect_home
from flows.runtime.environment import RunningServer
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.core.redaction import redact
from pipeline.runs.locks import exclusive

_log = logging.getLogger(__name__)

_START_SECONDS = 180.0  # for a server's first start, which makes its database, on a busy machine
_END_SECONDS = 15.0
_TICK = 0.5
_LEASES = "prefect.server.concurrency.lease_storage.filesystem"  # those in memory leak when the server is killed

Say = Callable[[str], None]


def serve(workspace: Workspace, overrides: list[str], say: Say) -> None:
    """Serve a workspace until this process is told to end (SIGINT, SIGTERM).

    overrides : settings as `section.key=value` that every run is given; `say` is told what goes on.

    Raises
    ------
    pipeline.runs.locks.AlreadyRunning : another process serves this workspace.
    UserError : the Prefect server does not start, or does not answer.
    """
    signal.signal(signal.SIGTERM, _end)
    lock = prefect_home.own_home(workspace.root) / "serve.lock"
    with exclusive(lock, "morphcat serve", "service"), _server(workspace, say):
        _run(workspace, overrides, say)


def _end(number: int, frame: FrameType | None) -> None:
    """End in order, so that the server that was started ends too."""
    raise SystemExit(0)


@contextmanager
def _server(workspace: Workspace, say: Say) -> Iterator[None]:
    """The user's server, where one is configured, else one of our own as long as this lasts."""
    if prefect_home.server_configured():
        url = os.environ.get("PREFECT_API_URL")
        if url and not prefect_home.is_healthy(url):
            raise UserError("the Prefect server that PREFECT_API_URL names does not answer; start it, or unset it")
        yield
        return
    home = prefect_home.own_home(workspace.root)
    end_left_server(workspace.root)
    prefect_home.end_orphaned_servers(home)
    settings = workspace.settings.serve
    port = _free_port(settings.host, settings.port)
    say(f"starting a Prefect server on {settings.host}:{port} …")
    if words := exposed(settings.host):
        say(words)
    with _started(workspace, settings.host, port) as served:
        os.environ["PREFECT_API_URL"] = served.url
        say(f"its pages and other clients ask for the password that stands in {home / 'served.json'}")
        yield


def exposed(host: str) -> str:
    """A warning where other machines reach a server that is bound to this address, else nothing."""
    if host in ("localhost", "::1") or host.startswith("127."):
        return ""
    return (
        f"WARNING: serve.host = {host}: other machines reach this server. Who has its password runs code here, and it "
        "travels unencrypted: docs/security.md says what to do instead"
    )


@contextmanager
def _started(workspace: Workspace, host: str, port: int) -> Iterator[RunningServer]:
    """A Prefect server in a session of its own: a Ctrl-C for this process does not end it before us."""
    home, password = prefect_home.own_home(workspace.root), prefect_home.protect()
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/api"
    words = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]
    words += [] if workspace.settings.serve.ui else ["--no-ui"]
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": _LEASES}
    environment["PREFECT_UI_API_URL"] = url  # else its pages send the password to port 4200, whoever listens there
    log = home / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    served = RunningServer(url, process.pid, password)
    try:
        _wait_for(served, port, process, log)
        served.save(workspace.root)
        yield served
    finally:
        end_server(process.pid)
        process.wait()


def _wait_for(served: RunningServer, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while not (_listens(process.pid, port) and prefect_home.is_healthy(served.url)):
        if process.poll() is not None or time.monotonic() > end:
            how = "ended at once" if process.poll() is not None else f"did not answer for {_START_SECONDS:.0f} s"
            raise UserError(f"the Prefect server {how}; {log} says why")
        time.sleep(_TICK)


def _listens(pid: int, port: int) -> bool:
    """Whether a process, or one that it has started, listens on a port: another user may have been quicker."""
    try:
        whole = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        found = [one for process in whole for one in process.net_connections("tcp")]
    except psutil.NoSuchProcess:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in found)


def end_left_server(root: Path) -> bool:
    """End the server of a service that was killed; returns whether there was one."""
    served = prefect_home.server_of(root)
    if served is None:
        return False
    _log.warning("ending the Prefect server %d of a service that was killed", served.pid)
    end_server(served.pid)
    return True


def end_server(pid: int) -> None:
    """End a server with the processes that it has started."""
    try:
        whole = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in whole:
        _signal(process, signal.SIGTERM)
    _, deaf = psutil.wait_procs(whole, timeout=_END_SECONDS)
    for process in deaf:
        _signal(process, signal.SIGKILL)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _free_port(host: str, wanted: int) -> int:
    """The port that is wanted, or any other where it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UserError(f"serve.host = {host!r} is no address of this machine")


def _run(workspace: Workspace, overrides: list[str], say: Say) -> None:
    """Register the deployments and run what is due, until the end."""
    from prefect.runner import Runner

    from flows.service.crashed_runs import check_now, mark_crashed_runs
    from flows.service.deployments import deployments

    settings = workspace.settings.serve
    chosen = deployments(workspace, overrides)
    runner = Runner(name=chosen[0].name, limit=settings.limit, query_seconds=settings.poll, pause_on_shutdown=True)
    ids = [cast(UUID, runner.add_deployment(one)) for one in chosen]  # outside of an event loop no coroutines
    for words in mark_crashed_runs(ids):
        say(words)
    if settings.at_start:
        check_now(ids[:2])
    _say_schedules(workspace, chosen, say)
    try:
        asyncio.run(runner.start())
    except KeyboardInterrupt:
        say("ending; what is committed stays")


def _say_schedules(workspace: Workspace, chosen: Sequence[Any], say: Say) -> None:
    settings = workspace.settings.serve
    where = redact(os.environ.get("PREFECT_API_URL", "the server of the profile"))
    say(f"serving {workspace.root} at {where}")
    for name in ("survey", "retrain", "benchmark"):
        say(f"  {name}: {getattr(settings, name) or 'never by itself'} ({settings.timezone})")
    say("  retrain: also at once when labels come; release: on demand; Ctrl-C ends the service")
