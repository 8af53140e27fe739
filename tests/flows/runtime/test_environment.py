"""Prefect's environment of a workspace, and servers that killed runs leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.runtime import environment as prefect_home
from pipeline.core.errors import UserError
from tests.paths import ROOT


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without a Prefect profile and an environment without Prefect."""
    for name in [n for n in os.environ if n.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return tmp_path


def test_each_workspace_has_its_own_home(clean: Path) -> None:
    prefect_home.prepare(clean / "W")
    assert os.environ["PREFECT_HOME"] == str(clean / "W" / ".prefect")
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_no_temporary_server_is_started_on_a_full_disk(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_home, "_ROOM", 1 << 62)
    with pytest.raises(UserError, match="free some space"):
        prefect_home.prepare(clean / "W")


def test_a_server_in_the_environment_or_in_the_profile_is_used(clean: Path) -> None:
    assert not prefect_home.server_configured()
    (clean / ".prefect").mkdir()
    profile = '[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:4200/api"\n'
    (clean / ".prefect" / "profiles.toml").write_text('active = "mine"\n' + profile)
    assert prefect_home.server_configured()
    prefect_home.prepare(clean / "W")
    assert "PREFECT_HOME" not in os.environ
    (clean / ".prefect" / "profiles.toml").write_text('active = "other"\n' + profile)
    assert not prefect_home.server_configured()
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:4200/api"
    assert prefect_home.server_configured()


DRIVER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from flows.runtime import environment as prefect_home
prefect_home.prepare(Path({workspace!r}))
from prefect import flow
@flow
def wait():
    print("running", flush=True)
    import time
    time.sleep(300)
wait()
"""


@pytest.mark.slow
def test_the_server_of_a_killed_run_is_ended_by_the_next(tmp_path: Path) -> None:
    """A real flow with its real temporary server is killed; its server is ended, for its own workspace only."""
    root = str(ROOT)
    script = DRIVER.format(root=root, workspace=str(tmp_path))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment["HOME"] = str(tmp_path)
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert driver.stdout is not None
    try:
        assert driver.stdout.readline() == b"running\n"
        (server,) = [
            p for p in psutil.Process(driver.pid).children(recursive=True) if "uvicorn" in " ".join(p.cmdline())
        ]
        home = tmp_path / ".prefect"
        assert prefect_home.end_orphaned_servers(home) == 0  # its driver lives
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    time.sleep(0.5)
    assert server.is_running()
    assert prefect_home.end_orphaned_servers(tmp_path / "other") == 0
    assert prefect_home.end_orphaned_servers(home) == 1
    server.wait(10)
    assert not server.is_running()
