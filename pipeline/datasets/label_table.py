"""Tables of positions and labels without pixels (CSV): enough to split a data set before its images are at hand."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.core.classes import CLASS_SLUGS
from pipeline.core.errors import UserError
from pipeline.datasets.galaxy10 import label_problems, position_problems
from pipeline.datasets.image_folder import as_label, as_number, label_column_of


@dataclass(frozen=True)
class LabelTable:
    """Rows of the ten classes: `labels` int64 (N,); `ra`, `dec` float64 (N,) degrees. Row numbers are those of the
    table, from 0, which for the table of a Galaxy10 file are those of the file."""

    source: str
    labels: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    class_slugs: tuple[str, ...] = CLASS_SLUGS
    official_test: np.ndarray | None = None

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over labels and positions."""
        digest = hashlib.sha256("\0".join(self.class_slugs).encode())
        for array in (self.labels, self.ra, self.dec):
            digest.update(np.ascontiguousarray(array).tobytes() + b"|")
        return digest.hexdigest()[:16]


def read_label_table(path: Path, label_column: str = "") -> LabelTable:
    """Read `ra`, `dec` in degrees and a column of labels from a CSV file.

    Raises
    ------
    UserError : the table cannot be read, a column is missing, or a row has no label or no position on the sky.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            columns = [name.strip().lower() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = list(reader)
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV ({error})") from error
    if missing := [name for name in ("ra", "dec") if name not in columns]:
        raise UserError(f"{path}: no column {' and '.join(missing)}; found {', '.join(columns)}")
    column = label_column_of(path, columns, label_column)
    labels = np.array([as_label(row[column], path, column) for row in rows], dtype=np.int64)
    ra, dec = (np.array([as_number(row[name]) for row in rows]) for name in ("ra", "dec"))
    if found := label_problems(labels) + position_problems({"ra": ra, "dec": dec}):
        raise UserError(f"{path}: {found[0]}")
    return LabelTable(str(path.absolute()), labels, ra, dec)
