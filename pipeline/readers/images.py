"""Folders of JPEG or PNG pictures with a table of positions."""

from __future__ import annotations

import csv
import math
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from catalogs.tiles import QuarantineEntry
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import BadInput, Reason, is_transient
from pipeline.core.object_ids import printable, survey_keys
from pipeline.core.parsing import parsing
from pipeline.readers.stamps import MAX_SIDE, Stamp, examine_rgb, on_sky, quarantine_entry, wrapped

_FILE_COLUMNS = ("file", "filename", "file_name", "name", "image")
_SCALE_COLUMNS = ("pixscale", "pxscale", "pixel_scale")
_KEY_COLUMNS = ("release", "brickid", "objid")


def read_pictures(
    folder: Path, names: list[str], table: Path | None, source: str, settings: InputSettings
) -> Iterator[Stamp | QuarantineEntry]:
    """One stamp or one quarantine entry for each picture, in the given order.

    Raises
    ------
    BadInput : the table cannot be read or names no pictures.
    OSError : the system failed (disk, network).
    """
    rows = read_table(table, folder, frozenset(names)) if table else {}
    for name in names:
        source_name = printable(f"{source}/{name}")
        try:
            yield _stamp(folder / name, source_name, rows.get(name), table, settings)
        except BadInput as bad:
            yield quarantine_entry(folder / name, source_name, bad)


def read_table(
    path: Path, folder: Path | None = None, names: Container[str] | None = None
) -> dict[str, dict[str, str]]:
    """Rows of a CSV by the name of their picture; column names in lower case.

    Of a table in the folder above `folder`, a row that names another folder is left out. With `names`, only those
    pictures' rows are kept, so that memory is bounded by the tile and not by the table. Two rows of one picture that
    differ make it a picture without a row: nobody can tell which is right.

    Raises
    ------
    BadInput : the table cannot be read or has no column that names files.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            columns = [name.strip().lower() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            file_column = next((c for c in _FILE_COLUMNS if c in columns), None)
            if file_column is None:
                raise BadInput(
                    Reason.NO_POSITION,
                    f"{path}: no column names the pictures; expected one of {_FILE_COLUMNS}, found {columns[:12]}",
                )
            rows: dict[str, dict[str, str]] = {}
            differing: set[str] = set()
            for row in reader:
                place = Path(row[file_column] or "")
                if (names is not None and place.name not in names) or not (
                    folder is None or _lies_in(place, folder, path)
                ):
                    continue
                if rows.setdefault(place.name, row) != row:
                    differing.add(place.name)
            return {name: row for name, row in rows.items() if name not in differing}
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        if is_transient(error):
            raise
        raise BadInput(Reason.UNREADABLE_FILE, f"{path} cannot be read as CSV ({error})") from error


def _lies_in(place: Path, folder: Path, table: Path) -> bool:
    """Whether a picture that a table calls `place` may lie in `folder`: a bare name, or the folder's own name."""
    within = place.parent.parts
    return table.parent == folder or not within or within == folder.parts[-len(within) :]


def read_picture(path: Path) -> np.ndarray:
    """Pixels uint8 (H, W, 3) RGB, row 0 at the top. Raises BadInput when it is no picture of a sensible size."""
    try:
        with parsing(path, "a picture"):
            if path.stat().st_size == 0:
                raise BadInput(Reason.EMPTY_FILE, f"{path} has no bytes; download it again")
            with Image.open(path, formats=("JPEG", "PNG")) as image:  # no other parser of Pillow for files from outside
                if max(image.size) > MAX_SIDE:
                    raise BadInput(
                        Reason.TOO_LARGE, f"{path}: {image.size} pixels, at most {MAX_SIDE} a side are a cutout"
                    )
                return np.array(image.convert("RGB"))  # a copy: torch wants writable memory
    except Image.DecompressionBombError as error:
        raise BadInput(Reason.TOO_LARGE, f"{path}: {error}; at most {MAX_SIDE} pixels a side are a cutout") from error


def _stamp(
    path: Path, source_name: str, row: dict[str, str] | None, table: Path | None, settings: InputSettings
) -> Stamp:
    ra, dec = _number(row, ("ra",)), _number(row, ("dec",))
    if not on_sky(ra, dec):
        where = (
            f"{table} has no row for it with ra and dec in degrees, or two that differ"
            if table
            else "there is no CSV with file, ra, dec beside it"
        )
        raise BadInput(Reason.NO_POSITION, f"{path}: {where}")
    pixscale = _number(row, _SCALE_COLUMNS)
    if not 0 < pixscale < math.inf:
        pixscale = settings.picture_pixscale or math.nan
    release, brickid, objid = (_number(row, (name,)) for name in _KEY_COLUMNS)
    picture = read_picture(path)
    quality, bad = examine_rgb(picture)
    return Stamp(
        source_name=source_name,
        pixels=picture,
        ra=wrapped(ra),
        dec=dec,
        pixscale=pixscale,
        quality=quality,
        bad_pixel_fraction=bad,
        survey_layer="pictures-rgb",
        rendering=settings.picture_rendering,
        survey_keys=survey_keys(release, brickid, objid),
    )


def _number(row: dict[str, str] | None, columns: tuple[str, ...]) -> float:
    """The first of the columns that holds a number; NaN otherwise."""
    for column in columns:
        try:
            return float((row or {})[column])
        except (KeyError, TypeError, ValueError):
            continue
    return math.nan
