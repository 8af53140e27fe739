"""Small input files made by code, in the forms in which real ones arrive."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.io import fits
from PIL import Image

from catalogs.tiles import QuarantineEntry
from pipeline.readers.stamps import Stamp

SIDE = 24


def galaxy(seed: int = 0, side: int = SIDE, bands: int = 3) -> np.ndarray:
    """A round blob on a little noise: float32 (band, side, side), nanomaggies."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    blob = np.exp(-(x**2 + y**2) / (2 * (2 + rng.random() * side / 6) ** 2))
    scale = rng.uniform(0.1, 1, (bands, 1, 1))
    return (scale * blob + rng.normal(0, 0.003, (bands, side, side))).astype(np.float32)


def picture(seed: int = 0, side: int = SIDE) -> np.ndarray:
    """The blob as uint8 (side, side, 3)."""
    return (galaxy(seed, side).transpose(1, 2, 0) * 200 + 40).clip(0, 255).astype(np.uint8)


def cutout_header(ra: float = 150.0, dec: float = 2.0, pixscale: float = 0.262, side: int = SIDE) -> dict[str, Any]:
    return {
        "SURVEY": "LegacySurvey",
        "VERSION": "DR9-south",
        "IMAGETYP": "image",
        "BANDS": "grz",
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRVAL1": ra,
        "CRVAL2": dec,
        "CRPIX1": side / 2 + 0.5,
        "CRPIX2": side / 2 + 0.5,
        "CD1_1": -pixscale / 3600,
        "CD1_2": 0.0,
        "CD2_1": 0.0,
        "CD2_2": pixscale / 3600,
    }


def write_cutout(path: Path, data: np.ndarray | None = None, **cards: Any) -> Path:
    """A viewer cutout; a card given as None is left out. `ra`, `dec`, `pixscale` set the WCS."""
    data = galaxy() if data is None else data
    place = {name: cards.pop(name) for name in ("ra", "dec", "pixscale") if name in cards}
    header = fits.Header()
    for key, value in {**cutout_header(side=data.shape[-1], **place), **cards}.items():
        if value is not None:
            header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.PrimaryHDU(data.astype(">f4"), header).writeto(path, overwrite=True)
    return path


def write_cutouts(folder: Path, count: int, *, first: int = 0, side: int = SIDE) -> Path:
    for i in range(first, first + count):
        write_cutout(folder / f"g{i:03d}.fits", galaxy(i, side), ra=150 + i / 100, dec=2 + i / 200)
    return folder


def hdf5_columns(rows: int, side: int = SIDE, *, flux: bool = False) -> dict[str, np.ndarray]:
    images = [galaxy(i, side) if flux else picture(i, side) for i in range(rows)]
    empty = np.zeros((0, 3, side, side), "f4") if flux else np.zeros((0, side, side, 3), "u1")
    return {
        "images": np.stack(images) if rows else empty,
        "ra": 10 + np.arange(rows) / 50,
        "dec": -5 + np.arange(rows) / 50,
        "pxscale": np.full(rows, 0.262),
    }


def write_hdf5(path: Path, columns: dict[str, np.ndarray], *, chunk: int = 1, **attributes: Any) -> Path:
    """Images in compressed chunks of `chunk` rows, the other columns as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            if name == "images" and len(values):
                file.create_dataset(name, data=values, chunks=(chunk, *values.shape[1:]), compression="gzip")
            else:
                file[name] = values
        file.attrs.update(attributes)
    return path


def write_pictures(folder: Path, count: int, *, table: Path | None = None, side: int = SIDE) -> Path:
    """JPEG pictures with a table of positions in the folder, or elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(picture(i, side)).save(folder / f"p{i:03d}.jpg", quality=95)
    rows = [{"file": f"p{i:03d}.jpg", "ra": 30 + i / 10, "dec": i / 10, "pixscale": 0.262} for i in range(count)]
    write_table(table or folder / "positions.csv", rows)
    return folder


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as handle:
        table = csv.DictWriter(handle, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def sorted_out(items: Iterator[Stamp | QuarantineEntry]) -> tuple[list[Stamp], list[QuarantineEntry]]:
    """What a reader gave: stamps, and refused inputs."""
    everything = list(items)
    stamps = [item for item in everything if isinstance(item, Stamp)]
    return stamps, [item for item in everything if isinstance(item, QuarantineEntry)]
