"""A Prefect server of the harness's own, which can be killed and started again at the same address."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.chaos.processes import Started, kill_group, python, wait

_SECONDS = 120.0  # the first start migrates a database


class Server:
    """`prefect server start` on a free port of the loopback interface; its database lies in `home`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.start()

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self._port}/api"

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = ["server", "start", "--no-ui", "--host", "127.0.0.1", "--port", str(self._port)]
        self._home.mkdir(parents=True, exist_ok=True)
        home = {"HOME": str(self._home), "PREFECT_HOME": str(self._home), "PREFECT_API_URL": ""}
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        self._process = Started(python("prefect", *words), self._home / "server.log", **home, **quiet)
        deadline = time.monotonic() + _SECONDS
        while not self._answers():
            assert self._process.status() is None and time.monotonic() < deadline, "the Prefect server does not start"
            time.sleep(0.2)

    def kill(self) -> None:
        """kill -9, with all of its processes."""
        kill_group(self._process)
        wait(self._process)

    def _answers(self) -> bool:
        try:
            urlopen(f"{self.api}/health", timeout=1).close()
        except (URLError, OSError):
            return False
        return True
