"""Reading pickles without executing them: plain values and arrays of bytes, as CIFAR's Python files hold them.

A pickle is a program. The one that runs it here knows no function but the stand-ins below, which build nothing else.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import UserError, is_transient
from pipeline.core.parsing import PARSE_ERRORS

_DAMAGED: tuple[type[Exception], ...] = (*PARSE_ERRORS, pickle.UnpicklingError)


def read_plain_pickle(path: Path) -> dict[Any, Any]:
    """A pickled dict of numbers, bytes, lists and uint8 arrays, as CIFAR's Python files are; nothing else is built.

    Raises
    ------
    UserError : the file is damaged, or asks for any other object: it is not what it should be, or hostile.
    """
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, encoding="bytes").load()
    except _DAMAGED as error:
        if is_transient(error):
            raise
        raise UserError(f"{path} cannot be read as plain values and arrays ({error}); download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict, found {type(content).__name__}")
    return {key: value.values if isinstance(value, _PickledArray) else value for key, value in content.items()}


class _PickledType:
    """Stands for numpy's dtype in a pickle, so that no state from the file reaches numpy. Bytes only."""

    def __init__(self, code: object, *flags: object) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, expected bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: bytes have none."""


class _PickledArray:
    """Stands for numpy's array; what the file says of shape and order is checked by `reshape`."""

    values = np.empty((0,), dtype=np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], _PickledType, bool, bytes]) -> None:
        _, shape, _, fortran, raw = state
        self.values = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*how: object) -> _PickledArray:
    return _PickledArray()


_STAND_INS: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which such a file has no use for")
