"""Which objects of a brick are wanted: rows of the survey's catalogues (tractor, sweep) of every column layout.

Column names are upper or lower case; DR8 and before describe shapes by SHAPEEXP_R and SHAPEDEV_R, later releases by
SHAPE_R; DR3 and before keep six bands in one column (decam_flux). Units: degrees, arcsec, nanomaggies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np

from catalogs.tiles import QuarantineEntry
from pipeline.config.inputs import BrickSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.core.object_ids import NO_SURVEY_KEYS, survey_keys
from pipeline.readers.fits.files import read_columns
from pipeline.readers.stamps import BANDS, on_sky, quarantine_entry

_ZERO_POINT = 22.5  # magnitude of a nanomaggy
_OLD_BANDS = {"g": 1, "r": 2, "z": 4}  # in the columns of six bands, ugrizY, of DR3 and before
_COLUMNS = (
    *("release", "brickid", "brickname", "objid", "brick_primary", "type", "ra", "dec", "maskbits"),
    *("shape_r", "shapeexp_r", "shapedev_r", "fracdev", "flux_r", "mw_transmission_r"),
    *("psfsize_r", *(f"psfdepth_{band}" for band in BANDS)),
    *("decam_flux", "decam_mw_transmission", "decam_psfsize", "decam_depth"),
)
_WORDS = ("brickname", "type")
_SIMPLE_RADIUS = 0.45  # arcsec, of the type SIMP of DR3 to DR7


@dataclass(frozen=True)
class BrickObjects:
    """Objects to cut stamps of, N entries each.

    `name` : object; what stands behind the # of a source name. `ra`, `dec` : float64, degrees. `keys` : int64 (N, 3),
    release, brickid, objid or −1. `mag_r` : corrected for extinction; `radius` : half-light, arcsec; `psfsize` : FWHM
    in r, arcsec; `depth` : float64 (N, 3), 5-sigma magnitude of a point source in g, r, z; NaN if unknown.
    `maskbits` : int64, −1 if unknown.
    """

    name: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    keys: np.ndarray
    mag_r: np.ndarray
    radius: np.ndarray
    psfsize: np.ndarray
    depth: np.ndarray
    maskbits: np.ndarray

    def __len__(self) -> int:
        return len(self.ra)

    def take(self, rows: np.ndarray) -> BrickObjects:
        """The same for some rows only: indices or bool (N,)."""
        return BrickObjects(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class Selection:
    """Targets out of `rows` rows of the brick, how many were left out and why, and those that cannot be used."""

    targets: BrickObjects
    rows: int
    set_aside: dict[str, int]
    refused: list[QuarantineEntry]


def read_objects(tables: Sequence[Path], brick: str, source: str, settings: BrickSettings) -> Selection:
    """The objects of a brick that the settings ask for.

    Raises
    ------
    BadInput : there is no catalogue, it cannot be read, or it is that of another brick.
    """
    if not tables:
        raise BadInput(
            Reason.MISSING_CATALOGUE,
            f"brick {brick}: no tractor-{brick}.fits or sweep beside it; add it, or give a list of positions "
            "(morphcat survey --catalogue FILE)",
        )
    parts = [_of_table(path, brick, source, settings) for path in tables]
    joined = {f.name: np.concatenate([getattr(part.targets, f.name) for part in parts]) for f in fields(BrickObjects)}
    aside: dict[str, int] = {}
    for reason, count in (item for part in parts for item in part.set_aside.items()):
        aside[reason] = aside.get(reason, 0) + count
    refusals = [entry for part in parts for entry in part.refused]
    return Selection(BrickObjects(**joined), sum(part.rows for part in parts), aside, refusals)


def _of_table(path: Path, brick: str, source: str, settings: BrickSettings) -> Selection:
    sweep = path.name.startswith("sweep-")
    rows = _rows_of_brick(path, path.stat().st_mtime_ns, brick, settings.table_hdu) if sweep else None
    columns = read_columns(path, _COLUMNS, settings.table_hdu, rows)
    _check_columns(path, columns)
    missing = {"ra", "dec"} - set(columns)
    if missing:
        raise BadInput(Reason.NO_POSITION, f"{path}: no column {', '.join(sorted(missing))}; found {sorted(columns)}")
    stranger = _of_other_bricks(columns, brick)
    if len(stranger) and stranger.all():
        found = np.unique(columns["brickname"])[:3].tolist()
        raise BadInput(Reason.BRICK_MISMATCH, f"{path} holds objects of {found}, not of brick {brick}; copy it again")
    targets = _targets(columns, settings)
    on = np.array([on_sky(ra, dec) for ra, dec in zip(targets.ra, targets.dec, strict=True)], dtype=bool)
    out = [
        _refuse(
            path, source, targets, row, Reason.BRICK_MISMATCH, f"belongs to {columns['brickname'][row]}, not {brick}"
        )
        if stranger[row]
        else _refuse(
            path, source, targets, row, Reason.NO_POSITION, f"has ra {targets.ra[row]}, dec {targets.dec[row]}"
        )
        for row in np.flatnonzero(stranger | ~on).tolist()
    ]
    wanted, aside = _selected(columns, targets, on & ~stranger, settings)
    return Selection(targets.take(wanted), len(targets), aside, out)


def _check_columns(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Make sure that each row has one number, or one word, in a column; only those of old releases have several."""
    for name, values in columns.items():
        several = values.ndim != 1 and not name.startswith("decam_")
        if several or (values.dtype.kind == "U") != (name in _WORDS):
            what = f"{values.dtype} {values.shape}, expected one {'word' if name in _WORDS else 'number'} a row"
            raise BadInput(Reason.WRONG_SHAPE, f"{path}: column {name} is {what}")


def _refuse(path: Path, source: str, targets: BrickObjects, row: int, reason: Reason, what: str) -> QuarantineEntry:
    name = f"{source}#{targets.name[row]}"
    return quarantine_entry(path, name, BadInput(reason, f"{path}: row {row} {what}"))


def _of_other_bricks(columns: Mapping[str, np.ndarray], brick: str) -> np.ndarray:
    """Which rows name another brick: bool (N,); none if the table names no bricks."""
    if "brickname" not in columns:
        return np.zeros(len(columns["ra"]), dtype=bool)
    return np.asarray(columns["brickname"] != brick)


def _targets(columns: Mapping[str, np.ndarray], settings: BrickSettings) -> BrickObjects:
    count = len(columns["ra"])

    def numbers(name: str, default: float) -> np.ndarray:
        return np.asarray(columns[name], dtype=np.float64) if name in columns else np.full(count, default)

    release = numbers("release", settings.release)
    keys = [survey_keys(*row) for row in zip(release, numbers("brickid", -1), numbers("objid", -1), strict=True)]
    objid, bits = numbers("objid", -1), numbers("maskbits", -1)
    return BrickObjects(
        name=np.array([str(int(k)) if 0 <= k < np.inf else f"row{i}" for i, k in enumerate(objid)], dtype=object),
        ra=numbers("ra", np.nan),
        dec=numbers("dec", np.nan),
        keys=np.array(keys or [NO_SURVEY_KEYS], dtype=np.int64)[:count].reshape(count, 3),
        mag_r=_magnitudes(columns, count),
        radius=_radii(columns, count),
        psfsize=_positive(_band_column(columns, "psfsize_r", "decam_psfsize", "r", count)),
        depth=np.stack([_depths(columns, band, count) for band in BANDS], axis=1),
        maskbits=np.where((bits >= 0) & (bits < 1 << 31), bits, -1).astype(np.int64),
    )


def _band_column(columns: Mapping[str, np.ndarray], name: str, old: str, band: str, count: int) -> np.ndarray:
    """A column of one band, or its part of the column of six bands of old releases; NaN if there is neither."""
    if name in columns:
        return np.asarray(columns[name], dtype=np.float64)
    if old in columns and columns[old].ndim == 2 and columns[old].shape[1] > _OLD_BANDS[band]:
        return np.asarray(columns[old][:, _OLD_BANDS[band]], dtype=np.float64)
    return np.full(count, np.nan)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _magnitudes(columns: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """r corrected for extinction: 22.5 − 2.5 log10(flux / transmission); NaN if there is no flux."""
    flux = _band_column(columns, "flux_r", "decam_flux", "r", count)
    transmission = _positive(_band_column(columns, "mw_transmission_r", "decam_mw_transmission", "r", count))
    return np.asarray(_ZERO_POINT - 2.5 * np.log10(_positive(flux / np.where(np.isnan(transmission), 1, transmission))))


def _depths(columns: Mapping[str, np.ndarray], band: str, count: int) -> np.ndarray:
    """5-sigma magnitude from the inverse variance of a point source's flux; −inf where nothing was exposed."""
    inverse = _band_column(columns, f"psfdepth_{band}", "decam_depth", band, count)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(_ZERO_POINT - 2.5 * np.log10(5 / np.sqrt(inverse)))


def _radii(columns: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Half-light radius in arcsec; NaN if the table has no shapes."""
    if "shape_r" in columns:
        return np.asarray(columns["shape_r"], dtype=np.float64)
    if "shapeexp_r" not in columns or "shapedev_r" not in columns:
        return np.full(count, np.nan)
    disc, bulge = (np.asarray(columns[name], dtype=np.float64) for name in ("shapeexp_r", "shapedev_r"))
    kind = columns.get("type", np.full(count, ""))
    share = np.asarray(columns.get("fracdev", np.full(count, 0.5)), dtype=np.float64)
    radius = np.where(kind == "DEV", bulge, np.where(kind == "COMP", share * bulge + (1 - share) * disc, disc))
    return np.where(kind == "SIMP", _SIMPLE_RADIUS, radius)


def _selected(
    columns: Mapping[str, np.ndarray], targets: BrickObjects, usable: np.ndarray, settings: BrickSettings
) -> tuple[np.ndarray, dict[str, int]]:
    """Which rows are wanted, bool (N,), and how many of the usable ones are not, by the first reason that holds."""
    with np.errstate(invalid="ignore"):
        reasons: dict[str, np.ndarray] = {
            "not_primary": ~columns["brick_primary"].astype(bool)
            if settings.primary_only and "brick_primary" in columns
            else np.zeros(len(targets), dtype=bool),
            **{f"type_{kind.lower()}": columns.get("type", np.array("")) == kind for kind in settings.excluded_types},
            "no_r_flux": np.isnan(targets.mag_r),
            "too_faint": targets.mag_r >= settings.faintest_r,
            "too_bright": targets.mag_r < settings.brightest_r,
            "too_small": targets.radius < settings.smallest_radius,
            "masked": (targets.maskbits >= 0) & (targets.maskbits & sum(1 << b for b in settings.excluded_bits) != 0),
        }
    wanted, aside = usable.copy(), {}
    for reason, holds in reasons.items():
        left_out = wanted & holds
        if left_out.any():
            aside[reason] = int(left_out.sum())
            wanted &= ~left_out
    return wanted, aside


def _rows_of_brick(path: Path, changed: int, brick: str, hdu: str) -> np.ndarray:
    """Rows of a sweep, last changed at this time, that belong to a brick: int64."""
    order, names = _by_brick(path, changed, hdu)
    first, last = (np.searchsorted(names, brick, side=side) for side in ("left", "right"))
    return np.sort(order[first:last])


@lru_cache(maxsize=2)
def _by_brick(path: Path, changed: int, hdu: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a sweep in the order of their bricks, and those bricks: one sweep holds hundreds of bricks."""
    columns = read_columns(path, ("brickname",), hdu)
    if "brickname" not in columns:
        raise BadInput(Reason.WRONG_SHAPE, f"{path}: no column brickname; a sweep needs it to tell whose its rows are")
    _check_columns(path, columns)
    order = np.argsort(columns["brickname"], kind="stable")
    return order, columns["brickname"][order]
