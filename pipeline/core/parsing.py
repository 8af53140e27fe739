"""What a parser raises on a damaged file becomes `BadInput`; failures of the system pass through."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import BadInput, Reason, is_transient

# What parsers of damaged files were seen to raise. `OSError` is among them: astropy and h5py use it for broken content;
# astropy also opens what looks like zip or xz, and asserts; h5py has `RuntimeError`.
PARSE_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    RuntimeError,
    AssertionError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    ArithmeticError,
    SyntaxError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)


@contextmanager
def parsing(path: Path, what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what a parser raises on a damaged file, and `more`, into BadInput; failures of the system pass through."""
    try:
        yield
    except PARSE_ERRORS + more as error:
        if is_transient(error):
            raise
        raise BadInput(
            Reason.UNREADABLE_FILE,
            f"{path} cannot be read as {what} ({type(error).__name__}: {error}); download or copy it again",
            type(error).__name__,
        ) from error
