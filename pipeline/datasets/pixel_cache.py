"""Model-ready pixels in a file of their own, written once and then mapped: they never fill the memory of a process.

What is mapped is shared by all processes of a machine through the page cache. The folder may be deleted at any time;
it is written again when needed. This module must not know what the images show.
"""

from __future__ import annotations

import fcntl
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from catalogs.atomic import atomic_write
from pipeline.core.errors import UserError


def ensure_pixels(path: Path, shape: tuple[int, ...], write: Callable[[BinaryIO], None]) -> None:
    """Have pixels uint8 of `shape` in `path`; `write` fills the file where it is missing or incomplete.

    Raises
    ------
    UserError : there is no room for the file.
    """
    size = math.prod(shape)
    if not _complete(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_writer(path) as alone:
            if alone:
                _remove_unfinished(path)
            if not _complete(path, size):
                _check_room(path, size)
                with atomic_write(path) as temporary, temporary.open("wb") as file:
                    write(file)


def map_pixels(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Pixels uint8 of `shape`, mapped from a file that `ensure_pixels` wrote.

    The mapping is copy-on-write: nothing that is done to the tensor reaches the file.

    Raises
    ------
    UserError : the file is not there, or of another size.
    """
    if not _complete(path, math.prod(shape)):
        raise UserError(f"{path}: pixels of shape {shape} are not there; it must not be deleted while it is in use")
    return torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c", shape=shape))


def _complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextmanager
def _one_writer(path: Path) -> Iterator[bool]:
    """Wait until nobody else writes `path`; False where the file system has no locks.

    There each process writes a file of its own and the last rename wins: they are all the same.
    """
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _remove_unfinished(path: Path) -> None:
    """Files that killed writers left: gigabytes nobody would see."""
    for temporary in path.parent.glob(f".{path.name}.????????????"):
        temporary.unlink(missing_ok=True)


def _check_room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise UserError(
            f"{path.parent}: the pixels of these images need {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; make "
            "room or set folders.cache to another disk"
        )
