"""Writes simulated sky in the formats in which real sky arrives, always marked as simulated.

A file or folder is written beside its final name, under a name that starts with a dot, and renamed when it is complete.
Memory is bounded by one chunk of stamps. The colour rule is passed in: this module imports neither torch nor models.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from pipeline.core.classes import CLASS_SLUGS
from pipeline.simulation.positions import benchmark_position, tile_positions
from pipeline.simulation.stamps import SimulatedStamp, simulate_stamp

STAMP_PX = 256
CHUNK_STAMPS = 32  # stamps in memory at a time: 25 MB of flux
FITS_BLOCK = 2880  # bytes
VERSION = "1"  # of the simulation's recipe, as the viewer writes the data release

_TILE_STREAM, _BENCHMARK_STREAM = 1, 2  # first words of the random streams' seeds: tiles and benchmark share nothing

Render = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class TileTruth:
    """What is really in a tile, one entry per object in the order written.

    source : the file's path below the incoming folder, or 'file#row'. ra, dec : float64 (N,), degrees.
    label : uint8 (N,), Galaxy10 ids.
    """

    source: tuple[str, ...]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    label: NDArray[np.uint8]


@dataclass(frozen=True)
class SimulatedSky:
    """What `simulate` wrote: sky tiles, the truth table, and the benchmark file if asked for."""

    tiles: tuple[Path, ...]
    truth: Path
    galaxy10: Path | None


def tile_object(seed: int, tile: int, index: int) -> SimulatedStamp:
    """Object `index` of a tile: its class is uniform over the ten, and it depends on these three numbers only."""
    rng = np.random.default_rng([seed, _TILE_STREAM, tile, index])
    return simulate_stamp(rng, int(rng.integers(len(CLASS_SLUGS))), size=STAMP_PX)


def write_cutout_tile(folder: Path, *, seed: int, tile: int, galaxies: int) -> TileTruth:
    """Write a tile as a folder of viewer-like FITS cutouts, one per galaxy, replacing a folder of that name."""
    ra, dec = tile_positions(seed, tile, galaxies)
    label = np.zeros(galaxies, np.uint8)
    names = [f"sim-{tile:04d}-{index:06d}.fits" for index in range(galaxies)]
    with temporary_file(folder) as partial:
        partial.mkdir(parents=True)
        for index, name in enumerate(names):
            stamp = tile_object(seed, tile, index)
            label[index] = stamp.class_id
            (partial / name).write_bytes(_cutout_bytes(stamp, float(ra[index]), float(dec[index])))
    return TileTruth(tuple(f"{folder.name}/{name}" for name in names), ra, dec, label)


def write_hdf5_tile(path: Path, *, seed: int, tile: int, galaxies: int) -> TileTruth:
    """Write a tile as one HDF5 file of float cutouts, replacing a file of that name.

    Datasets: images float32 (N, 3, 256, 256), nanomaggies per native pixel area, chunked by stamp; ra, dec (degrees)
    and pxscale (arcsec) float64 (N,). Attributes: bands, simulated, survey, seed, tile.
    """
    ra, dec = tile_positions(seed, tile, galaxies)
    label = np.zeros(galaxies, np.uint8)
    pxscale = np.zeros(galaxies)
    shape = (3, STAMP_PX, STAMP_PX)
    with temporary_file(path) as partial, h5py.File(partial, "w") as file:
        images = file.create_dataset("images", (galaxies, *shape), "f4", chunks=(1, *shape) if galaxies else None)
        for index in range(galaxies):
            stamp = tile_object(seed, tile, index)
            label[index], pxscale[index] = stamp.class_id, stamp.pixscale
            images[index] = stamp.flux
        file["ra"], file["dec"], file["pxscale"] = ra, dec, pxscale
        file.attrs.update(bands="grz", simulated=True, survey="SIMULATED", seed=seed, tile=tile)
    return TileTruth(tuple(f"{path.name}#{row}" for row in range(galaxies)), ra, dec, label)


def write_galaxy10(path: Path, *, seed: int, images: int, render: Render) -> None:
    """Write a labelled benchmark in the layout of Galaxy10_DECals.h5, replacing a file of that name.

    render : float32 (N, 3, H, W) nanomaggies in grz, FITS row order -> uint8 (N, H, W, 3), north up.
    Rows are sorted by class, the classes equal in number to within one. Redshifts are random and mean nothing. Beside
    the columns of Galaxy10 there are mag_r and psfsize (FWHM in r, arcsec) of each galaxy.
    """
    label = (np.arange(images) * len(CLASS_SLUGS) // max(images, 1)).astype(np.uint8)
    columns = {name: np.zeros(images) for name in ("ra", "dec", "redshift", "pxscale", "mag_r", "psfsize")}
    shape = (STAMP_PX, STAMP_PX, 3)
    with temporary_file(path) as partial, h5py.File(partial, "w") as file:
        pictures = file.create_dataset("images", (images, *shape), "u1", chunks=(1, *shape) if images else None)
        for start in range(0, images, CHUNK_STAMPS):
            rows = range(start, min(start + CHUNK_STAMPS, images))
            stamps = []
            for row in rows:
                rng = np.random.default_rng([seed, _BENCHMARK_STREAM, int(label[row]), row])
                columns["ra"][row], columns["dec"][row] = benchmark_position(rng)
                columns["redshift"][row] = rng.uniform(0.01, 0.12)
                stamps.append(simulate_stamp(rng, int(label[row]), size=STAMP_PX))
                columns["pxscale"][row] = stamps[-1].pixscale
                columns["mag_r"][row], columns["psfsize"][row] = stamps[-1].mag_r, stamps[-1].seeing[1]
            pictures[start : rows.stop] = render(np.stack([stamp.flux for stamp in stamps]))
        file["ans"] = label
        for name, values in columns.items():
            file[name] = values
        file.attrs.update(simulated=True, survey="SIMULATED", seed=seed)


def simulate(
    incoming: Path,
    *,
    tiles: int,
    galaxies: int,
    seed: int,
    galaxy10: Path | None = None,
    benchmark_images: int = 0,
    render: Render | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> SimulatedSky:
    """Write `tiles` sky tiles of `galaxies` objects below `incoming`, and a benchmark if `galaxy10` is given.

    Even tiles are folders of FITS cutouts, odd tiles HDF5 files. The truth goes to simulated_truth.csv beside
    `incoming`, where no reader of tiles finds it. on_progress is called with the number of stamps written since its
    last call.
    Raises ValueError if `galaxy10` is given without `render`.
    """
    if galaxy10 is not None and render is None:
        raise ValueError(
            "a Galaxy10 file needs render=, the rule that turns flux into RGB (models.preprocessing.colour_rule)"
        )
    incoming.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    truth_path = incoming.parent / "simulated_truth.csv"
    with temporary_file(truth_path) as partial, partial.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["source", "ra", "dec", "label", "slug"])
        for tile in range(tiles):
            path = incoming / (f"sim-tile-{tile:04d}" if tile % 2 == 0 else f"sim-tile-{tile:04d}.h5")
            write = write_cutout_tile if tile % 2 == 0 else write_hdf5_tile
            table.writerows(_truth_rows(write(path, seed=seed, tile=tile, galaxies=galaxies)))
            paths.append(path)
            if on_progress is not None:
                on_progress(galaxies)
    if galaxy10 is not None and render is not None:
        write_galaxy10(galaxy10, seed=seed, images=benchmark_images, render=render)
        if on_progress is not None:
            on_progress(benchmark_images)
    return SimulatedSky(tuple(paths), truth_path, galaxy10)


def _truth_rows(truth: TileTruth) -> Iterator[tuple[str, str, str, int, str]]:
    """Rows of the truth table; ten decimals of a degree are 0.4 micro-arcsec."""
    for source, ra, dec, label in zip(truth.source, truth.ra, truth.dec, truth.label, strict=True):
        yield source, f"{ra:.10f}", f"{dec:.10f}", int(label), CLASS_SLUGS[label]


@contextmanager
def temporary_file(final: Path) -> Iterator[Path]:
    """A temporary path beside `final` to write to: renamed to `final` on success, removed on an exception."""
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.partial")
    _remove(partial)
    try:
        yield partial
        if final.is_dir():
            shutil.rmtree(final)
        partial.replace(final)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _cutout_bytes(stamp: SimulatedStamp, ra: float, dec: float) -> bytes:
    """A complete FITS file like the viewer's /cutout.fits. ra, dec : degrees, at the centre of the stamp.

    As with the viewer, the reference pixel is the stamp's centre and the galaxy lies there to within about a pixel.
    """
    body = stamp.flux.astype(">f4").tobytes()
    return _header(stamp, ra, dec).tostring().encode("ascii") + body + b"\0" * (-len(body) % FITS_BLOCK)


def _header(stamp: SimulatedStamp, ra: float, dec: float) -> fits.Header:
    """The viewer's header cards, in the viewer's order, and the marks of a simulation."""
    _, height, width = stamp.flux.shape
    degrees = stamp.pixscale / 3600.0
    return fits.Header(
        [
            ("SIMPLE", True, "file does conform to FITS standard"),
            ("BITPIX", -32, "number of bits per data pixel"),
            ("NAXIS", 3, "number of data axes"),
            ("NAXIS1", width, "length of data axis 1"),
            ("NAXIS2", height, "length of data axis 2"),
            ("NAXIS3", 3, "length of data axis 3"),
            ("EXTEND", True),
            ("SURVEY", "SIMULATED"),
            ("VERSION", VERSION, "of the simulation, not a data release"),
            ("SIMULATD", True, "not an observation"),
            ("IMAGETYP", "image"),
            ("BANDS", "grz"),
            ("BAND0", "g"),
            ("BAND1", "r"),
            ("BAND2", "z"),
            ("CTYPE1", "RA---TAN", "TANgent plane"),
            ("CTYPE2", "DEC--TAN", "TANgent plane"),
            ("CRVAL1", ra, "Reference RA"),
            ("CRVAL2", dec, "Reference Dec"),
            ("CRPIX1", width / 2 + 0.5, "Reference x"),
            ("CRPIX2", height / 2 + 0.5, "Reference y"),
            ("CD1_1", -degrees, "CD matrix"),
            ("CD1_2", 0.0, "CD matrix"),
            ("CD2_1", 0.0, "CD matrix"),
            ("CD2_2", degrees, "CD matrix"),
            ("IMAGEW", float(width), "Image width"),
            ("IMAGEH", float(height), "Image height"),
            ("COMMENT", "Simulated by morphcat (pipeline.simulation); not an observation."),
        ]
    )
