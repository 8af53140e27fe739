"""Survey bricks: a stamp around each wanted object of a coadd directory.

Each image of the brick is decompressed once; the planes that go with it (invvar, nexp, maskbits) are read one after the
other and only what they say about each object is kept. Memory is that of the three images with their margins, one more
plane, and a batch of stamps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catalogs.schema import QualityFlag
from catalogs.tiles import QuarantineEntry
from pipeline.config.inputs import ReadingSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.core.object_ids import printable
from pipeline.readers.bricks.edges import Window
from pipeline.readers.bricks.images import BrickImages, read_aside, read_images
from pipeline.readers.bricks.objects import BrickObjects, Selection, read_objects
from pipeline.readers.bricks.positions import is_prepared, read_prepared
from pipeline.readers.bricks.wcs import TangentWCS, find_wcs
from pipeline.readers.stamps import (
    BANDS,
    Item,
    Stamp,
    TileNote,
    central_aperture,
    examine_flux,
    mask_flags,
    quarantine_entry,
    wrapped,
)
from pipeline.tiles.brick_files import plane_file
from pipeline.tiles.sky_tile import SkyTile

_FALLBACK_LAYER = "ls-unknown"


@dataclass
class _Conditions:
    """What the planes beside the images say about each of N objects.

    `masked` : share of the stamp's pixels whose inverse variance is zero; `exposures` : float (N, 3), median over the
    central aperture, NaN if unknown; `maskbits` : int64, −1 if unknown; `psfsize` : arcsec, NaN if unknown.
    """

    masked: np.ndarray
    exposures: np.ndarray
    maskbits: np.ndarray
    psfsize: np.ndarray


def read_brick(tile: SkyTile, reading: ReadingSettings) -> Iterator[Item]:
    """Notes, then a stamp or a quarantine entry for each wanted object of a brick.

    Raises
    ------
    BadInput : there is no catalogue of objects, or it is that of another brick.
    OSError : the system failed.
    """
    folder, brick = Path(tile.path), tile.brick
    absent = [f"no image of band {band}" for band in BANDS if plane_file(folder, brick, "image", band) is None]
    try:
        selection = selection_of(tile, reading)
    except BadInput as bad:  # all that is amiss is said at once
        raise BadInput(bad.reason, "; ".join([bad.detail, *absent]), bad.exception) from bad
    yield TileNote(selection.rows, selection.set_aside, absent)
    yield from selection.refused
    targets = selection.targets
    if not len(targets):
        return
    try:
        frame = find_wcs(folder, brick, reading.bricks)
        inside = frame.holds(targets.ra, targets.dec)
        windows = _windows(frame, targets.take(inside), reading)
        images = read_images(folder, brick, frame, windows, reading.bricks)
    except BadInput as bad:  # the objects are known, so each of them is accounted for
        yield from (quarantine_entry(folder, _name(tile, targets, i), bad) for i in range(len(targets)))
        return
    for i in np.flatnonzero(~inside).tolist():
        detail = f"ra {targets.ra[i]:.6f}, dec {targets.dec[i]:.6f} is not within the images of brick {brick}"
        yield quarantine_entry(folder, _name(tile, targets, i), BadInput(Reason.OUT_OF_FOOTPRINT, detail))
    targets = targets.take(inside)
    conditions, remarks = _conditions(tile, frame, images, targets, windows, reading)
    if images.remarks or remarks:
        yield TileNote(remarks=images.remarks + remarks)
    for i, window in enumerate(windows):
        yield _stamp(tile, frame, images, targets, i, window, conditions, reading)


def selection_of(tile: SkyTile, reading: ReadingSettings) -> Selection:
    """The objects that stamps of a brick are cut for. Raises what `read_brick` raises."""
    tables = [Path(table) for table in tile.tables]
    if tables and is_prepared(tables[0]):
        listed = read_prepared(tables[0])
        return Selection(listed, len(listed), {}, [])
    return read_objects(tables, tile.brick, tile.source, reading.bricks)


def _name(tile: SkyTile, targets: BrickObjects, i: int) -> str:
    """The source name of an object: that of its brick, or of the list that names it, and its name there."""
    name = str(targets.name[i])
    return printable(name if "#" in name else f"{tile.source}#{name}")


def _windows(frame: TangentWCS, targets: BrickObjects, reading: ReadingSettings) -> list[Window]:
    """The pixels of the stamp of each object."""
    smallest = reading.bricks.large_radius or math.inf
    places = zip(*frame.pixels(targets.ra, targets.dec), targets.radius >= smallest, strict=True)
    return [_window(float(column), float(row), bool(large), reading) for column, row, large in places]


def _window(column: float, row: float, large: bool, reading: ReadingSettings) -> Window:
    """The pixels whose middle is nearest to an object."""
    side = reading.bricks.stamp_pixels * (2 if large else 1)
    middle = (side - 1) / 2
    return Window(round(row - middle), round(column - middle), side, large)


def _conditions(
    tile: SkyTile,
    frame: TangentWCS,
    images: BrickImages,
    targets: BrickObjects,
    windows: list[Window],
    reading: ReadingSettings,
) -> tuple[_Conditions, list[str]]:
    """Read the planes beside the images, one at a time, and keep what they say about each object."""
    folder, remarks, count = Path(tile.path), [], len(windows)
    known = _Conditions(np.zeros(count), np.full((count, 3), np.nan), targets.maskbits.copy(), targets.psfsize.copy())
    own = (
        slice(images.margins.south, images.margins.south + frame.shape[0]),
        slice(images.margins.east, images.margins.east + frame.shape[1]),
    )

    def aside(product: str, band: str = "") -> np.ndarray | None:
        pixels, remark = read_aside(folder, tile.brick, product, band, frame, reading.bricks.image_hdu)
        if remark:
            remarks.append(remark)
        return pixels

    for b, band in enumerate(BANDS):
        if not images.present[b]:
            continue
        if (invvar := aside("invvar", band)) is not None:
            flux = images.flux[b][own]
            for i, window in enumerate(windows):
                part = window.slices(frame.shape)
                known.masked[i] += np.count_nonzero((invvar[part] <= 0) & (flux[part] != 0)) / (3 * window.side**2)
        if (exposures := aside("nexp", band)) is not None:
            for i, window in enumerate(windows):
                known.exposures[i, b] = np.median(_central(exposures, window, frame, reading))
    if (maskbits := aside("maskbits")) is not None:
        for i, window in enumerate(windows):
            bits = _central(maskbits, window, frame, reading).astype(np.int64)
            known.maskbits[i] = int(np.bitwise_or.reduce(bits, initial=0)) & 0x7FFFFFFF
    if np.isnan(known.psfsize).any() and (psfsize := aside("psfsize", "r")) is not None:
        for i in np.flatnonzero(np.isnan(known.psfsize)).tolist():
            seen = float(np.median(_central(psfsize, windows[i], frame, reading)))
            known.psfsize[i] = seen if 0 < seen < np.inf else np.nan
    return known, remarks


def _central(plane: np.ndarray, window: Window, frame: TangentWCS, reading: ReadingSettings) -> np.ndarray:
    """The values of a plane within the central aperture of a stamp, as far as they lie in the brick: (n,), n ≥ 1."""
    half = math.ceil(max(reading.input.aperture / frame.pixscale, 1.0)) + 1
    middle_y, middle_x = window.y0 + window.side // 2, window.x0 + window.side // 2
    box = Window(middle_y - half, middle_x - half, 2 * half, False)
    rows, columns = box.slices(frame.shape)
    inside = central_aperture(2 * half, 2 * half, frame.pixscale, reading.input.aperture)
    inside = inside[rows.start - box.y0 : rows.stop - box.y0, columns.start - box.x0 : columns.stop - box.x0]
    return np.asarray(plane[rows, columns][inside])


def _stamp(
    tile: SkyTile,
    frame: TangentWCS,
    images: BrickImages,
    targets: BrickObjects,
    i: int,
    window: Window,
    conditions: _Conditions,
    reading: ReadingSettings,
) -> Stamp | QuarantineEntry:
    """The stamp of an object, or a quarantine entry where the survey has no pixels at all."""
    y0, x0 = window.y0 + images.margins.south, window.x0 + images.margins.east
    pixels = images.flux[:, y0 : y0 + window.side, x0 : x0 + window.side]
    if not pixels.any():
        detail = (
            f"the survey has no pixels around ra {targets.ra[i]:.6f}, dec {targets.dec[i]:.6f} in brick {tile.brick}"
        )
        return quarantine_entry(Path(tile.path), _name(tile, targets, i), BadInput(Reason.OUT_OF_FOOTPRINT, detail))
    flux, quality, bad = examine_flux(_binned(pixels) if window.binned else pixels, images.present)
    bits = int(conditions.maskbits[i])
    quality |= mask_flags(bits, reading.input)
    if _is_shallow(targets.depth[i], conditions.exposures[i], images.present, reading):
        quality |= int(QualityFlag.LOW_DEPTH)
    keys = tuple(int(key) for key in targets.keys[i])
    return Stamp(
        source_name=_name(tile, targets, i),
        pixels=flux,
        ra=wrapped(float(targets.ra[i])),
        dec=float(targets.dec[i]),
        pixscale=frame.pixscale * (2 if window.binned else 1),
        quality=quality,
        bad_pixel_fraction=min(1.0, bad + float(conditions.masked[i])),
        survey_layer=_layer(keys[0], images, reading),
        survey_keys=(keys[0], keys[1], keys[2]),
        maskbits=bits,
        mag_r=float(targets.mag_r[i]),
        psfsize=float(conditions.psfsize[i]),
    )


def _binned(pixels: np.ndarray) -> np.ndarray:
    """Means of two by two pixels: surface brightness stays, as in the viewer's images at twice the pixel scale.

    Pixels beside a blank one are blank, for the mean of some light and none is neither.
    """
    bands, height, width = pixels.shape
    fours = pixels.reshape(bands, height // 2, 2, width // 2, 2)
    return np.where((fours == 0).any(axis=(2, 4)), 0, fours.mean(axis=(2, 4), dtype=np.float32))


def _is_shallow(depth: np.ndarray, exposures: np.ndarray, present: tuple[bool, ...], reading: ReadingSettings) -> bool:
    """Whether a band that is there is shallower, or has fewer exposures, than the settings ask for."""
    settings = reading.bricks
    with np.errstate(invalid="ignore"):
        shallow = (depth < np.array(settings.least_depth)) | (exposures < settings.least_exposures)
    return bool((shallow & np.array(present)).any())


def _layer(release: int, images: BrickImages, reading: ReadingSettings) -> str:
    """The survey layer in the catalogue's words, such as ls-dr9-south-grz."""
    letters = "".join(band for band, there in zip(BANDS, images.present, strict=True) if there)
    settings, header = reading.bricks, images.header
    if header.get("SIMULATD") is True:
        return f"simulated-{letters}"
    if settings.layer:
        return f"{settings.layer}-{letters}"
    number = release if release >= 0 else header.get("DRVERSIO", -1)
    number = int(number) if isinstance(number, int | float) and 0 <= number <= 65535 else -1
    by_number = f"ls-dr{number // 1000}" if number >= 1000 else _FALLBACK_LAYER
    return f"{settings.release_layers.get(str(number), by_number)}-{letters}"
