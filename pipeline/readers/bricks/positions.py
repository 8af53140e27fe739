"""Lists of positions that someone wants classified: CSV, Parquet, FITS or VOTable with `ra` and `dec` in degrees.

A list is read once and cut into one small table for each brick (`write_prepared`), which a worker reads; what lies in
no brick, or is no position, goes into one more (`read_outside`), so that nothing of the list is lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io.fits.verify import VerifyError
from astropy.table import Table

from catalogs.atomic import atomic_write
from catalogs.tiles import QuarantineEntry
from pipeline.core.errors import BadInput, Reason, UserError, is_transient
from pipeline.core.object_ids import printable, survey_keys
from pipeline.core.parsing import PARSE_ERRORS
from pipeline.readers.bricks.objects import BrickObjects
from pipeline.readers.stamps import on_sky, quarantine_entry
from pipeline.tiles.sky_tile import SkyTile

_PREFIX = "positions-"
_NAMES = ("name", "source_name", "object_id", "id", "targetid")
_NUMBERS = ("release", "brickid", "objid", "mag_r", "radius")


def read_list(path: Path) -> pd.DataFrame:
    """A list of positions: columns name (text), ra, dec, release, brickid, objid, mag_r, radius (float64).

    Raises
    ------
    UserError : the file cannot be read, or has no columns ra and dec, or one of them twice.
    """
    raw = _raw(path)
    raw.columns = [str(column).strip().lower() for column in raw.columns]
    if not {"ra", "dec"} <= set(raw.columns):
        raise UserError(f"{path}: no columns ra and dec (degrees); found {list(raw.columns)[:12]}")
    if not raw.columns.is_unique:
        twice = sorted(set(raw.columns[raw.columns.duplicated()]))
        raise UserError(f"{path}: two columns {', '.join(twice)} (case does not count); leave out one of each")
    numbers = {name: pd.to_numeric(raw[name], errors="coerce") for name in ("ra", "dec", *_NUMBERS) if name in raw}
    named = next((name for name in _NAMES if name in raw), None)
    names = raw[named].map(_text) if named else pd.Series(range(len(raw))).map(str)
    frame = pd.DataFrame({name: numbers.get(name, np.nan) for name in ("ra", "dec", *_NUMBERS)}, index=raw.index)
    frame.insert(0, "name", [printable(f"{path.name}#{name}") for name in names])
    return frame.reset_index(drop=True).astype(dict.fromkeys(("ra", "dec", *_NUMBERS), np.float64))


def write_prepared(rows: pd.DataFrame, folder: Path) -> Path:
    """Write rows of a list to a file that is named after its content; one that exists already stays."""
    table = pa.Table.from_pandas(rows, preserve_index=False)
    digest = sha256(rows.to_csv(index=False).encode()).hexdigest()[:16]
    path = folder / f"{_PREFIX}{digest}.parquet"
    if not path.exists():
        with atomic_write(path) as temporary:
            pq.write_table(table, temporary)
            os.utime(temporary, (0, 0))  # the same content is the same input, whenever it was written
    return path


def is_prepared(path: Path) -> bool:
    """Whether a file was written by `write_prepared`."""
    return path.name.startswith(_PREFIX) and path.suffix == ".parquet"


def read_prepared(path: Path) -> BrickObjects:
    """The objects of a table of `write_prepared`."""
    rows = pq.read_table(path).to_pandas()
    keys = [survey_keys(*row) for row in zip(rows["release"], rows["brickid"], rows["objid"], strict=True)]
    unknown = np.full(len(rows), np.nan)
    return BrickObjects(
        name=rows["name"].to_numpy(dtype=object),
        ra=rows["ra"].to_numpy(),
        dec=rows["dec"].to_numpy(),
        keys=np.array(keys, dtype=np.int64).reshape(len(rows), 3),
        mag_r=rows["mag_r"].to_numpy(),
        radius=rows["radius"].to_numpy(),
        psfsize=unknown,
        depth=np.full((len(rows), 3), np.nan),
        maskbits=np.full(len(rows), -1, dtype=np.int64),
    )


def read_outside(tile: SkyTile) -> Iterator[QuarantineEntry]:
    """A quarantine entry for each position of a list that lies in no brick, or is none."""
    rows = pq.read_table(tile.tables[0]).to_pandas()
    for name, ra, dec in zip(rows["name"], rows["ra"], rows["dec"], strict=True):
        if on_sky(ra, dec):
            where = f"ra {ra:.6f}, dec {dec:.6f} is in none of the bricks of this run"
            bad = BadInput(Reason.OUT_OF_FOOTPRINT, f"{tile.path}: {name}, {where}")
        else:
            bad = BadInput(Reason.NO_POSITION, f"{tile.path}: {name} has ra {ra}, dec {dec}; expected degrees")
        yield quarantine_entry(Path(tile.path), name, bad)


def _raw(path: Path) -> pd.DataFrame:
    ending = "".join(path.suffixes[-2:]).lower() if path.suffix == ".gz" else path.suffix.lower()
    try:
        if ending in (".csv", ".csv.gz"):
            return pd.read_csv(path, dtype=str, keep_default_na=True)
        if ending == ".parquet":
            return pq.read_table(path).to_pandas()
        if ending in (".fits", ".fits.gz", ".vot", ".xml"):
            table = Table.read(path, format="votable" if ending in (".vot", ".xml") else "fits")
            return table[[name for name in table.colnames if table[name].ndim == 1]].to_pandas()
    except (*PARSE_ERRORS, pa.ArrowException, VerifyError) as error:
        if is_transient(error):
            raise
        raise UserError(f"{path} cannot be read as a list of positions ({type(error).__name__}: {error})") from error
    raise UserError(f"{path}: a list of positions is .csv, .parquet, .fits or .vot")


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace").strip()
    return str(value).strip()
