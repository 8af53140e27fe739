"""HDF5 files of cutouts: the Galaxy10 layout (RGB) and float cutouts in nanomaggies, read in bounded chunks.

`images` is (N, H, W, 3) uint8 RGB or (N, band, H, W) float with an attribute `bands`; `ra` and `dec` are needed,
`pxscale`, `release`, `brickid` and `objid` are optional.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from catalogs.tiles import QuarantineEntry
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import BadInput, Reason, is_transient
from pipeline.core.object_ids import survey_keys
from pipeline.core.parsing import PARSE_ERRORS, parsing
from pipeline.readers.stamps import (
    MAX_SIDE,
    Stamp,
    are_bands,
    examine_flux,
    examine_rgb,
    in_band_order,
    on_sky,
    quarantine_entry,
    wrapped,
)

_MOST_ROWS = 100_000_000  # in one file; more is a damaged number
_GROWTH = 2000  # bytes of images for a byte of the file, at most; gzip shrinks zeros a thousandfold
_MOST_PIECE_BYTES = 1 << 30  # of an HDF5 chunk, which is unpacked as a whole
_CHUNK_ROWS = 32  # read at a time, fewer where they would take more than
_CHUNK_BYTES = 64 << 20


def count_rows(path: Path) -> int:
    """Number of images, or 0 when the file cannot be read (its only tile will say why).

    Raises
    ------
    OSError : the system failed, or another program is writing the file.
    """
    try:
        with h5py.File(path, "r") as file:
            images = _dataset(path, file, "images")
            _check_size(path, images)
            rows = int(images.shape[0])
    except BadInput:
        return 0
    except PARSE_ERRORS as error:
        if is_transient(error):
            raise
        return 0
    return rows


def read_hdf5(
    path: Path, start: int, stop: int, source: str, settings: InputSettings
) -> Iterator[Stamp | QuarantineEntry]:
    """One stamp or quarantine entry for each row from `start` to `stop`.

    Raises
    ------
    BadInput : nothing in the file can be used (not HDF5, a dataset missing, arrays of different lengths).
    OSError : the system failed.
    """
    with parsing(path, "HDF5"):
        if path.stat().st_size == 0:
            raise BadInput(Reason.EMPTY_FILE, f"{path} has no bytes; copy it again")
        file = h5py.File(path, "r")
    with file:
        with parsing(path, "HDF5 with positions"):
            images = _dataset(path, file, "images")
            columns = _columns(path, file, images, start, stop, settings)
        row_bytes = images.dtype.itemsize * math.prod(images.shape[1:])
        step = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // row_bytes))
        for first in range(start, stop, step):
            yield from _chunk(path, images, columns, first, min(first + step, stop), source)


@dataclass(frozen=True)
class _Columns:
    """Everything but pixels for rows `start` to `stop`; `bands` is empty for RGB images."""

    start: int
    ra: np.ndarray
    dec: np.ndarray
    pixscale: np.ndarray
    keys: np.ndarray
    bands: tuple[str, ...]
    layer: str
    rendering: str


def _columns(
    path: Path, file: h5py.File, images: h5py.Dataset, start: int, stop: int, settings: InputSettings
) -> _Columns:
    bands = _layout(path, file, images)

    def column(name: str) -> np.ndarray:
        """Rows `start` to `stop` of a dataset; NaN if the file has no such optional one."""
        if name not in file and name not in ("ra", "dec"):
            return np.full(stop - start, np.nan)
        dataset = _dataset(path, file, name)
        if dataset.shape != (len(images),):
            raise BadInput(
                Reason.ARRAYS_DIFFER, f"{path}: `{name}` has shape {dataset.shape}, `images` has {len(images)} rows"
            )
        return np.asarray(dataset[start:stop], dtype=np.float64)

    ra, dec, pixscale = column("ra"), column("dec"), column("pxscale")
    keys = np.stack([column(name) for name in ("release", "brickid", "objid")], axis=1)
    simulated = bool(file.attrs.get("simulated", False))
    layer = ("simulated" if simulated else "hdf5") + "-" + ("".join(bands) or "rgb")
    rendering = "" if bands else settings.hdf5_rendering
    return _Columns(start, ra, dec, pixscale, keys, bands, layer, rendering)


def _dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset that lies in this file. What leads to another one (links, external or virtual storage) is refused."""
    if isinstance(file.get(name, getlink=True), h5py.ExternalLink):
        raise BadInput(Reason.UNSAFE_NAME, f"{path}: `{name}` is a link to another file; copy the data into this one")
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise BadInput(Reason.MISSING_DATASET, f"{path}: no dataset `{name}`; found {sorted(file)[:10]}")
    if dataset.external or dataset.is_virtual or dataset.file.filename != file.filename:
        raise BadInput(
            Reason.UNSAFE_NAME, f"{path}: `{name}` keeps its data in another file; copy the data into this one"
        )
    return dataset


def _check_size(path: Path, images: h5py.Dataset) -> None:
    """Compare what `images` declares with limits and with the file, before any memory is taken."""
    shape, item = images.shape or (), images.dtype.itemsize
    declared, piece = item * math.prod(shape), item * math.prod(images.chunks or ())
    most = _GROWTH * path.stat().st_size
    if (shape and shape[0] > _MOST_ROWS) or declared > most or (images.chunks and piece > _MOST_PIECE_BYTES):
        raise BadInput(
            Reason.TOO_LARGE,
            f"{path}: `images` claims {shape} in chunks of {images.chunks}, more than the file can hold; copy it again",
        )


def _layout(path: Path, file: h5py.File, images: h5py.Dataset) -> tuple[str, ...]:
    """Band names of a float file, () for uint8 RGB."""
    _check_size(path, images)
    shape, dtype = images.shape, images.dtype
    if len(shape or ()) == 4 and min(shape[1:]) >= 1 and max(shape[1:]) <= MAX_SIDE:
        if dtype == np.uint8 and shape[3] == 3:
            return ()
        if dtype.kind == "f":
            named = images.attrs.get("bands", file.attrs.get("bands", ""))  # "grz", or a list of letters
            letters = [t.decode() if isinstance(t, bytes) else str(t) for t in np.atleast_1d(named).tolist()]
            bands = tuple("".join(letters))
            if are_bands(bands, shape[1]):
                return bands
            raise BadInput(
                Reason.WRONG_BANDS,
                f"{path}: {shape[1]} planes, attribute bands = {''.join(bands)!r}; expected such as 'grz'",
            )
    raise BadInput(
        Reason.WRONG_SHAPE,
        f"{path}: `images` is {dtype} {shape}; expected uint8 (N, H, W, 3) RGB or float (N, band, H, W) in nanomaggies",
    )


def _chunk(
    path: Path, images: h5py.Dataset, columns: _Columns, first: int, last: int, source: str
) -> Iterator[Stamp | QuarantineEntry]:
    """Rows `first` to `last`. A chunk that cannot be read is tried row by row: damage costs its own rows only."""
    try:
        pixels = images[first:last]
    except PARSE_ERRORS as error:
        if is_transient(error):
            raise
        if last - first == 1:
            detail = f"{path}: row {first} cannot be read ({error}); copy the file again"
            yield quarantine_entry(path, f"{source}#{first}", BadInput(Reason.UNREADABLE_FILE, detail))
        else:
            for row in range(first, last):
                yield from _chunk(path, images, columns, row, row + 1, source)
        return
    for row, image in zip(range(first, last), pixels, strict=True):
        yield _stamp(path, image, columns, row, source)


def _stamp(path: Path, image: np.ndarray, columns: _Columns, row: int, source: str) -> Stamp | QuarantineEntry:
    i = row - columns.start
    ra, dec = float(columns.ra[i]), float(columns.dec[i])
    if not on_sky(ra, dec):
        detail = f"{path}: row {row} has ra {ra}, dec {dec}; expected degrees"
        return quarantine_entry(path, f"{source}#{row}", BadInput(Reason.NO_POSITION, detail))
    if columns.bands:
        image, quality, bad = examine_flux(*in_band_order(image, columns.bands))
    else:
        quality, bad = examine_rgb(image)
    scale = float(columns.pixscale[i])
    return Stamp(
        source_name=f"{source}#{row}",
        pixels=image,
        ra=wrapped(ra),
        dec=dec,
        pixscale=scale if np.isfinite(scale) and scale > 0 else np.nan,
        quality=quality,
        bad_pixel_fraction=bad,
        survey_layer=columns.layer,
        rendering=columns.rendering,
        survey_keys=survey_keys(*columns.keys[i]),
    )
