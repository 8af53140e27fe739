"""The catalogue of a simulated block: Tractor rows of each brick in the survey's column layouts, and sweeps.

What stands in the rows is the simulation's truth, not a fit: types and Sersic indices go by the class of a galaxy.
Must not know how images are painted or compressed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from pipeline.core.classes import CLASS_SLUGS
from pipeline.simulation.bricks.block import EXPOSURES, Block, Brick
from pipeline.simulation.bricks.mosaic import EXPOSURE_INVVAR, ellipticity
from pipeline.simulation.bricks.scene import BRIGHT_MAG, Scene
from pipeline.simulation.galaxies.layers import DUST_LAW
from pipeline.simulation.galaxies.neighbours import NATIVE_PIXSCALE, ZERO_POINT_MAG
from pipeline.simulation.stamps import SOURCE_VARIANCE
from pipeline.tiles.brick_grid import brick_id, centre

Layout = Literal["dr10", "dr8"]

RELEASE = 32000  # no data release has it, and it fits the survey's int16
FAINTEST_MAG = 22.5  # r; fainter stars and galaxies are in the image only
A_R_PER_EBV = 2.165  # extinction in r, mag, of a reddening E(B-V) of 1 mag, in the survey's filters
SATURATED = 2  # bit of anymask and allmask

# An object of a block: place (pixels of the mosaic), flux in nanomaggies (g, r, z) as on the image, half-light radius
# (arcsec), ellipticity components, model as in DR9 and later, survey that lists it, class (-1 is no target).
OBJECT = np.dtype(
    [
        *(("x", "f8"), ("y", "f8"), ("flux", "f4", 3), ("radius", "f4"), ("e1", "f4"), ("e2", "f4")),
        *(("kind", "U3"), ("ref_cat", "U2"), ("class_id", "i2")),
    ]
)
_SERSIC = {"PSF": 0.0, "DUP": 0.0, "REX": 1.0, "EXP": 1.0, "DEV": 4.0, "SER": 2.0}
_KINDS = {"round_smooth": "DEV", "in_between_smooth": "DEV", "cigar_smooth": "DEV", "edge_on_no_bulge": "EXP"}

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class BrickRows:
    """The catalogue of one brick: its columns by their names in DR10, N rows each, and the truth beside them.

    class_id : int16 (N,), -1 for what is no target. mag_r : float64 (N,), corrected for extinction, also where there
    are no exposures in r.
    """

    columns: Columns
    class_id: NDArray[np.int16]
    mag_r: NDArray[np.float64]


_FORMATS = {
    **{"release": "I", "brickid": "J", "brickname": "8A", "objid": "J", "brick_primary": "L", "maskbits": "J"},
    **{"ra": "D", "dec": "D", "ref_cat": "2A"},
    **{f"{name}_{band}": "I" for name in ("nobs", "anymask", "allmask") for band in "grz"},
}
_UNITS = {"ra": "deg", "dec": "deg", "bx": "pix", "by": "pix", "ebv": "mag"} | {
    f"{name}_{band}": unit
    for name, unit in (
        ("flux", "nanomaggy"),
        ("flux_ivar", "1/nanomaggy^2"),
        ("psfsize", "arcsec"),
        ("psfdepth", "1/nanomaggy^2"),
        ("galdepth", "1/nanomaggy^2"),
    )
    for band in "grz"
}
_NOT_IN_SWEEPS = ("brick_primary", "bx", "by")


def objects_of(scene: Scene, painted: NDArray[np.void]) -> NDArray[np.void]:
    """All objects that a catalogue of the block lists, OBJECT (N,), by y: those within the bricks' own areas.

    painted : what became of the targets (mosaic.PAINTED).
    """
    parts = [_targets(scene, painted), _duplicates(scene), _stars(scene), _background_galaxies(scene)]
    found = np.concatenate(parts)
    found = found[scene.block.covered(found["x"], found["y"])]
    return found[np.lexsort((found["x"], found["y"]))]


def tractor_rows(scene: Scene, objects: NDArray[np.void], brick: Brick, maskbits: NDArray[np.int32]) -> BrickRows:
    """The rows of one brick: every object on its pixels that was exposed in one band at least.

    maskbits : int32 (side, side), of the brick's pixels.
    """
    block = scene.block
    bx, by = objects["x"] - brick.x0, objects["y"] - brick.y0
    exposures = np.stack([block.exposures_at(band, objects["x"], objects["y"]) for band in range(3)])
    here = (np.abs(bx - (block.side - 1) / 2) < block.side / 2) & (np.abs(by - (block.side - 1) / 2) < block.side / 2)
    here &= exposures.any(axis=0)
    found, bx, by, exposures = objects[here], bx[here], by[here], exposures[:, here]
    column, row = block.brick_at(found["x"], found["y"])
    ra, dec = block.sky(found["x"], found["y"])
    ebv = reddening(block, found["x"])
    masks = maskbits[np.rint(by).astype(int), np.rint(bx).astype(int)]
    columns: Columns = {
        "release": np.full(len(found), RELEASE),
        "brickid": np.full(len(found), brick_id(brick.name)),
        "brickname": np.full(len(found), brick.name),
        "objid": np.arange(len(found)),
        "brick_primary": (column == brick.column) & (row == brick.row),
        "maskbits": masks,
        "type": found["kind"],
        "ra": ra,
        "dec": dec,
        "bx": bx,
        "by": by,
        "ebv": ebv,
        **_photometry(scene, found, exposures, masks),
        **{f"mw_transmission_{band}": part for band, part in zip("grz", transmission(ebv), strict=True)},
        "sersic": np.array([_SERSIC[kind] for kind in found["kind"]]),
        "shape_r": found["radius"],
        "shape_e1": found["e1"],
        "shape_e2": found["e2"],
        "ref_cat": found["ref_cat"],
    }
    with np.errstate(divide="ignore"):  # a duplicate has no flux
        mag_r = ZERO_POINT_MAG - 2.5 * np.log10(found["flux"][:, 1] / transmission(ebv)[1])
    return BrickRows(columns, found["class_id"], mag_r)


def table_of(columns: Columns, layout: Layout) -> fits.BinTableHDU:
    """A FITS table of Tractor rows: lower case names, or the names and models of DR8 in upper case."""
    columns = _as_dr8(columns) if layout == "dr8" else columns
    formats = _FORMATS | {"type": "4A" if layout == "dr8" else "3A"}
    made = [
        fits.Column(
            name.upper() if layout == "dr8" else name,
            formats.get(name, "E"),
            unit=_UNITS.get(name, "arcsec" if name.endswith("_r") and name.startswith("shape") else None),
            array=values,
        )
        for name, values in columns.items()
    ]
    table = fits.BinTableHDU.from_columns(made)
    table.header["SIMULATD"] = (True, "not an observation")
    table.header["DRVERSIO"] = (RELEASE, "of the simulation, not a data release")
    return table


def sweep_of(parts: list[BrickRows], layout: Layout) -> fits.BinTableHDU:
    """A sweep of several bricks' rows: the primary ones only, in upper case, without the columns that sweeps lack."""
    joined = {
        name: np.concatenate([part.columns[name][part.columns["brick_primary"]] for part in parts])
        for name in parts[0].columns
        if name not in _NOT_IN_SWEEPS
    }
    table = table_of(joined, layout)
    for name in table.columns.names:
        table.columns.change_name(name, name.upper())
    return table


def sweep_name(brick: str) -> str:
    """The sweep file that holds a brick: boxes of 10 degrees in right ascension by 5 in declination."""
    ra, dec = centre(brick)
    west, south = 10 * int(ra // 10), 5 * int(dec // 5)
    corners = [f"{x:03d}{'m' if y < 0 else 'p'}{abs(y):03d}" for x, y in ((west, south), (west + 10, south + 5))]
    return f"sweep-{corners[0]}-{corners[1]}.fits"


def reddening(block: Block, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """E(B-V) in mag at these columns of the mosaic: dust that thickens from 0.02 in the east to 0.04 in the west."""
    return 0.02 + 0.02 * np.clip(x / block.width, 0.0, 1.0)


def transmission(ebv: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the light that dust of this reddening lets through, in g, r, z. float64 (3, N)."""
    return 10.0 ** (-0.4 * A_R_PER_EBV * DUST_LAW[:, None] * ebv)


def _photometry(
    scene: Scene, found: NDArray[np.void], exposures: NDArray[np.int16], masks: NDArray[np.int32]
) -> Columns:
    """Flux, depth, exposures and seeing, all 0 in a band without exposures.

    Depths are inverse variances of the flux of a point, and of a galaxy of 0.45 arcsec, seen through a Gaussian of the
    seeing's width on the noise of the sky; the flux's own has the noise of its light too.
    """
    sigma = scene.seeing_px[:, None] / (2.0 * np.sqrt(2.0 * np.log(2.0)))  # pixels, of a Gaussian
    invvar = EXPOSURE_INVVAR[:, None] * exposures  # of a pixel
    area = 4.0 * np.pi * sigma**2
    galaxy_area = 4.0 * np.pi * (sigma**2 + (0.45 / NATIVE_PIXSCALE) ** 2)
    object_area = 4.0 * np.pi * (sigma**2 + (found["radius"] / NATIVE_PIXSCALE) ** 2)
    seen = exposures > 0
    flux = np.where(seen, found["flux"].T, 0.0)
    per_exposure = SOURCE_VARIANCE[:, None] * EXPOSURES * flux / np.maximum(exposures, 1)
    variance = object_area / np.where(seen, invvar, 1.0) + per_exposure
    values = {
        "flux": flux,
        "flux_ivar": np.where(seen, 1.0 / variance, 0.0),
        "nobs": exposures,
        "anymask": np.stack([np.where(masks >> (2 + band) & 1, SATURATED, 0) for band in range(3)]),
        "allmask": np.stack([np.where(masks >> (5 + band) & 1, SATURATED, 0) for band in range(3)]),
        "psfsize": np.where(seen, scene.seeing[:, None], 0.0),
        "psfdepth": invvar / area,
        "galdepth": invvar / galaxy_area,
    }
    return {f"{name}_{band}": planes[index] for name, planes in values.items() for index, band in enumerate("grz")}


def _as_dr8(columns: Columns) -> Columns:
    """The models of DR8: COMP for SER, and shapes of an exponential and of a de Vaucouleurs profile."""
    kind = np.where(columns["type"] == "SER", "COMP", columns["type"])
    shapes: Columns = {"fracdev": np.select([kind == "DEV", kind == "COMP"], [1.0, 0.5], 0.0)}
    for name, models in (("shapedev", ("DEV", "COMP")), ("shapeexp", ("EXP", "REX", "COMP"))):
        for part in ("r", "e1", "e2"):
            shapes[f"{name}_{part}"] = np.where(np.isin(kind, models), columns[f"shape_{part}"], 0.0)
    kept = {name: values for name, values in columns.items() if name != "sersic" and not name.startswith("shape_")}
    return kept | {"type": kind} | shapes


def _blank(number: int, kind: str, ref_cat: str = "") -> NDArray[np.void]:
    rows = np.zeros(number, OBJECT)
    rows["kind"], rows["ref_cat"], rows["class_id"] = kind, ref_cat, -1
    return rows


def _targets(scene: Scene, painted: NDArray[np.void]) -> NDArray[np.void]:
    targets = scene.targets
    rows = _blank(len(targets.x), "SER")
    rows["x"], rows["y"], rows["class_id"] = targets.x, targets.y, targets.class_id
    for name in ("flux", "radius", "e1", "e2"):
        rows[name] = painted[name]
    rows["kind"] = [_KINDS.get(CLASS_SLUGS[class_id], "SER") for class_id in targets.class_id]
    rows["ref_cat"] = np.where(targets.large, "L3", "")  # the survey's list of large galaxies
    return rows


def _duplicates(scene: Scene) -> NDArray[np.void]:
    """A row DUP, without flux, beside every large galaxy: a Gaia source that is the galaxy itself."""
    large = scene.targets.large
    rows = _blank(int(large.sum()), "DUP", "G2")
    rows["x"], rows["y"] = scene.block.off_lines(scene.targets.x[large] + 1.5, scene.targets.y[large] + 0.8)
    return rows


def _stars(scene: Scene) -> NDArray[np.void]:
    bright, field = scene.bright, scene.stars
    first = _blank(len(bright.x), "PSF")
    first["x"], first["y"], first["flux"] = bright.x, bright.y, bright.flux.T
    first["ref_cat"] = np.where(bright.mag < BRIGHT_MAG, "T2", "G2")
    seen = field.flux[1] >= 10 ** (-0.4 * (FAINTEST_MAG - ZERO_POINT_MAG))
    second = _blank(int(seen.sum()), "PSF")
    second["x"], second["y"], second["flux"] = field.x[seen], field.y[seen], field.flux[:, seen].T
    return np.concatenate([first, second])


def _background_galaxies(scene: Scene) -> NDArray[np.void]:
    """Background galaxies: REX where they are small, else EXP."""
    background = scene.background
    seen = np.flatnonzero(background.flux[1] >= 10 ** (-0.4 * (FAINTEST_MAG - ZERO_POINT_MAG)))
    rows = _blank(len(seen), "EXP")
    rows["x"], rows["y"], rows["flux"] = background.x[seen], background.y[seen], background.flux[:, seen].T
    rows["radius"] = 1.678 * background.scale[seen] * NATIVE_PIXSCALE  # half-light radius of an exponential
    e1, e2 = ellipticity(background.ratio[seen], background.angle[seen])
    small = rows["radius"] < 0.8
    rows["kind"][small] = "REX"
    rows["e1"], rows["e2"] = np.where(small, 0.0, e1), np.where(small, 0.0, e2)
    return rows
