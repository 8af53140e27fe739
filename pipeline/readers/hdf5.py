"""HDF5 files of cutouts: the Galaxy10 layout (RGB) and float cutouts in nanomaggies, read in bounded chunks.

`images` is (N, H, W, 3) uint8 RGB or (N, band, H, W) float with an attribute `bands`; `ra` and `dec` are needed,
`pxscale`, `release`, `brickid` and `objid` are optional.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from catalogs.tile_store import Quarantined
from pipeline.errors import PARSE_ERRORS, BadInput, Reason, is_transient
from pipeline.identity import survey_keys
from pipeline.readers.settings import InputSettings
from pipeline.stamps import BANDS, MAX_SIDE, Stamp, examine_flux

_CHUNK_ROWS = 32


def count_rows(path: Path) -> int:
    """Number of images, or 0 when the file can not be read (its only tile will say why)."""
    try:
        with h5py.File(path, "r") as file:
            return int(file["images"].shape[0])
    except PARSE_ERRORS:
        return 0


def read_hdf5(path: Path, start: int, stop: int, source: str, settings: InputSettings) -> Iterator[Stamp | Quarantined]:
    """One stamp or quarantine entry for each row from `start` to `stop`.

    Raises
    ------
    BadInput : nothing in the file can be used (not HDF5, a dataset missing, arrays of different lengths).
    OSError : the system failed.
    """
    try:
        file = h5py.File(path, "r")
    except PARSE_ERRORS as error:
        if is_transient(error):
            raise
        raise BadInput(Reason.UNREADABLE_FILE, f"{path} can not be read as HDF5 ({error}); copy it again") from error
    with file:
        columns = _columns(path, file, start, stop, settings)
        for first in range(start, stop, _CHUNK_ROWS):
            yield from _chunk(path, file["images"], columns, first, min(first + _CHUNK_ROWS, stop), source)


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


def _columns(path: Path, file: h5py.File, start: int, stop: int, settings: InputSettings) -> _Columns:
    images = _dataset(path, file, "images")
    bands = _layout(path, file, images)
    for name in ("ra", "dec", "pxscale", "release", "brickid", "objid"):
        if name in file and file[name].shape != (len(images),):
            raise BadInput(
                Reason.ARRAYS_DIFFER, f"{path}: `{name}` has shape {file[name].shape}, `images` has {len(images)} rows"
            )
    rows = slice(start, stop)
    try:
        ra, dec = (np.asarray(_dataset(path, file, name)[rows], dtype=np.float64) for name in ("ra", "dec"))
        pixscale = np.asarray(
            file["pxscale"][rows] if "pxscale" in file else np.full(len(ra), np.nan), dtype=np.float64
        )
        keys = np.full((len(ra), 3), -1)
        if all(name in file for name in ("release", "brickid", "objid")):
            keys = np.stack([file[name][rows] for name in ("release", "brickid", "objid")], axis=1)
    except PARSE_ERRORS as error:
        if is_transient(error):
            raise
        raise BadInput(
            Reason.UNREADABLE_FILE, f"{path}: positions can not be read ({error}); copy the file again"
        ) from error
    simulated = bool(file.attrs.get("simulated", False))
    layer = ("simulated" if simulated else "hdf5") + "-" + ("".join(bands) or "rgb")
    rendering = settings.flux_rendering if bands else settings.hdf5_rendering
    return _Columns(start, ra, dec, pixscale, keys, bands, layer, rendering)


def _dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    if not isinstance(file.get(name), h5py.Dataset):
        raise BadInput(Reason.MISSING_DATASET, f"{path}: no dataset `{name}`; found {sorted(file)[:10]}")
    return file[name]


def _layout(path: Path, file: h5py.File, images: h5py.Dataset) -> tuple[str, ...]:
    """Band names of a float file, () for uint8 RGB."""
    shape, dtype = images.shape, images.dtype
    if len(shape) == 4 and max(shape[1:]) <= MAX_SIDE:
        if dtype == np.uint8 and shape[3] == 3:
            return ()
        if dtype.kind == "f":
            text = images.attrs.get("bands", file.attrs.get("bands", ""))
            bands = tuple(text.decode() if isinstance(text, bytes) else str(text))
            if len(bands) == shape[1] and set(bands) & set(BANDS):
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
) -> Iterator[Stamp | Quarantined]:
    """Rows `first` to `last`. A chunk that can not be read is tried row by row: damage costs its own rows only."""
    try:
        pixels = images[first:last]
    except PARSE_ERRORS as error:
        if is_transient(error):
            raise
        if last - first == 1:
            detail = f"{path}: row {first} can not be read ({error}); copy the file again"
            yield _refuse(path, source, first, Reason.UNREADABLE_FILE, detail)
        else:
            for row in range(first, last):
                yield from _chunk(path, images, columns, row, row + 1, source)
        return
    for row, image in zip(range(first, last), pixels, strict=True):
        yield _stamp(path, image, columns, row, source)


def _refuse(path: Path, source: str, row: int, reason: Reason, detail: str) -> Quarantined:
    return Quarantined(file=str(path), source_name=f"{source}#{row}", reason=reason, detail=detail)


def _stamp(path: Path, image: np.ndarray, columns: _Columns, row: int, source: str) -> Stamp | Quarantined:
    i = row - columns.start
    ra, dec = float(columns.ra[i]), float(columns.dec[i])
    if not (np.isfinite([ra, dec]).all() and abs(dec) <= 90):
        detail = f"{path}: row {row} has ra {ra}, dec {dec}; expected degrees"
        return _refuse(path, source, row, Reason.NO_POSITION, detail)
    quality, bad = 0, 0.0
    if columns.bands:
        present = tuple(band in columns.bands for band in BANDS)
        blank = np.zeros_like(image[0])
        planes = [image[columns.bands.index(band)] if band in columns.bands else blank for band in BANDS]
        image, quality, bad = examine_flux(np.stack(planes), present)
    scale = float(columns.pixscale[i])
    return Stamp(
        source_name=f"{source}#{row}",
        pixels=image,
        ra=ra % 360,
        dec=dec,
        pixscale=scale if np.isfinite(scale) and scale > 0 else np.nan,
        quality=quality,
        bad_pixel_fraction=bad,
        survey_layer=columns.layer,
        rendering=columns.rendering,
        survey_keys=survey_keys(*columns.keys[i]),
    )
