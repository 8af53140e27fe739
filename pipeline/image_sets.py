"""Labelled images to train and test on: the Galaxy10 file, folders of pictures with a table; and their splits.

An `ImageSet` knows labels, positions and how to load pixels through a recipe, in chunks; images as large as the file
itself are never in memory, only what the network will see.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from models.recipe import Recipe
from pipeline.errors import PARSE_ERRORS, BadInput, UserError, is_transient
from pipeline.progress import track
from pipeline.readers.pictures import read_picture, read_table
from pipeline.readers.settings import InputSettings

LABEL_COLUMNS = ("label", "galaxy10_label", "galaxy10_like_label", "label_id", "ans", "class_id")
_CHUNK = 64
_LOOK = 16  # images read to tell whether pixels changed
_SAME_POSITION = 1.0  # arcsec

RawImages = Callable[[], Iterator[np.ndarray]]
"""Yields uint8 (n, H, W, 3) RGB chunks, together all images in order."""


@dataclass(frozen=True)
class ImageSet:
    """Labelled images. Arrays have N entries in the order of the file.

    `labels` int64; `ra`, `dec` float64 degrees, NaN where unknown; `pixscale` float64 arcsec, NaN where unknown.
    `content` changes when the pixels do, as far as a quick look tells: other pixels make another model.
    """

    source: str
    kind: str
    labels: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    pixscale: np.ndarray
    rendering: str
    simulated: bool
    raw: RawImages
    content: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over kind, content, labels, positions and scales."""
        digest = hashlib.sha256(f"{self.kind}:{self.rendering}:{self.content}".encode())
        for array in (self.labels, self.ra, self.dec, self.pixscale):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def pixels(self, recipe: Recipe) -> Tensor:
        """Model-ready pixels of all images: uint8 (N, 3, S, S)."""
        size = recipe.image_size
        pixels = torch.empty(len(self), 3, size, size, dtype=torch.uint8)
        first = 0
        with track(f"reading {Path(self.source).name}", len(self)) as step:
            for chunk in self.raw():
                last = first + len(chunk)
                pixels[first:last] = recipe.pixels_from_rgb(torch.from_numpy(chunk), self.pixscale[first:last])
                step(len(chunk), "")
                first = last
        if first != len(self):
            raise UserError(
                f"{self.source}: {first} images, {len(self)} when it was opened; it must not change meanwhile"
            )
        return pixels


@dataclass(frozen=True)
class Split:
    """Disjoint, sorted row indices int64 of the three sets."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over the three lists."""
        digest = hashlib.sha256()
        for rows in (self.train, self.validation, self.test):
            digest.update(rows.astype("<i8").tobytes() + b"|")
        return digest.hexdigest()[:16]

    def to_dict(self) -> dict[str, object]:
        """Plain values for a file."""
        return {
            "digest": self.digest,
            "train": self.train.tolist(),
            "validation": self.validation.tolist(),
            "test": self.test.tolist(),
        }


def open_images(
    *,
    galaxy10: Path | None,
    pictures: Path | None,
    table: Path | None,
    default: Path,
    settings: InputSettings,
    label_column: str,
    num_classes: int,
) -> ImageSet:
    """Open what the user named: a Galaxy10 file, or pictures with a table; the file `default` when nothing was named.

    Raises
    ------
    UserError : both or half of it was named, or what was named is not there or not usable.
    """
    if galaxy10 and (pictures or table):
        raise UserError("give either --galaxy10 FILE or --images DIR with --labels CSV")
    if bool(pictures) != bool(table):
        raise UserError("--images DIR and --labels CSV go together")
    if pictures and table:
        for path, what in ((pictures, pictures.is_dir()), (table, table.is_file())):
            if not what:
                raise UserError(f"{path}: not found; --images takes a folder, --labels a CSV file")
        return open_pictures(pictures, table, settings, num_classes, label_column)
    path = galaxy10 or default
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; name labelled images with --galaxy10 FILE, or --images DIR --labels CSV "
            "(`morphcat simulate --benchmark 1200` makes a simulated file)"
        )
    return open_galaxy10(path, settings, num_classes)


def open_galaxy10(path: Path, settings: InputSettings, num_classes: int) -> ImageSet:
    """Open a file of the Galaxy10 layout: `images` (N, H, W, 3) uint8, `ans`, and where there `ra`, `dec`, `pxscale`.

    Raises
    ------
    UserError : the file can not be read, a dataset is missing or has another length, a label is out of range.
    """
    try:
        with h5py.File(path, "r") as file:
            shape, dtype = file["images"].shape, file["images"].dtype
            columns = {
                name: np.asarray(file[name][:], dtype=np.float64) if name in file else np.full(shape[0], np.nan)
                for name in ("ra", "dec", "pxscale")
            }
            labels = np.asarray(file["ans"][:]).astype(np.int64)
            simulated = bool(file.attrs.get("simulated", False))
            content = _look(file["images"])
    except PARSE_ERRORS as error:
        raise UserError(
            f"{path} can not be read as a Galaxy10 file ({error}); it needs `images` (N, H, W, 3) and `ans` (N,)"
        ) from error
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8:
        raise UserError(f"{path}: `images` is {dtype} {shape}, expected uint8 (N, H, W, 3)")
    for name, column in {"ans": labels, **columns}.items():
        if column.shape != (shape[0],):
            raise UserError(f"{path}: `{name}` has shape {column.shape}, `images` has {shape[0]} rows")
    _check_labels(labels, num_classes, path)
    return ImageSet(
        source=str(path.absolute()),
        kind="galaxy10",
        labels=labels,
        ra=columns["ra"],
        dec=columns["dec"],
        pixscale=columns["pxscale"],
        rendering=settings.hdf5_rendering,
        simulated=simulated,
        raw=lambda: _galaxy10_chunks(path),
        content=content,
    )


def open_pictures(
    folder: Path, table: Path, settings: InputSettings, num_classes: int, label_column: str = ""
) -> ImageSet:
    """Open a folder of pictures (or its subfolder `images`) with a table of labels; negative labels are left out.

    Raises
    ------
    UserError : no label column, no label in range, or a picture is missing or can not be read.
    """
    try:
        rows = read_table(table)
    except (BadInput, OSError) as error:
        raise UserError(f"{table}: {error}") from error
    column = _label_column(table, next(iter(rows.values()), {}), label_column)
    labelled = {name: _as_label(row.get(column), table, column) for name, row in rows.items()}
    names = sorted(name for name, label in labelled.items() if label >= 0)
    labels = np.array([labelled[name] for name in names], dtype=np.int64)
    if not names:
        raise UserError(f"{table}: no row with a label (column {column!r}, negative means none)")
    _check_labels(labels, num_classes, table)
    paths = [_find_picture(folder, name, table) for name in names]

    def values(column: str) -> np.ndarray:
        return np.array([_float(rows[name].get(column)) for name in names])

    return ImageSet(
        source=str(folder.absolute()),
        kind="pictures:" + hashlib.sha256("|".join(names).encode()).hexdigest()[:16],
        labels=labels,
        ra=values("ra"),
        dec=values("dec"),
        pixscale=values("pixscale"),
        rendering=settings.picture_rendering,
        simulated=False,
        raw=lambda: _picture_chunks(paths),
        content=",".join(str(path.stat().st_size) for path in paths),
    )


def position_groups(ra: np.ndarray, dec: np.ndarray, radius: float = _SAME_POSITION) -> np.ndarray:
    """Number of the group of each position, int64 (N,): positions within `radius` arcsec of each other share one.

    A row without a position (NaN) is a group of its own.
    """
    groups = np.arange(len(ra))
    known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if len(known) == 0:
        return groups
    lon, lat = np.radians(ra[known]), np.radians(dec[known])
    vectors = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    chord = 2 * math.sin(math.radians(radius / 3600) / 2)
    pairs = cKDTree(vectors).query_pairs(chord, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), (known[pairs[:, 0]], known[pairs[:, 1]])), shape=(len(ra), len(ra)))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)


def split(images: ImageSet, *, validation: float, test: float, seed: int) -> Split:
    """Stratified, seeded split by sky position: all rows of one position fall into one set.

    Groups are dealt out class by class (the class of a group's first row), so that each set has each class in
    proportion.
    """
    groups = position_groups(images.ra, images.dec)
    _, first = np.unique(groups, return_index=True)
    rng = np.random.default_rng([seed, 0x5EED])
    where = np.zeros(groups.max() + 1, dtype=np.int8)  # set of each group: 0 train, 1 validation, 2 test
    for label in np.unique(images.labels):
        members = rng.permutation(groups[first[images.labels[first] == label]])
        n_test, n_validation = round(len(members) * test), max(1, round(len(members) * validation))
        if len(members) < 3:
            continue  # too few to share out: the training gets them
        where[members[:n_test]] = 2
        where[members[n_test : n_test + n_validation]] = 1
    of_row = where[groups]
    return Split(*(np.flatnonzero(of_row == k).astype(np.int64) for k in range(3)))


def _look(images: h5py.Dataset) -> str:
    """Digest of a few images spread over the file: one that was rendered anew is another."""
    digest = hashlib.sha256()
    for row in np.unique(np.linspace(0, len(images) - 1, _LOOK).astype(int)) if len(images) else ():
        digest.update(np.ascontiguousarray(images[int(row)]).tobytes())
    return digest.hexdigest()[:16]


def _galaxy10_chunks(path: Path) -> Iterator[np.ndarray]:
    with h5py.File(path, "r") as file:
        images = file["images"]
        for first in range(0, len(images), _CHUNK):
            try:
                chunk = images[first : first + _CHUNK]
            except PARSE_ERRORS as error:
                if is_transient(error):
                    raise
                raise UserError(
                    f"{path}: images {first} to {first + _CHUNK} can not be read ({error}); copy the file again"
                ) from error
            yield chunk


def _picture_chunks(paths: list[Path]) -> Iterator[np.ndarray]:
    for path in paths:
        try:
            yield read_picture(path)[None]
        except BadInput as bad:
            raise UserError(f"{bad.detail}, or give its row a negative label") from bad


def _find_picture(folder: Path, name: str, table: Path) -> Path:
    for place in (folder / name, folder / "images" / name):
        if place.is_file():
            return place
    raise UserError(f"{table} names {name}, which is neither in {folder} nor in {folder / 'images'}")


def _label_column(table: Path, row: dict[str, str], wanted: str) -> str:
    if wanted:
        if wanted.lower() not in row:
            raise UserError(f"{table}: no column {wanted!r} (training.label_column); found {', '.join(row)}")
        return wanted.lower()
    found = [name for name in LABEL_COLUMNS if name in row]
    if len(found) != 1:
        raise UserError(
            f"{table}: which column holds the labels? Found {found or 'none'} of {', '.join(LABEL_COLUMNS)}; name it "
            "with --label-column"
        )
    return found[0]


def _as_label(text: str | None, table: Path, column: str) -> int:
    number = _float(text)
    if text in (None, ""):
        return -1
    if not number.is_integer():  # NaN and infinity are none either
        raise UserError(f"{table}: {column} = {text!r} is no class number")
    return int(number)


def _float(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _check_labels(labels: np.ndarray, num_classes: int, path: Path) -> None:
    if len(labels) == 0:
        raise UserError(f"{path}: no labelled images")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"{path}: labels from {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")
