"""Fetching a large public file: checked by its sha256, and an interrupted download goes on where it stopped.

pooch decides whether there is anything to do, checks the sum and moves the file into place; how bytes arrive is written
here, because pooch begins each download again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import pooch
import requests

from pipeline.core.errors import UserError
from pipeline.core.progress import Step, track

_TIMEOUT = (30, 60)  # seconds to connect, and without a byte
_ATTEMPTS = 5  # connections in one call; the next call goes on where the last one stopped
_PIECE = 2**16  # of a piece that breaks off nothing is kept
_MEGABYTE = 10**6


def fetch(url: str, path: Path, sha256: str) -> bool:
    """Download `url` to `path`; returns False where the very file was there already.

    What has arrived is kept beside it in a file that ends in `.part` until the download is complete.

    Raises
    ------
    UserError : another file of that name is there, the server cannot be reached or breaks off, or the sum is wrong.
    """
    sha256 = sha256.lower()
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UserError(f"--sha256 {sha256}: expected 64 hexadecimal digits")
    if path.exists():
        if path.is_file() and pooch.file_hash(str(path), alg="sha256") == sha256:
            return False
        raise UserError(f"{path} is there already and has not the sha256 {sha256}; choose another name with --out")
    pooch.get_logger().setLevel(logging.WARNING)  # progress is told through `track`
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{sha256[:8]}.part")

    def resuming(address: str, output: str, _: object) -> None:
        _download(address, part)
        os.replace(part, output)

    try:
        pooch.retrieve(url, f"sha256:{sha256}", fname=path.name, path=path.parent, downloader=resuming)
    except ValueError as error:
        # pooch has removed what it downloaded, so that the next call does not go on from wrong bytes.
        raise UserError(f"{url} is not the expected file: {error}") from error
    return True


def _download(url: str, part: Path) -> None:
    """Bring `part` to the whole content of `url`, going on from what is there."""
    reason: object = "it does not send the range that it is asked for"
    with _alone(part) as file, _ProgressDisplay(url) as shown:
        for _ in range(_ATTEMPTS):
            start = file.seek(0, os.SEEK_END)
            headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
            try:
                with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
                    if _receive(answer, file, start, shown):
                        return
            except requests.HTTPError as error:
                raise UserError(f"{error}; name another address with --url") from error
            except requests.RequestException as error:
                reason = error
                if file.tell() <= start:
                    break
        raise UserError(
            f"{url} broke off ({reason}); {file.tell() / _MEGABYTE:.0f} MB are kept in {part}, run again to go on"
        )


def _receive(answer: requests.Response, file: BinaryIO, start: int, shown: _ProgressDisplay) -> bool:
    """Append what the server sends; False where it must be asked again, for the whole.

    A server that knows no ranges sends everything (200); one that has nothing beyond `start` says so (416).
    """
    sent = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+)", answer.headers.get("Content-Range", ""))
    if answer.status_code == requests.codes.requested_range_not_satisfiable:
        if sent and int(sent[2]) == start:
            return True
        file.truncate(0)
        return False
    answer.raise_for_status()
    if answer.status_code == requests.codes.partial_content and (sent is None or sent[1] != str(start)):
        file.truncate(0)
        return False
    if answer.status_code == requests.codes.ok:
        file.truncate(0)
    length = int(answer.headers.get("Content-Length", 0))
    shown.begin(file.seek(0, os.SEEK_END), length)
    for piece in answer.iter_content(_PIECE):
        file.write(piece)
        shown.reached(file.tell())
    return True


class _ProgressDisplay(AbstractContextManager["_ProgressDisplay"]):
    """Progress in whole megabytes, over all connections of one download."""

    def __init__(self, url: str) -> None:
        self.title = f"fetching {url.rsplit('/', 1)[-1]}, MB"
        self.stack = ExitStack()
        self.step: Step | None = None
        self.megabytes = 0

    def begin(self, position: int, more: int) -> None:
        """`position` bytes are there, `more` are to come."""
        if self.step is None:
            self.step = self.stack.enter_context(track(self.title, (position + more) // _MEGABYTE))
        self.reached(position)

    def reached(self, position: int) -> None:
        before, self.megabytes = self.megabytes, position // _MEGABYTE
        if self.step and self.megabytes != before:
            self.step(self.megabytes - before, "")

    def __exit__(self, *error: object) -> None:
        self.stack.close()


@contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """The file to append to, of which nobody else may be the writer; an empty one is not left behind."""
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{part} is being written by another download; wait for it") from error
        try:
            yield file
        finally:
            if file.seek(0, os.SEEK_END) == 0:
                part.unlink()
