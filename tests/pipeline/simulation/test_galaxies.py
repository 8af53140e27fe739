"""The simulated sky: reproducible, in survey units and formats, and with shapes that deserve their labels."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import gaussian_filter, label

from pipeline.core.classes import CLASS_SLUGS
from pipeline.simulation import (
    SimulatedStamp,
    simulate,
    simulate_stamp,
    tile_object,
    write_cutout_tile,
    write_galaxy10,
    write_hdf5_tile,
)
from pipeline.simulation.galaxies.layers import DrawingFrame, light
from pipeline.simulation.galaxies.profiles import moffat, sersic
from pipeline.simulation.galaxies.spirals import tight_spiral
from pipeline.simulation.positions import MAX_GALAXIES, MAX_TILES, patch_centre, tile_positions
from tests.paths import ROOT

CLASS_ID = {slug: number for number, slug in enumerate(CLASS_SLUGS)}


def stamp_of(slug: str, index: int = 0, size: int = 256) -> SimulatedStamp:
    return simulate_stamp(np.random.default_rng([5, CLASS_ID[slug], index]), CLASS_ID[slug], size=size)


def quick_render(flux: np.ndarray) -> np.ndarray:
    """Not the colour rule, only its shape: float32 (N, 3, H, W) -> uint8 (N, H, W, 3), north up."""
    return np.clip(flux[:, ::-1, ::-1].transpose(0, 2, 3, 1) * 255, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Shape:
    """Second moments of a galaxy: rms length (pixels) and axis ratio; and each of its pixels along and across it."""

    length: float
    axis_ratio: float
    along: np.ndarray
    across: np.ndarray
    weight: np.ndarray


def shape_of(stamp: SimulatedStamp) -> Shape:
    """Measured in r on pixels well above the sky and joined to the centre, so that neighbours do not count."""
    band = gaussian_filter(stamp.flux[1], 1.5)
    regions, _ = label(band > 0.03)
    column, row = (round(c) for c in stamp.centre)
    y, x = np.nonzero(regions == regions[row, column])
    weight = band[y, x]
    offset = np.stack([x - np.average(x, weights=weight), y - np.average(y, weights=weight)])
    variance, axes = np.linalg.eigh(np.cov(offset, aweights=weight))
    across, along = axes.T @ offset
    return Shape(float(np.sqrt(variance[1])), float(np.sqrt(variance[0] / variance[1])), along, across, weight)


def median_axis_ratio(slug: str) -> float:
    return float(np.median([shape_of(stamp_of(slug, index)).axis_ratio for index in range(9)]))


# --- profiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [1.0, 2.5, 4.0])
def test_half_of_the_sersic_light_lies_inside_the_half_light_radius(index: float) -> None:
    radius = np.linspace(0.0, 400.0, 400_001, dtype=np.float32)
    ring_light = np.cumsum(sersic(radius, 2.0, index) * radius, dtype=np.float64)
    assert ring_light[2000] / ring_light[-1] == pytest.approx(0.5, abs=0.005)


def test_moffat_falls_to_a_half_at_half_its_fwhm() -> None:
    assert moffat(np.array([0.0, 0.65]), 1.3, 3.0) == pytest.approx([1.0, 0.5])


def test_light_of_a_galaxy_sums_to_its_flux_and_its_bulge_is_redder_than_its_arms() -> None:
    side = np.arange(-80, 81, dtype=np.float32)
    frame = DrawingFrame(*np.meshgrid(side, side), reach=45.0)
    image = light(tight_spiral(np.random.default_rng(3), frame), frame, flux_r=100.0)
    assert image[1].sum() == pytest.approx(100.0, rel=1e-4)
    g_over_z = image[0] / np.maximum(image[2], 1e-9)
    centre = g_over_z[frame.radius < 3].mean()
    outskirts = g_over_z[(frame.radius > 25) & (frame.radius < 35)].mean()
    assert centre < 0.8 * outskirts


# --- stamps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_id", range(10))
def test_stamp_is_float32_grz_finite_and_repeatable(class_id: int) -> None:
    first = simulate_stamp(np.random.default_rng([1, class_id]), class_id, size=128)
    again = simulate_stamp(np.random.default_rng([1, class_id]), class_id, size=128)
    other = simulate_stamp(np.random.default_rng([2, class_id]), class_id, size=128)
    assert first.flux.shape == (3, 128, 128)
    assert first.flux.dtype == np.float32
    assert np.isfinite(first.flux).all()
    assert first.flux.tobytes() == again.flux.tobytes()
    assert first.flux.tobytes() != other.flux.tobytes()
    assert 13.3 <= first.mag_r <= 17.8
    assert all(1.0 <= seeing <= 1.7 for seeing in first.seeing)


def test_unknown_class_is_refused() -> None:
    with pytest.raises(ValueError, match="class_id must be 0 to 9"):
        simulate_stamp(np.random.default_rng(0), 10)


@pytest.mark.parametrize("pixscale", [0.262, 0.524])
def test_flux_in_an_aperture_agrees_with_the_magnitude(pixscale: float) -> None:
    def measured_over_true(stamp: SimulatedStamp) -> float:
        y, x = np.indices(stamp.flux.shape[1:])
        distance = np.hypot(x - stamp.centre[0], y - stamp.centre[1])
        sky = np.mean(stamp.flux[1][distance > 95])  # a mean, to hold neighbours as the aperture does
        total = (stamp.flux[1] - sky)[distance < 70].sum() * (stamp.pixscale / 0.262) ** 2
        return float(total / 10 ** (0.4 * (22.5 - stamp.mag_r)))

    stamps = [stamp_of("cigar_smooth", index) for index in range(60)]
    ratios = [measured_over_true(stamp) for stamp in stamps if stamp.pixscale == pixscale]
    assert len(ratios) >= 3
    assert np.median(ratios) == pytest.approx(1.0, abs=0.1)  # a single one may hold a bright star


def test_sky_noise_is_that_of_the_survey() -> None:
    native = next(s for s in (stamp_of("round_smooth", i) for i in range(9)) if s.pixscale == 0.262)
    for band, expected in zip(native.flux, (0.0045, 0.0074, 0.017), strict=True):
        sky = np.concatenate([band[:, :20].ravel(), band[:, -20:].ravel()])
        sigma = 1.4826 * np.median(np.abs(sky - np.median(sky)))
        assert expected / 1.6 < sigma < expected * 1.8


def test_smooth_classes_are_ordered_by_flattening_and_needles_are_thinner_still() -> None:
    round_, between, cigar = (median_axis_ratio(slug) for slug in ("round_smooth", "in_between_smooth", "cigar_smooth"))
    needle, bulged = median_axis_ratio("edge_on_no_bulge"), median_axis_ratio("edge_on_bulge")
    assert round_ > 0.85
    assert 0.45 < between < 0.8
    assert cigar < 0.45
    assert needle < 0.25
    assert needle < cigar < between < round_
    assert needle < bulged < between


def test_bulge_makes_the_middle_of_an_edge_on_galaxy_brighter_than_its_disc() -> None:
    def contrast(stamp: SimulatedStamp) -> float:
        """Light of a slice through the middle relative to that of equal slices at 0.6 rms lengths from it."""
        shape = shape_of(stamp)
        way = np.abs(shape.along) / shape.length
        return float(shape.weight[way < 0.15].sum() / shape.weight[(way > 0.5) & (way < 0.65)].sum())

    bulged = np.median([contrast(stamp_of("edge_on_bulge", index)) for index in range(9)])
    plain = np.median([contrast(stamp_of("edge_on_no_bulge", index)) for index in range(9)])
    assert bulged > 1.3 * plain


def test_disturbed_galaxies_are_less_symmetric_than_smooth_ones() -> None:
    """Half the summed |I - I rotated by 180 degrees| over the light (Abraham et al. 1996), within 50 pixels."""

    def asymmetry(stamp: SimulatedStamp) -> float:
        column, row = (round(c) for c in stamp.centre)
        cut = stamp.flux[1, row - 50 : row + 51, column - 50 : column + 51]
        return float(0.5 * np.abs(cut - cut[::-1, ::-1]).sum() / np.abs(cut).sum())

    disturbed = np.median([asymmetry(stamp_of("disturbed", index)) for index in range(9)])
    smooth = np.median([asymmetry(stamp_of("in_between_smooth", index)) for index in range(9)])
    assert disturbed > 1.5 * smooth


# --- positions ------------------------------------------------------------------------------------------------------


def test_tiles_have_their_own_patches_in_the_footprint_and_objects_are_apart() -> None:
    centres = {patch_centre(3, tile) for tile in range(50)}
    assert len(centres) == 50
    ra, dec = tile_positions(3, 7, 400)
    centre_ra, centre_dec = patch_centre(3, 7)
    assert np.abs((ra - centre_ra) * np.cos(np.radians(dec))).max() < 0.13
    assert np.abs(dec - centre_dec).max() <= 0.125
    assert ra.min() > 120 and ra.max() < 250 and dec.min() > 0 and dec.max() < 30
    sky = SkyCoord(ra, dec, unit="deg")
    assert sky.match_to_catalog_sky(sky, nthneighbor=2)[1].arcsec.min() > 3.0
    fewer = tile_positions(3, 7, 5)
    assert np.array_equal(fewer[0], ra[:5]) and np.array_equal(fewer[1], dec[:5])


def test_too_many_tiles_or_galaxies_are_refused() -> None:
    with pytest.raises(ValueError, match="tile must be"):
        patch_centre(0, MAX_TILES)
    with pytest.raises(ValueError, match="write more tiles"):
        tile_positions(0, 0, MAX_GALAXIES + 1)


# --- files ----------------------------------------------------------------------------------------------------------


def test_cutout_is_like_the_viewers_and_its_wcs_puts_the_galaxy_at_its_position(tmp_path: Path) -> None:
    truth = write_cutout_tile(tmp_path / "sim-tile-0004", seed=9, tile=4, galaxies=3)
    for index, source in enumerate(truth.source):
        with fits.open(tmp_path / source) as hdus:
            hdus.verify("exception")
            header, data = hdus[0].header, hdus[0].data
            assert data.shape == (3, 256, 256)
            assert data.dtype == np.dtype(">f4")
        stamp = tile_object(9, 4, index)
        assert np.array_equal(data, stamp.flux)
        assert (header["SURVEY"], header["SIMULATD"], header["IMAGETYP"]) == ("SIMULATED", True, "image")
        assert [header["BANDS"], header["BAND0"], header["BAND1"], header["BAND2"]] == ["grz", "g", "r", "z"]
        assert "not an observation" in str(header["COMMENT"])
        wcs = WCS(header, naxis=2)
        x, y = wcs.all_world2pix(truth.ra[index], truth.dec[index], 0)
        assert (x, y) == pytest.approx((127.5, 127.5), abs=1e-6)
        assert np.hypot(stamp.centre[0] - x, stamp.centre[1] - y) < 2.0
        east = wcs.pixel_to_world(0, 127.5)
        assert east.ra.deg > truth.ra[index]  # column 0 is east
        assert wcs.pixel_to_world(127.5, 0).dec.deg < truth.dec[index]  # row 0 is south
        assert header["CD2_2"] * 3600 == pytest.approx(stamp.pixscale)


def test_hdf5_tile_layout_and_objects_do_not_depend_on_how_many_are_written(tmp_path: Path) -> None:
    truth = write_hdf5_tile(tmp_path / "sim-tile-0001.h5", seed=2, tile=1, galaxies=4)
    write_hdf5_tile(tmp_path / "short.h5", seed=2, tile=1, galaxies=2)
    with h5py.File(tmp_path / "sim-tile-0001.h5") as file, h5py.File(tmp_path / "short.h5") as short:
        images = file["images"]
        assert (images.shape, images.dtype, images.chunks) == ((4, 3, 256, 256), np.dtype("f4"), (1, 3, 256, 256))
        assert file.attrs["bands"] == "grz"
        assert bool(file.attrs["simulated"]) is True
        assert file["ra"].dtype == file["dec"].dtype == file["pxscale"].dtype == np.dtype("f8")
        assert set(file["pxscale"][:]) <= {0.262, 0.524}
        assert np.array_equal(images[:2], short["images"][:])
        assert np.array_equal(file["ra"][:], truth.ra)
    assert truth.source == tuple(f"sim-tile-0001.h5#{row}" for row in range(4))


def test_galaxy10_file_has_the_published_layout_sorted_and_balanced(tmp_path: Path) -> None:
    path = tmp_path / "Galaxy10_simulated.h5"
    write_galaxy10(path, seed=2, images=23, render=quick_render)
    with h5py.File(path) as file:
        assert set(file) == {"images", "ans", "ra", "dec", "redshift", "pxscale", "mag_r", "psfsize"}
        assert (file["images"].shape, file["images"].dtype) == ((23, 256, 256, 3), np.dtype("u1"))
        assert file["images"][:].any(axis=(1, 2, 3)).all()
        answers = file["ans"][:]
        assert answers.dtype == np.uint8
        assert np.array_equal(answers, np.sort(answers))
        counts = np.bincount(answers, minlength=10)
        assert counts.min() >= 2 and counts.max() <= 3
        assert all(file[name].dtype == np.dtype("f8") for name in ("ra", "dec", "redshift", "pxscale"))
        assert bool(file.attrs["simulated"]) is True


def test_benchmark_shares_no_sky_and_no_galaxy_with_the_tiles(tmp_path: Path) -> None:
    written: list[int] = []
    result = simulate(
        tmp_path / "incoming",
        tiles=2,
        galaxies=3,
        seed=6,
        galaxy10=tmp_path / "g10.h5",
        benchmark_images=10,
        render=quick_render,
        on_progress=written.append,
    )
    assert sum(written) == 16
    assert [path.name for path in result.tiles] == ["sim-tile-0000", "sim-tile-0001.h5"]
    with result.truth.open() as file:
        rows = list(csv.DictReader(file))
    assert result.truth == tmp_path / "simulated_truth.csv"
    assert len(rows) == 6
    assert all(CLASS_SLUGS[int(row["label"])] == row["slug"] for row in rows)
    assert (tmp_path / "incoming" / rows[0]["source"]).is_file()
    tiles = SkyCoord([float(r["ra"]) for r in rows], [float(r["dec"]) for r in rows], unit="deg")
    with h5py.File(tmp_path / "g10.h5") as file:
        benchmark = SkyCoord(file["ra"][:], file["dec"][:], unit="deg")
        pictures = {file["images"][row].tobytes() for row in range(10)}
    assert benchmark.match_to_catalog_sky(tiles)[1].deg.min() > 1.0
    ours = {quick_render(tile_object(6, tile, index).flux[None])[0].tobytes() for tile in (0, 1) for index in range(3)}
    assert len(pictures) == 10
    assert not pictures & ours


def test_same_seed_writes_the_same_files_and_replaces_old_ones(tmp_path: Path) -> None:
    folder, path = tmp_path / "tile", tmp_path / "tile.h5"
    for _ in range(2):
        write_cutout_tile(folder, seed=1, tile=0, galaxies=1)
        write_hdf5_tile(path, seed=1, tile=1, galaxies=1)
        first = {p.name: p.read_bytes() for p in folder.iterdir()}
    write_cutout_tile(tmp_path / "again", seed=1, tile=0, galaxies=1)
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "tile", "tile.h5"]


def test_nothing_is_left_when_rendering_fails(tmp_path: Path) -> None:
    def broken(flux: np.ndarray) -> np.ndarray:
        raise RuntimeError("no colours")

    with pytest.raises(RuntimeError, match="no colours"):
        write_galaxy10(tmp_path / "g10.h5", seed=0, images=2, render=broken)
    assert list(tmp_path.iterdir()) == []


def test_galaxy10_without_a_colour_rule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="render="):
        simulate(tmp_path / "incoming", tiles=0, galaxies=0, seed=0, galaxy10=tmp_path / "g10.h5", benchmark_images=1)


def test_package_imports_neither_torch_nor_models() -> None:
    code = "import sys, pipeline.simulation; print([m for m in ('torch', 'models') if m in sys.modules])"
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
