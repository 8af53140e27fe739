"""Folders of JPEG or PNG pictures with a table of labels, opened as labelled images of the ten classes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.config.inputs import InputSettings
from pipeline.core.classes import CLASS_NAMES, CLASS_SLUGS
from pipeline.core.errors import BadInput, UserError
from pipeline.datasets.image_set import ImageSet
from pipeline.readers.images import read_picture, read_table

LABEL_COLUMNS = ("label", "galaxy10_label", "galaxy10_like_label", "label_id", "ans", "class_id")


def open_pictures(folder: Path, table: Path, settings: InputSettings, label_column: str = "") -> ImageSet:
    """Open a folder of pictures (or its subfolder `images`) with a table of labels; negative labels are left out.

    Raises
    ------
    UserError : no label column, no label in range, or a picture is missing or cannot be read.
    """
    try:
        rows = read_table(table)
    except (BadInput, OSError) as error:
        raise UserError(f"{table}: {error}") from error
    column = label_column_of(table, list(next(iter(rows.values()), {})), label_column)
    labelled = {name: as_label(row.get(column), table, column) for name, row in rows.items()}
    names = sorted(name for name, label in labelled.items() if label >= 0)
    labels = np.array([labelled[name] for name in names], dtype=np.int64)
    if not names:
        raise UserError(f"{table}: no row with a label (column {column!r}, negative means none)")
    if labels.max() >= len(CLASS_SLUGS):
        raise UserError(f"{table}: labels from {labels.min()} to {labels.max()}, expected 0 to {len(CLASS_SLUGS) - 1}")
    paths = [_find_picture(folder, name, table) for name in names]
    held_out = np.flatnonzero([rows[name].get("split", "").strip().lower() == "test" for name in names])

    def values(column: str) -> np.ndarray:
        return np.array([as_number(rows[name].get(column)) for name in names])

    return ImageSet(
        source=str(folder.absolute()),
        kind="pictures:" + hashlib.sha256("|".join(names).encode()).hexdigest()[:16],
        labels=labels,
        ra=values("ra"),
        dec=values("dec"),
        pixscale=values("pixscale"),
        rendering=settings.picture_rendering,
        raw=lambda: picture_blocks(paths),
        class_slugs=CLASS_SLUGS,
        class_names=CLASS_NAMES,
        files=tuple(path.absolute() for path in paths),
        content=",".join(str(path.stat().st_size) for path in paths),
        official_test=held_out if len(held_out) else None,
    )


def picture_blocks(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """The pictures in order, each as uint8 (1, H, W, 3). Raises UserError for one that cannot be read."""
    for path in paths:
        try:
            yield read_picture(path)[None]
        except BadInput as bad:
            raise UserError(f"{bad.detail}, or take it out of the table of labels") from bad


def label_column_of(table: Path, columns: Sequence[str], wanted: str = "") -> str:
    """The column (lower case) of a table that holds its labels: the one wanted, or the one known by its name.

    Raises
    ------
    UserError : there is none, or several are known by their names.
    """
    if wanted:
        if wanted.lower() not in columns:
            raise UserError(f"{table}: no column {wanted!r} (--label-column); found {', '.join(columns)}")
        return wanted.lower()
    found = [name for name in LABEL_COLUMNS if name in columns]
    if len(found) != 1:
        raise UserError(
            f"{table}: which column holds the labels? Found {found or 'none'} of {', '.join(LABEL_COLUMNS)}; name it "
            "with --label-column"
        )
    return found[0]


def as_label(text: str | None, table: Path, column: str) -> int:
    """The class number that a cell holds, −1 where it is empty. Raises UserError for anything else."""
    number = as_number(text)
    if text in (None, ""):
        return -1
    if not number.is_integer():  # NaN and infinity are none either
        raise UserError(f"{table}: {column} = {text!r} is no class number")
    return int(number)


def as_number(text: str | None) -> float:
    """The number that a cell holds, NaN if it holds none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _find_picture(folder: Path, name: str, table: Path) -> Path:
    for place in (folder / name, folder / "images" / name):
        if place.is_file():
            return place
    raise UserError(f"{table} names {name}, which is neither in {folder} nor in {folder / 'images'}")
