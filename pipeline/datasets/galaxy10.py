"""The Galaxy10 DECaLS file: its layout, opened as labelled images, and the facts published about it.

Layout (HDF5): `images` (N, H, W, 3) uint8 RGB with north up, `ans` (N,) class ids, `ra`, `dec` degrees, `redshift`,
`pxscale` arcsec per pixel. Simulated files have the same layout and the attribute `simulated`, and tell `mag_r` and
`psfsize` too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pipeline.config.inputs import InputSettings
from pipeline.core.classes import CLASS_NAMES, CLASS_SLUGS
from pipeline.core.errors import UserError, is_transient
from pipeline.core.parsing import PARSE_ERRORS
from pipeline.datasets.image_set import ImageSet

PUBLISHED_URL = "https://zenodo.org/records/10845026/files/Galaxy10_DECals.h5"
PUBLISHED_SHA256 = "19aefc477c41bb7f77ff07599a6b82a038dc042f889a111b0d4d98bb755c1571"

_RANGES = {"ra": (0.0, 360.0), "dec": (-90.0, 90.0), "pxscale": (0.01, 100.0)}  # degrees, degrees, arcsec per pixel
_MORE = ("mag_r", "psfsize")  # what simulated files tell besides: r magnitude, FWHM in r (arcsec)
_ROWS = 64  # images read at a time …
_BLOCK_BYTES = 2**28  # … or as many as the file keeps in one chunk, up to this size
_LOOK = 16  # images read to tell whether pixels changed


@dataclass(frozen=True)
class Galaxy10Layout:
    """What a file of this layout says besides its pixels.

    `shape` (N, H, W, 3); `labels` int64 (N,); `columns` float64 (N,) of those of `ra`, `dec`, `pxscale` that the file
    has. Whether the values make sense is asked by `problems`.
    """

    path: Path
    shape: tuple[int, ...]
    labels: np.ndarray
    columns: dict[str, np.ndarray]
    simulated: bool
    content: str


def read_layout(path: Path) -> Galaxy10Layout:
    """Read everything but the pixels.

    Raises
    ------
    UserError : the file cannot be read, a dataset is missing, or has another type or length.
    """
    try:
        with h5py.File(path, "r") as file:
            images = file["images"]
            shape, dtype = images.shape, images.dtype
            answers = np.asarray(file["ans"][:])
            names = [name for name in (*_RANGES, *_MORE) if name in file]
            columns = {name: np.asarray(file[name][:], dtype=np.float64) for name in names}
            simulated = bool(file.attrs.get("simulated", False))
            content = _layout_of(images)
    except PARSE_ERRORS as error:
        if is_transient(error):
            raise
        raise UserError(
            f"{path} cannot be read as a Galaxy10 file ({error}); it needs `images` (N, H, W, 3) and `ans` (N,)"
        ) from error
    if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:] or dtype != np.uint8:
        raise UserError(f"{path}: `images` is {dtype} {shape}, expected uint8 (N, H, W, 3)")
    if answers.dtype.kind not in "iu":
        raise UserError(f"{path}: `ans` is {answers.dtype}, expected class ids as integers")
    for name, column in {"ans": answers, **columns}.items():
        if column.shape != (shape[0],):
            raise UserError(f"{path}: `{name}` has shape {column.shape}, `images` has {shape[0]} rows")
    return Galaxy10Layout(path, shape, answers.astype(np.int64), columns, simulated, content)


def open_galaxy10(path: Path, settings: InputSettings) -> ImageSet:
    """Open a file of the Galaxy10 layout as labelled images of the ten classes.

    Raises
    ------
    UserError : as `read_layout`; or one of the `problems`.
    """
    layout = read_layout(path)
    if found := problems(layout):
        raise UserError(f"{path}: {found[0]}")
    unknown = np.full(len(layout.labels), np.nan)
    return ImageSet(
        source=str(path.absolute()),
        kind="galaxy10",
        labels=layout.labels,
        ra=layout.columns.get("ra", unknown),
        dec=layout.columns.get("dec", unknown),
        pixscale=layout.columns.get("pxscale", unknown),
        rendering=settings.hdf5_rendering,
        raw=lambda: image_blocks(path),
        class_slugs=CLASS_SLUGS,
        class_names=CLASS_NAMES,
        files=(path.absolute(),),
        content=layout.content,
        simulated=layout.simulated,
        mag_r=layout.columns.get("mag_r"),
        psfsize=layout.columns.get("psfsize"),
    )


def problems(layout: Galaxy10Layout) -> list[str]:
    """What makes the values of a file unusable, as text. A file may lack positions or scales altogether; where it has
    them, every row must have one."""
    checked = {name: values for name, values in layout.columns.items() if name in _RANGES}
    return label_problems(layout.labels) + position_problems(checked)


def label_problems(labels: np.ndarray) -> list[str]:
    """What is wrong with labels int64 (N,), as text: there are none, or some are out of range."""
    if len(labels) == 0:
        return ["no labelled images"]
    wrong = int(((labels < 0) | (labels >= len(CLASS_SLUGS))).sum())
    if wrong == 0:
        return []
    return [f"labels from {labels.min()} to {labels.max()}, expected 0 to {len(CLASS_SLUGS) - 1} ({wrong} are outside)"]


def position_problems(columns: dict[str, np.ndarray]) -> list[str]:
    """What is wrong with float64 (N,) columns `ra`, `dec` (degrees) and `pxscale` (arcsec), as far as given."""
    found = []
    for name, values in columns.items():
        lowest, highest = _RANGES[name]
        bad = np.flatnonzero(~((values >= lowest) & (values <= highest)))  # NaN is not in range either
        if len(bad):
            found.append(
                f"`{name}` of {len(bad)} rows is not from {lowest:g} to {highest:g} (row {bad[0]}: {values[bad[0]]:g});"
                " put them right, or leave out the whole dataset where it is not known"
            )
    return found


def image_blocks(path: Path) -> Iterator[np.ndarray]:
    """The images of a file in order, uint8 (n, H, W, 3), a bounded number at a time.

    A compressed chunk that holds many images is unpacked once and not once for each few of them.

    Raises
    ------
    UserError : images cannot be read (a damaged or cut-off file).
    """
    with h5py.File(path, "r") as file:
        images = file["images"]
        count = _rows_at_a_time(images)
        for first in range(0, len(images), count):
            try:
                block = images[first : first + count]
            except PARSE_ERRORS as error:
                if is_transient(error):
                    raise
                last = min(first + count, len(images)) - 1
                raise UserError(
                    f"{path}: images {first} to {last} cannot be read ({error}); copy or fetch the file again"
                ) from error
            yield block


def _rows_at_a_time(images: h5py.Dataset) -> int:
    if images.chunks is None:
        return _ROWS
    in_chunk = int(images.chunks[0])
    fits = in_chunk * int(np.prod(images.shape[1:])) <= _BLOCK_BYTES
    return in_chunk * max(1, _ROWS // in_chunk) if fits else _ROWS


def _layout_of(images: h5py.Dataset) -> str:
    """Digest of a few images spread over the file: one that was rendered again is another."""
    digest = hashlib.sha256()
    for row in np.unique(np.linspace(0, len(images) - 1, _LOOK).astype(int)) if len(images) else ():
        digest.update(np.ascontiguousarray(images[int(row)]).tobytes())
    return digest.hexdigest()[:16]
