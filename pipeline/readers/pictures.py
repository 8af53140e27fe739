"""Folders of JPEG or PNG pictures with a table of positions."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from catalogs.tile_store import Quarantined
from pipeline.errors import PARSE_ERRORS, BadInput, Reason, is_transient
from pipeline.identity import survey_keys
from pipeline.readers.settings import InputSettings
from pipeline.stamps import MAX_SIDE, Stamp

_FILE_COLUMNS = ("file", "filename", "file_name", "name", "image")
_SCALE_COLUMNS = ("pixscale", "pxscale", "pixel_scale")
_KEY_COLUMNS = ("release", "brickid", "objid")


def read_pictures(
    folder: Path, names: list[str], table: Path | None, source: str, settings: InputSettings
) -> Iterator[Stamp | Quarantined]:
    """One stamp or one quarantine entry for each picture, in the given order."""
    rows = read_table(table) if table else {}
    for name in names:
        source_name = f"{source}/{name}"
        try:
            yield _stamp(folder / name, source_name, rows.get(name), table, settings)
        except BadInput as bad:
            yield Quarantined(file=str(folder / name), source_name=source_name, reason=bad.reason, detail=bad.detail)


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """Rows of a CSV by the name of their picture; column names in lower case.

    Raises
    ------
    BadInput : the table can not be read or has no column that names files.
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
            return {Path(row[file_column] or "").name: row for row in reader}
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(Reason.UNREADABLE_FILE, f"{path} can not be read as CSV ({error})") from error


def read_picture(path: Path) -> np.ndarray:
    """Pixels uint8 (H, W, 3) RGB, row 0 at the top. Raises BadInput when it is no picture of a sensible size."""
    try:
        if path.stat().st_size == 0:
            raise BadInput(Reason.EMPTY_FILE, f"{path} has no bytes; download it again")
        with Image.open(path) as image:
            if max(image.size) > MAX_SIDE:
                raise BadInput(Reason.TOO_LARGE, f"{path}: {image.size} pixels, at most {MAX_SIDE} a side are a cutout")
            return np.array(image.convert("RGB"))  # a copy: torch wants writable memory
    except (*PARSE_ERRORS, Image.DecompressionBombError) as error:
        if is_transient(error):
            raise
        raise BadInput(
            Reason.UNREADABLE_FILE, f"{path} can not be read as a picture ({error}); download it again"
        ) from error


def _stamp(
    path: Path, source_name: str, row: dict[str, str] | None, table: Path | None, settings: InputSettings
) -> Stamp:
    ra, dec = _number(row, ("ra",)), _number(row, ("dec",))
    if not (math.isfinite(ra) and math.isfinite(dec) and abs(dec) <= 90):
        where = (
            f"{table} has no row with ra and dec for it" if table else "there is no CSV with file, ra, dec beside it"
        )
        raise BadInput(Reason.NO_POSITION, f"{path}: {where}")
    pixscale = _number(row, _SCALE_COLUMNS)
    if not pixscale > 0:
        pixscale = settings.picture_pixscale or math.nan
    release, brickid, objid = (_number(row, (name,)) for name in _KEY_COLUMNS)
    return Stamp(
        source_name=source_name,
        pixels=read_picture(path),
        ra=ra % 360,
        dec=dec,
        pixscale=pixscale,
        quality=0,
        bad_pixel_fraction=0.0,
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
