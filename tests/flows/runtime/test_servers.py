"""The installed command with a Prefect server of the user's own, and with none at all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment without Prefect's variables and without the user's profile."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return {**plain, "HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", **more}


def morphcat(workspace: Path, *words: str, **more: str) -> dict:
    """Run the command in a process of its own; what it prints as JSON."""
    command = [sys.executable, "-m", "flows.cli.main", "--workspace", str(workspace), "--json", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(workspace.parent, **more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def posted(url: str, body: object) -> list[dict]:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_without_a_server_and_with_one(tmp_path: Path) -> None:
    workspace = tmp_path / "W"
    morphcat(workspace, "simulate", "--tiles", "1", "--galaxies", "4", "--benchmark", "60")
    small = ["--variant", "cpu_tiny", "--set", "training.epochs=1", "--set", "training.image_size=32"]
    morphcat(workspace, "train", *small)  # its temporary server ends with it
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--host", "127.0.0.1", "--port", str(port)],
        env=environment(tmp_path, PREFECT_HOME=str(tmp_path / "server")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(240):
            try:
                urlopen(f"{api}/health", timeout=1).close()
                break
            except (URLError, OSError):
                time.sleep(0.5)
        summary = morphcat(workspace, "survey", PREFECT_API_URL=api)
        assert summary["classified"] == 4
        runs = posted(f"{api}/flow_runs/filter", {})
        assert [run["state_type"] for run in runs] == ["COMPLETED"]
        assert runs[0]["parameters"]["workspace"] == str(workspace)
    finally:
        server.terminate()
        server.wait(20)
