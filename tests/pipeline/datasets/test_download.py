"""Fetching from real servers: one that knows ranges, one that breaks off, one that sends other bytes."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import UserError
from pipeline.core.progress import progress_display
from pipeline.datasets.download import fetch

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`; each connection in turn ends after so many bytes of `breaks`, the later ones do not."""

    def __init__(self, content: bytes = CONTENT, *, ranges: bool = True, breaks: tuple[int, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.breaks = content, ranges, list(breaks)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data.h5"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        content = self.server.content
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.server.ranges else 0  # type: ignore[index]
        if self.path != "/data.h5":
            self.send_error(404)
            return
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if self.server.breaks:
            body = body[: self.server.breaks.pop(0)]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def parts(folder: Path) -> list[Path]:
    return list(folder.glob("*.part"))


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data.h5"
    with serving(Server()) as server:
        assert fetch(server.url, path, SHA256.upper()) is True
        assert fetch(server.url, path, SHA256) is False
    assert path.read_bytes() == CONTENT and list(path.parent.iterdir()) == [path]
    assert server.asked == [None]


def test_a_connection_that_breaks_off_goes_on_in_the_same_call(tmp_path: Path) -> None:
    with serving(Server(breaks=(1_000_000, 700_000))) as server:
        fetch(server.url, tmp_path / "data.h5", SHA256)
    assert (tmp_path / "data.h5").read_bytes() == CONTENT and not parts(tmp_path)
    first, second, third = server.asked
    assert first is None and second is not None and third is not None
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in (second, third)]
    assert 900_000 < starts[0] <= 1_000_000 and 1_500_000 < starts[1] <= 1_700_000


def test_what_has_arrived_is_kept_for_the_next_call(tmp_path: Path) -> None:
    with serving(Server(breaks=(1_000_000, 0))) as server:
        with pytest.raises(UserError, match=r"broke off .* 1 MB are kept in .*\.part, run again to go on"):
            fetch(server.url, tmp_path / "data.h5", SHA256)
        (part,) = parts(tmp_path)
        kept = part.stat().st_size
        assert CONTENT.startswith(part.read_bytes()) and 900_000 < kept <= 1_000_000
        assert not (tmp_path / "data.h5").exists()
        fetch(server.url, tmp_path / "data.h5", SHA256)
    assert server.asked[-1] == f"bytes={kept}-"
    assert (tmp_path / "data.h5").read_bytes() == CONTENT and not parts(tmp_path)


def test_a_server_without_ranges_begins_anew(tmp_path: Path) -> None:
    with serving(Server(ranges=False, breaks=(2_000_000,))) as server:
        fetch(server.url, tmp_path / "data.h5", SHA256)
    assert (tmp_path / "data.h5").read_bytes() == CONTENT and len(server.asked) == 2


def test_a_server_that_always_breaks_off_is_given_up(tmp_path: Path) -> None:
    with (
        serving(Server(ranges=False, breaks=(1_000_000,) * 50)) as server,
        pytest.raises(UserError, match="broke off"),
    ):
        fetch(server.url, tmp_path / "data.h5", SHA256)
    assert len(server.asked) < 10


@pytest.mark.parametrize("kept", [CONTENT, CONTENT + b"more than there is"])
def test_a_part_that_is_complete_or_too_long(tmp_path: Path, kept: bytes) -> None:
    (tmp_path / f"data.h5.{SHA256[:8]}.part").write_bytes(kept)
    with serving(Server()) as server:
        fetch(server.url, tmp_path / "data.h5", SHA256)
    assert (tmp_path / "data.h5").read_bytes() == CONTENT and not parts(tmp_path)


def test_other_bytes_are_an_error_that_names_both_sums(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    other = CONTENT[::-1]
    with serving(Server(other)) as server, pytest.raises(UserError) as error:
        fetch(server.url, tmp_path / "data.h5", SHA256)
    assert SHA256 in str(error.value) and hashlib.sha256(other).hexdigest() in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]  # nothing wrong to go on from


def test_another_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data.h5").write_bytes(b"mine")
    with (
        serving(Server()) as server,
        pytest.raises(UserError, match=r"is there already and has not the sha256 .*--out"),
    ):
        fetch(server.url, tmp_path / "data.h5", SHA256)
    assert (tmp_path / "data.h5").read_bytes() == b"mine" and server.asked == []


def test_addresses_and_sums_that_are_none(tmp_path: Path) -> None:
    with serving(Server()) as server:
        with pytest.raises(UserError, match="404"):
            fetch(server.url + "x", tmp_path / "data.h5", SHA256)
        with pytest.raises(UserError, match="expected 64 hexadecimal digits"):
            fetch(server.url, tmp_path / "data.h5", "abc")
    with pytest.raises(UserError, match="broke off"):  # nobody is there any more
        fetch(server.url, tmp_path / "data.h5", SHA256)
    for url in ("nonsense", "ftp://127.0.0.1/data.h5"):
        with pytest.raises(UserError, match=url):
            fetch(url, tmp_path / "data.h5", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_what_was_there_before(tmp_path: Path) -> None:
    told: list[tuple[str, int, list[int]]] = []

    @contextmanager
    def display(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        told.append((title, total, []))
        yield lambda done, note: told[-1][2].append(done)

    (tmp_path / f"data.h5.{SHA256[:8]}.part").write_bytes(CONTENT[:2_100_000])
    with serving(Server()) as server, progress_display(display):
        fetch(server.url, tmp_path / "data.h5", SHA256)
    ((title, total, steps),) = told
    assert title == "fetching data.h5, MB" and total == 3 and steps == [2, 1]


def test_two_downloads_of_one_file_at_once(tmp_path: Path) -> None:
    import fcntl

    part = tmp_path / f"data.h5.{SHA256[:8]}.part"
    with part.open("ab") as other, serving(Server()) as server:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written by another download"):
            fetch(server.url, tmp_path / "data.h5", SHA256)
