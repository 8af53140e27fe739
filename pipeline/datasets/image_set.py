"""Labelled images to train and test on.

An `ImageSet` knows labels, classes, positions and how to load pixels through a preprocessing, in chunks. File formats
are known to the modules that make image sets (`galaxy10`, `image_folder`, `reference_sets`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from models.preprocessing import Preprocessing
from pipeline.core.errors import UserError
from pipeline.core.progress import track
from pipeline.datasets.pixel_cache import ensure_pixels, map_pixels

STATISTICS_ROWS = 2000  # images that mean and deviation are measured on
_CHUNK = 64

RawImages = Callable[[], Iterator[np.ndarray]]
"""Yields uint8 (n, H, W, 3) RGB chunks, together all images in order."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images. Arrays have N entries in the order of the source.

    `labels` int64, indices into `class_slugs`; `ra`, `dec` float64 degrees, NaN if unknown; `pixscale` float64
    arcsec, NaN if unknown. `field_pixels` is the side of the images in their own pixels. `official_test` holds the
    rows of the test split that the data set comes with, sorted int64; None if it has none. `mag_r` and `psfsize`
    (FWHM in r, arcsec) are float64, None if the source does not tell. `files` are those that the pixels come from.
    `content` changes when the pixels do, as far as a quick look tells: other pixels make another model.
    """

    source: str
    kind: str
    labels: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    pixscale: np.ndarray
    rendering: str
    raw: RawImages
    class_slugs: tuple[str, ...]
    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    content: str
    simulated: bool = False
    mag_r: np.ndarray | None = None
    psfsize: np.ndarray | None = None
    field_pixels: int = 256
    official_test: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over kind, classes, content, labels, positions, scales and official test rows."""
        heading = [self.kind, self.rendering, str(self.field_pixels), self.content, *self.class_slugs]
        digest = hashlib.sha256("\0".join(heading).encode())
        for array in (self.labels, self.ra, self.dec, self.pixscale, self.official_test):
            digest.update(b"|" if array is None else np.ascontiguousarray(array).tobytes() + b"|")
        return digest.hexdigest()[:16]

    def pixels(self, preprocessing: Preprocessing, cache: Path) -> Tensor:
        """Model-ready pixels of all images: uint8 (N, 3, S, S), mapped from `pixel_file`; raises what that raises."""
        return map_pixels(self.pixel_file(preprocessing, cache), self._shape(preprocessing))

    def pixel_file(self, preprocessing: Preprocessing, cache: Path) -> Path:
        """The file below the folder `cache` that holds the model-ready pixels of all images, uint8 (N, 3, S, S).

        The file is written by the first call, chunk by chunk. Its name follows the images, the sizes and times of
        change of the files they come from, and the preprocessing: what changed is read again.

        Raises
        ------
        UserError : an image cannot be read, the source changed since it was opened, or the disk is full.
        """
        path = self.pixel_path(preprocessing, cache)

        def write(file: BinaryIO) -> None:
            self._write(file, preprocessing)
            if self.pixel_path(preprocessing, cache) != path:
                raise UserError(f"{self.source} changed while it was read; try again when nobody writes it")

        ensure_pixels(path, self._shape(preprocessing), write)
        return path

    def pixel_path(self, preprocessing: Preprocessing, cache: Path) -> Path:
        """The name of that file, whether it is there or not."""
        # The normalisation is applied later, on the device: recipes that differ in it share their pixels.
        of_pixels = replace(preprocessing, mean=Preprocessing.mean, std=Preprocessing.std).digest
        key = hashlib.sha256(f"{of_pixels}|{self._state()}".encode()).hexdigest()[:16]
        return cache / f"{self.digest}-{key}.u8"

    def _shape(self, preprocessing: Preprocessing) -> tuple[int, int, int, int]:
        return (len(self), 3, preprocessing.image_size, preprocessing.image_size)

    def _write(self, file: BinaryIO, preprocessing: Preprocessing) -> None:
        first = 0
        with track(f"reading {Path(self.source).name}", len(self)) as step:
            for block in self.raw():
                for chunk in np.array_split(block, range(_CHUNK, len(block), _CHUNK)):
                    last = first + len(chunk)
                    rgb = torch.from_numpy(np.ascontiguousarray(chunk))
                    pixels = preprocessing.pixels_from_rgb(rgb, self.pixscale[first:last])
                    file.write(pixels.contiguous().numpy().data)
                    step(len(chunk), "")
                    first = last
        if first != len(self):
            raise UserError(
                f"{self.source}: {first} images, {len(self)} when it was opened; it must not change meanwhile"
            )

    def _state(self) -> str:
        """Digest of names, sizes and times of change of the files."""
        digest = hashlib.sha256()
        for path in self.files:
            try:
                stat = path.stat()
            except FileNotFoundError as error:
                raise UserError(f"{path} is no longer there; {self.source} must not change meanwhile") from error
            digest.update(f"{path}|{stat.st_size}|{stat.st_mtime_ns}\0".encode())
        return digest.hexdigest()


def channel_statistics(
    pixels: Tensor, rows: np.ndarray
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of R, G, B, in 0…1, over pixels uint8 (N, 3, S, S) at training rows int64 (n,).

    They are measured on at most 2,000 rows spread evenly, and given to four decimals: they enter the recipe's digest.
    A channel without any contrast counts as if it had that of one grey level.

    Raises
    ------
    UserError : there are no rows.
    """
    if len(rows) == 0:
        raise UserError("no training images to measure the normalisation on")
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), STATISTICS_ROWS)).astype(np.int64))]
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for start in range(0, len(chosen), _CHUNK):
        values = pixels[torch.from_numpy(chosen[start : start + _CHUNK])].double() / 255
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
    count = len(chosen) * pixels.shape[2] * pixels.shape[3]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1 / 255**2).sqrt()
    return _three(mean), _three(std)


def _three(values: Tensor) -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 4) for value in values)
    return red, green, blue
