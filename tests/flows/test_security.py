"""What strangers cannot do: reach what listens, read what is private, be believed, speak through names of files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from flows.cli.display import print_table
from flows.cli.main import main
from flows.runtime import environment as prefect_home
from flows.service import serve as service
from pipeline.config.workspace import Workspace
from tests.conftest import Small
from tests.paths import ROOT
from tests.pipeline import survey_driver
from tests.pipeline.makers import write_cutouts

SECRETS = {"PREFECT_API_KEY": "pnu_seven_sisters", "AWS_SECRET_ACCESS_KEY": "magellanic/cloud+9"}
IN_SETTINGS = ("andromeda-pass", "cassiopeia-token")


# --- who is believed ----------------------------------------------------------------------------------------------


class _Healthy(BaseHTTPRequestHandler):
    """Says that it is in good health, as a Prefect server does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Prints nothing."""


@dataclass(frozen=True)
class Stranger:
    """A process that is no server of ours, and a URL that answers like one."""

    url: str
    process: subprocess.Popen[bytes]


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    process = subprocess.Popen(["sleep", "100"], env={"PREFECT_HOME": str(tmp_path / "other" / ".prefect")})
    try:
        yield Stranger(f"http://127.0.0.1:{server.server_port}/api", process)
    finally:
        process.kill()
        process.wait()
        server.shutdown()
        server.server_close()


def test_what_served_json_says_is_not_believed_of_a_foreign_process(tmp_path: Path, stranger: Stranger) -> None:
    """Left from before a restart, or come with a workspace from elsewhere: neither used nor ended."""
    home = prefect_home.own_home(tmp_path)
    for pid in (stranger.process.pid, 1, -1, 2**70, "1", None):
        told = {"url": stranger.url, "pid": pid, "password": "morphcat:x"}
        (home / "served.json").write_text(json.dumps(told))
        assert prefect_home.server_of(tmp_path) is None
        assert not service.end_left_server(tmp_path)
    assert stranger.process.poll() is None
    theirs = prefect_home.RunningServer(stranger.url, stranger.process.pid, "morphcat:x")
    theirs.save(tmp_path / "other")
    assert prefect_home.server_of(tmp_path / "other") == theirs  # of its own home it is


def test_models_outside_of_the_folder_are_not_used(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "evil"
    outside.mkdir()
    card = small.card.model_copy(update={"model_id": str(outside)})
    (outside / "card.json").write_text(card.model_dump_json())
    write_cutouts(tmp_path / "W" / "incoming" / "T", 1)
    words = ["--workspace", str(tmp_path / "W"), "--set", f"folders.models={small.workspace.models}"]
    for command in (["survey", "--model"], ["models", "show"], ["models", "promote", "--override", "--reason", "x"]):
        assert main([*words, *command, str(outside)]) == 1
        assert f"no model {str(outside)!r}" in capsys.readouterr().err


# --- secrets and modes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def surveyed(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A survey with secrets in environment and settings, and the usual umask."""
    root = tmp_path_factory.mktemp("secrets") / "W"
    before = os.umask(0o022)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        address, line = f"tls://anna:{IN_SETTINGS[0]}@node7:8786", f"export MY_TOKEN={IN_SETTINGS[1]}"
        settings = (f'workers.address="{address}"', f"workers.slurm_prologue=['{line}']")
        workspace = small.elsewhere(root, *settings)
        write_cutouts(workspace.incoming / "T", 2)
        (workspace.incoming / "T" / "empty.fits").touch()
        survey_driver.run(workspace)
        prefect_home.own_home(workspace.root)
        yield workspace
    os.umask(before)


def test_nothing_that_a_survey_writes_holds_a_secret(surveyed: Workspace) -> None:
    written = {path: path.read_bytes() for path in surveyed.root.rglob("*") if path.is_file()}
    told = {path.parent.name for path in written}
    assert {"logs", "runs", "reports", "sidecar", "export"} <= told
    for secret in (*SECRETS.values(), *IN_SETTINGS):
        assert [path for path, content in written.items() if secret.encode() in content] == []
    report = json.loads(next(surveyed.reports.glob("survey-*.json")).read_text())
    assert report["settings"]["workers"]["address"] == "tls://***@node7:8786"
    assert report["settings"]["workers"]["threads"] == 1


def test_files_can_be_read_by_others_and_written_by_their_owner_alone(surveyed: Workspace) -> None:
    modes = {path: path.stat().st_mode & 0o777 for path in surveyed.root.rglob("*")}
    home = surveyed.root / ".prefect"
    assert modes.pop(home) == 0o700
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o644}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o755}


def test_errors_name_no_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"workers.address=tls://anna:{IN_SETTINGS[0]}@127.0.0.1:1"
    words = ["--workspace", str(tmp_path), "--set", "workers.kind=connect", "--set", address]
    assert main([*words, "workers", "check"]) == 1
    err = capsys.readouterr().err
    assert "which Dask does not know" in err and IN_SETTINGS[0] not in err
    assert (
        main(["--workspace", str(tmp_path), "--set", f"survey.rows=https://anna:{IN_SETTINGS[0]}@node7", "config"]) == 1
    )
    err = capsys.readouterr().err
    assert "https://***@node7" in err and IN_SETTINGS[0] not in err


def test_names_of_files_do_not_command_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b]0;owned\x07[/b][red]é.fits"
    print_table(["file"], [[name]])
    assert main(["--workspace", str(tmp_path), "labels", "add", str(tmp_path / f"{name}.csv"), "--author", "A"]) == 1
    said = capsys.readouterr()
    for text in said:
        assert "\x1b" not in text and "\x07" not in text and "\\x1b]0;owned\\x07[/b][red]é.fits" in text


# --- what listens -------------------------------------------------------------------------------------------------


def test_a_server_that_other_machines_reach_is_warned_of() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.5", "node7"):
        assert "password" in service.exposed(host)
    assert [service.exposed(host) for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3")] == [""] * 4


def listening(pid: int) -> set[tuple[str, int]]:
    """Address and port of everything that a process and those below it listen at."""
    whole = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    found = [one for process in whole for one in process.net_connections("inet")]
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


def status_of(url: str, password: str = "") -> int:
    """What the server answers when it is asked for flow runs."""
    login = {"Authorization": f"Basic {b64encode(password.encode()).decode()}"} if password else {}
    request = Request(f"{url}/flow_runs/filter", b"{}", {"Content-Type": "application/json", **login})
    try:
        with urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def environment(home: Path) -> dict[str, str]:
    """An environment without Prefect's variables and without the user's profile."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**plain, "HOME": str(home), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_service_is_for_its_owner_alone(tmp_path: Path) -> None:
    """On the loopback interface, behind a password that other commands of the workspace find and strangers do not."""
    root = tmp_path / "W"
    root.mkdir()
    (root / "morphcat.toml").write_text("[serve]\nport = 0\nat_start = false\n")
    command = [sys.executable, "-m", "flows.cli.main", "--workspace", str(root)]
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        serving = subprocess.Popen(
            [*command, "serve"], cwd=ROOT, env=environment(tmp_path), stdout=output, stderr=output
        )
    try:
        end = time.monotonic() + 200
        while "serving" not in log.read_text() and time.monotonic() < end:
            time.sleep(0.5)
        served = prefect_home.server_of(root)
        assert served is not None, log.read_text()
        assert {address for address, _ in listening(serving.pid)} == {"127.0.0.1"}
        assert [status_of(served.url), status_of(served.url, "morphcat:x")] == [401, 401]
        assert status_of(served.url, served.password) == 200
        with urlopen(served.url.replace("/api", "/ui-settings"), timeout=30) as answer:
            assert json.load(answer)["api_url"] == served.url  # where its pages send the password
        code = (  # another command of the workspace, which is let in
            "from pathlib import Path; from flows.runtime.events import emit_labels_changed; "
            f"print(emit_labels_changed(Path({str(root)!r}), '0001-x', 1))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True
        )
        assert done.stdout == "True\n", done.stderr
        private = [root / ".prefect", root / ".prefect" / "served.json"]
        assert [path.stat().st_mode & 0o777 for path in private] == [0o700, 0o600]
        told = log.read_text() + (root / ".prefect" / "server.log").read_text()
        assert served.password.partition(":")[2] not in told and "WARNING: serve.host" not in told
    finally:
        serving.send_signal(signal.SIGTERM)
        serving.wait(60)


FLOW = """
from pathlib import Path
from flows.runtime import environment as prefect_home
prefect_home.prepare(Path({workspace!r}))
from prefect import flow
@flow
def wait():
    from prefect.context import get_run_context
    print(get_run_context().client.api_url, flush=True)
    input()
wait()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_temporary_server_is_for_its_owner_alone_and_runs_no_code_that_arrives(tmp_path: Path) -> None:
    """The command is given in the folder of arriving files, one of which is called as a module of the server."""
    script, incoming = tmp_path / "bin" / "flow.py", tmp_path / "W" / "incoming"
    for path, content in ((script, FLOW.format(workspace=str(tmp_path / "W"))), (incoming / "uvicorn.py", "1 / 0")):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    plain = {name: value for name, value in environment(tmp_path).items() if name != "PYTHONSAFEPATH"}
    running = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=incoming,
        env={**plain, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stdout and running.stdin
        url = running.stdout.readline().strip().rstrip("/")
        assert url and {address for address, _ in listening(running.pid)} == {"127.0.0.1"}
        assert status_of(url) == 401
        running.stdin.write("\n")
        running.stdin.flush()
        assert running.wait(60) == 0  # the flow itself has reached it all the while
    finally:
        running.kill()
        running.wait()
