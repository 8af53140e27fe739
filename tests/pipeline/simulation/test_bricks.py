"""Simulated survey bricks: the survey's layout, neighbours that agree bit by bit, a catalogue that is true."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from pipeline.core.classes import CLASS_SLUGS
from pipeline.core.errors import UserError
from pipeline.simulation import SimulatedBricks, block_steps, write_bricks
from pipeline.simulation.bricks.block import block_of
from pipeline.tiles.brick_grid import bounds, brick_id, brick_of, neighbours

SIDE, OVERLAP, GALAXIES = 320, 48, 24
BRICKS = ["1501m002", "1498m002", "1501p000", "1498p000"]  # east and south first


@dataclass(frozen=True)
class Written:
    """A small block as written, read back."""

    made: SimulatedBricks
    mosaic: np.ndarray
    planes: dict[tuple[str, str], np.ndarray]
    headers: dict[tuple[str, str], fits.Header]
    tables: dict[str, np.ndarray]
    truth: list[dict[str, str]]
    steps: int


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("block")
    steps: list[int] = []
    made = write_bricks(
        folder / "survey",
        seed=4,
        columns=2,
        rows=2,
        galaxies=GALAXIES,
        side=SIDE,
        overlap=OVERLAP,
        tables="both",
        mosaic=folder / "mosaic.npy",
        on_progress=steps.append,
    )
    planes, headers = {}, {}
    for path in made.root.glob("coadd/*/*/*.fits.fz"):
        with fits.open(path) as hdus:
            assert hdus[0].data is None and len(hdus) == 2
            key = (path.parent.name, path.name.split("-", 2)[2].removesuffix(".fits.fz"))
            planes[key], headers[key] = hdus[1].data, hdus[1].header
    tables = {path.stem.removeprefix("tractor-"): fits.getdata(path, 1) for path in made.root.glob("tractor/*/*.fits")}
    with made.truth.open() as file:
        truth = list(csv.DictReader(file))
    return Written(made, np.load(folder / "mosaic.npy"), planes, headers, tables, truth, sum(steps))


def small(folder: Path, seed: int = 1, **options: Any) -> SimulatedBricks:
    return write_bricks(folder / "survey", seed=seed, columns=1, rows=1, galaxies=1, side=96, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- layout ---------------------------------------------------------------------------------------------------------


def test_folders_and_names_are_those_of_the_survey(written: Written) -> None:
    products = ["maskbits", *(f"{kind}-{band}" for kind in ("image", "invvar", "nexp", "psfsize") for band in "grz")]
    expected = {f"coadd/{b[:3]}/{b}/legacysurvey-{b}-{product}.fits.fz" for b in BRICKS for product in products}
    expected |= {f"tractor/{b[:3]}/tractor-{b}.fits" for b in BRICKS}
    expected |= {f"sweep/sweep-{box}.fits" for box in ("140m005-150p000", "150m005-160p000")}
    expected |= {f"sweep/sweep-{box}.fits" for box in ("140p000-150p005", "150p000-160p005")}
    assert set(files_of(written.made.root)) == expected
    assert [brick.name for brick in written.made.block.bricks] == BRICKS
    assert all(set(BRICKS) - {brick} <= set(neighbours(brick)) for brick in BRICKS)
    assert written.steps == block_steps(2, 2, GALAXIES)


def test_headers_say_what_a_survey_header_says_and_that_it_is_simulated(written: Written) -> None:
    header = written.headers["1498p000", "image-r"]
    assert (header["BRICKNAM"], header["BRICKID"]) == ("1498p000", brick_id("1498p000"))
    assert (header["RAMIN"], header["RAMAX"], header["DECMIN"], header["DECMAX"]) == bounds("1498p000")
    assert (header["FILTER"], header["IMTYPE"], header["MAGZERO"]) == ("r", "image", 22.5)
    assert (header["SIMULATD"], header["SURVEY"]) == (True, "SIMULATED")
    assert header["DRVERSIO"] == written.tables["1498p000"]["release"][0] == 32000
    path = written.made.root / "coadd/149/1498p000/legacysurvey-1498p000-image-r.fits.fz"
    with fits.open(path, disable_image_compression=True) as hdus:
        assert (hdus[1].header["ZCMPTYPE"], hdus[1].header["ZBITPIX"]) == ("RICE_1", -32)


# --- pixels ---------------------------------------------------------------------------------------------------------


def test_bricks_are_windows_of_one_mosaic_bit_by_bit(written: Written) -> None:
    for brick in written.made.block.bricks:
        for band, letter in enumerate("grz"):
            window = written.mosaic[band, brick.y0 : brick.y0 + SIDE, brick.x0 : brick.x0 + SIDE]
            assert window.tobytes() == written.planes[brick.name, f"image-{letter}"].astype("=f4").tobytes()
    east, west = written.planes["1501p000", "image-g"], written.planes["1498p000", "image-g"]
    assert np.array_equal(east[:, -OVERLAP:], west[:, :OVERLAP])
    assert np.unique(west[:, :OVERLAP]).size > 300


def test_same_pixel_of_two_bricks_has_the_same_position(written: Written) -> None:
    east, west = (WCS(written.headers[name, "image-z"]) for name in ("1501p000", "1498p000"))
    here, there = east.pixel_to_world(SIDE - OVERLAP + 3, 70), west.pixel_to_world(3, 70)
    assert here.separation(there).arcsec < 1e-6
    assert east.pixel_to_world(0, 70).ra > here.ra
    assert east.pixel_to_world(0, 80).dec > east.pixel_to_world(0, 70).dec
    assert np.allclose(east.proj_plane_pixel_scales()[0].to_value("arcsec"), 0.262)


def test_zero_means_no_exposure_and_nothing_else(written: Written) -> None:
    some = 0
    for brick in BRICKS:
        for band in "grz":
            image, invvar, nexp, psfsize = (
                written.planes[brick, f"{kind}-{band}"] for kind in ("image", "invvar", "nexp", "psfsize")
            )
            assert np.array_equal(image == 0, nexp == 0)
            assert np.array_equal(psfsize == 0, nexp == 0)
            assert not invvar[nexp == 0].any()
            some += int((nexp == 0).sum())
            assert set(np.unique(nexp)) <= {0, 1, 4} and (nexp == 4).mean() > 0.8 and (nexp == 1).any()
            assert 1.0 <= psfsize.max() <= 1.7
    assert some > 4 * 35 * 35


def test_noise_is_what_invvar_says(written: Written) -> None:
    for band, sigma in zip("grz", (0.0045, 0.0074, 0.0170), strict=True):
        image, invvar = written.planes["1498p000", f"image-{band}"], written.planes["1498p000", f"invvar-{band}"]
        nexp = written.planes["1498p000", f"nexp-{band}"]
        assert np.median(invvar[nexp == 4]) == pytest.approx(sigma**-2, rel=0.01)
        for exposures in (4, 1):
            pair = (nexp[:, 1:] == exposures) & (nexp[:, :-1] == exposures) & (invvar[:, 1:] > 0)
            step = ((image[:, 1:] - image[:, :-1]) * np.sqrt(invvar[:, 1:] / 2))[pair]
            dark = np.abs(image[:, 1:])[pair] < 4 * sigma  # without the light of galaxies, and its noise
            assert 1.4826 * np.median(np.abs(step[dark])) == pytest.approx(1.0, abs=0.2)


def test_cells_in_which_the_sky_is_painted_leave_no_seams(written: Written) -> None:
    """Across the border of two cells the light is as smooth as elsewhere: its third differences are no larger."""
    block = written.made.block
    seen = np.where(block.exposures(1, 0, 0, block.height, block.width) == 4, written.mosaic[1], np.nan)
    for lines in (seen, seen.T):
        rough = np.nanpercentile(np.abs(np.diff(lines, n=3, axis=0)), 85, axis=1)
        assert rough[509:512].max() < 1.5 * np.nanmedian(rough[400:])  # the border lies between lines 511 and 512


# --- catalogue ------------------------------------------------------------------------------------------------------


def test_every_galaxy_is_primary_in_one_brick_and_listed_where_it_has_pixels(written: Written) -> None:
    places = [(float(row["ra"]), float(row["dec"])) for row in written.truth]
    assert len(written.truth) == GALAXIES
    assert {row["slug"] for row in written.truth} <= set(CLASS_SLUGS)
    for row, (ra, dec) in zip(written.truth, places, strict=True):
        copies = [
            (name, entry)
            for name, table in written.tables.items()
            for entry in table
            if abs(entry["ra"] - ra) < 1e-8 and abs(entry["dec"] - dec) < 1e-8
        ]
        holding = [
            name
            for name in BRICKS
            if all(0 <= p < SIDE - 1 for p in WCS(written.headers[name, "image-r"]).all_world2pix(ra, dec, 0))
        ]
        assert sorted(name for name, _ in copies) == sorted(holding)
        primary = [(name, int(entry["objid"])) for name, entry in copies if entry["brick_primary"]]
        assert primary == [(row["brick"], int(row["objid"]))]
    x, y = WCS(written.headers["1498m002", "image-r"]).all_world2pix(*np.array(places).T, 0)
    apart = np.hypot(x[:, None] - x, y[:, None] - y) + 1e9 * np.eye(len(x))
    assert apart.min() * 0.262 > 20


def test_rows_agree_with_the_planes_under_them(written: Written) -> None:
    for name, table in written.tables.items():
        assert np.array_equal(table["objid"], np.arange(len(table)))
        assert (table["brickname"] == name).all() and (table["brickid"] == brick_id(name)).all()
        x, y = WCS(written.headers[name, "maskbits"]).all_world2pix(table["ra"], table["dec"], 0)
        assert np.abs(x - table["bx"]).max() < 1e-3 and np.abs(y - table["by"]).max() < 1e-3
        pixel = (np.rint(table["by"]).astype(int), np.rint(table["bx"]).astype(int))
        assert np.array_equal(written.planes[name, "maskbits"][pixel], table["maskbits"])
        assert np.array_equal(table["maskbits"] & 1 == 0, table["brick_primary"])
        for band in "grz":
            nobs = table[f"nobs_{band}"]
            assert np.array_equal(written.planes[name, f"nexp-{band}"][pixel], nobs)
            assert np.abs(written.planes[name, f"psfsize-{band}"][pixel] - table[f"psfsize_{band}"]).max() < 1e-3
            for column in ("flux", "flux_ivar", "psfsize", "psfdepth", "galdepth"):
                lacking = table[f"{column}_{band}"] == 0
                assert np.array_equal(lacking[table["type"] != "DUP"], nobs[table["type"] != "DUP"] == 0), column
        faint = 22.5 - 5 / 2 * np.log10(5 / np.sqrt(table["psfdepth_g"][table["nobs_g"] == 4]))
        assert np.abs(faint - 24.3).max() < 0.3  # about the median depth of the survey
    kinds = np.concatenate([table["type"] for table in written.tables.values()])
    assert {"PSF", "REX", "EXP", "DEV", "SER"} <= set(kinds.tolist())


def test_only_the_targets_are_brighter_than_the_limit_for_morphology(written: Written) -> None:
    bright = 0
    for table in written.tables.values():
        seen = table[(table["flux_r"] > 0) & table["brick_primary"] & ~np.isin(table["type"], ["PSF", "DUP"])]
        mag = 22.5 - 2.5 * np.log10(seen["flux_r"] / seen["mw_transmission_r"])
        bright += int((mag < 19).sum())
        assert (mag > 19).any()
        by_place = {(row["brick"], int(row["objid"])): float(row["mag_r"]) for row in written.truth}
        for row, value in zip(seen[mag < 19], mag[mag < 19], strict=True):
            assert by_place[row["brickname"], int(row["objid"])] == pytest.approx(value, abs=1e-3)
    missing = sum(
        int((table["brick_primary"] & (table["nobs_r"] == 0) & (table["flux_g"] > 10 ** (0.4 * 3))).sum())
        for table in written.tables.values()
    )
    assert GALAXIES - missing <= bright <= GALAXIES


def test_half_of_a_galaxy_lies_within_its_radius_and_along_its_angle(written: Written) -> None:
    shares, contrasts = [], []
    for row in written.truth:
        entry = written.tables[row["brick"]][int(row["objid"])]
        brick = next(b for b in written.made.block.bricks if b.name == row["brick"])
        x, y = entry["bx"] + brick.x0, entry["by"] + brick.y0
        radius = entry["shape_r"] / 0.262
        size = np.hypot(entry["shape_e1"], entry["shape_e2"])
        angle = 0.5 * np.arctan2(entry["shape_e2"], entry["shape_e1"])  # from north to east; +x is west
        rows, columns = np.indices(written.mosaic.shape[1:])
        north, east = rows - y, x - columns
        along = north * np.cos(angle) + east * np.sin(angle)
        across = east * np.cos(angle) - north * np.sin(angle)
        ratio = (1 - size) / (1 + size)
        inside = np.hypot(along, across / ratio) < radius
        crossed = np.hypot(across, along / ratio) < radius
        if row["slug"] in ("round_smooth", "in_between_smooth", "cigar_smooth"):
            shares.append(written.mosaic[1][inside].sum() / 10 ** (0.4 * (22.5 - float(row["mag_r"]) - 0.07)))
        if ratio < 0.5:
            contrasts.append(written.mosaic[1][inside].sum() / written.mosaic[1][crossed].sum())
    assert len(shares) >= 4 and 0.4 < np.median(shares) < 0.6  # 0.07 mag: the extinction in r
    assert len(contrasts) >= 4 and np.median(contrasts) > 1.3


def test_masks_lie_on_stars_large_galaxies_and_a_cluster(written: Written) -> None:
    bits = np.concatenate([written.planes[name, "maskbits"].ravel() for name in BRICKS])
    for bit in (0, 1, 2, 3, 4, 5, 6, 7, 11, 13):
        assert (bits & 1 << bit).any(), bit
    for name, table in written.tables.items():
        stars = table[table["ref_cat"] == "T2"]
        assert (stars["type"] == "PSF").all()
        assert (stars["maskbits"] & (1 << 1 | 1 << 11) == 1 << 1 | 1 << 11).all()
        assert (22.5 - 2.5 * np.log10(np.maximum(stars["flux_r"], 1)) < 13.01)[stars["flux_r"] > 0].all()
        large = table[table["ref_cat"] == "L3"]
        assert (large["maskbits"] & 1 << 12 > 0).all()
        for band, letter in enumerate("grz"):
            saturated = written.planes[name, "maskbits"] & 1 << (2 + band) > 0
            assert not written.planes[name, f"invvar-{letter}"][saturated].any()
            assert (written.planes[name, f"image-{letter}"][saturated] >= 32).all()
    assert sum(int((table["ref_cat"] == "T2").sum()) for table in written.tables.values()) >= 4
    assert sum(_saturated_near(written, row) for row in written.truth) >= 1


def _saturated_near(written: Written, row: dict[str, str]) -> bool:
    """Whether a pixel within 5 arcsec of a galaxy is saturated in r."""
    entry = written.tables[row["brick"]][int(row["objid"])]
    y, x = np.indices((SIDE, SIDE))
    near = np.hypot(x - entry["bx"], y - entry["by"]) < 5 / 0.262
    return bool((written.planes[row["brick"], "maskbits"][near] & 1 << 3).any())


def test_sweeps_hold_the_primary_rows_and_no_others(written: Written) -> None:
    found = []
    for path in sorted(written.made.root.glob("sweep/*.fits")):
        table = fits.getdata(path, 1)
        assert all(name.isupper() for name in table.names)
        assert not {"BRICK_PRIMARY", "BX", "BY"} & set(table.names)
        found += [(row["BRICKNAME"], int(row["OBJID"])) for row in table]
    expected = [(name, int(k)) for name, rows in written.tables.items() for k in rows["objid"][rows["brick_primary"]]]
    assert sorted(found) == sorted(expected)


# --- other layouts, other blocks ------------------------------------------------------------------------------------


def test_dr8_layout_has_the_columns_and_models_of_dr8(tmp_path: Path, shared: Path) -> None:
    made = write_bricks(
        tmp_path / "old", seed=3, columns=1, rows=1, galaxies=4, side=256, layout="dr8", region="0001m005"
    )
    (path,) = made.root.glob("tractor/*/*.fits")
    assert path.name == "tractor-0001m005.fits"
    table = fits.getdata(path, 1)
    real = fits.getdata(shared / "data/catalogs/desitarget_sweeps_tractor/tractor-3301m002.fits", 1)
    assert set(table.names) - set(real.names) <= {"BRICK_PRIMARY", "BX", "BY"} | {
        f"{name}_{band}" for name in ("ANYMASK", "PSFSIZE") for band in "GRZ"
    }  # which that file, cut down for tests of others, has not
    for name in ("RELEASE", "BRICKID", "OBJID", "MASKBITS", "NOBS_G", "ALLMASK_R", "TYPE", "REF_CAT", "SHAPEEXP_R"):
        assert name == "MASKBITS" or table[name].dtype == real[name].dtype, name
    kinds = set(table["TYPE"].tolist())
    assert "SER" not in kinds and kinds <= {"PSF", "REX", "EXP", "DEV", "COMP", "DUP"}
    disc = np.isin(table["TYPE"], ["EXP", "REX"])
    assert (table["SHAPEEXP_R"][disc] > 0).all() and not table["SHAPEDEV_R"][disc].any()
    bulge = table["TYPE"] == "DEV"
    assert (table["SHAPEDEV_R"][bulge] > 0).all() and not table["SHAPEEXP_R"][bulge].any()


def test_bricks_of_full_size_have_their_own_areas_where_the_grid_has_them() -> None:
    block = block_of(0, 3, 3, side=3600, overlap=None, region="1498p020")
    assert {b.name for b in block.bricks} == {"1498p020", *neighbours("1498p020")}
    rng = np.random.default_rng(0)
    x, y = block.off_lines(rng.uniform(0, block.width, 3000), rng.uniform(0, block.height, 3000))
    ra, dec = block.sky(x, y)
    column, row = block.brick_at(x, y)
    inside = block.covered(x, y)
    assert 0.9 < inside.mean() < 0.99
    names = {(b.column, b.row): b.name for b in block.bricks}
    for i in np.flatnonzero(inside):
        assert brick_of(ra[i], dec[i]) == names[column[i], row[i]]
    overlaps = [3600 - (b.x0 - a.x0) for a, b in zip(block.bricks, block.bricks[1:], strict=False) if a.row == b.row]
    assert all(160 <= overlap <= 170 for overlap in overlaps)  # 0.0121 degrees are 166 pixels


def test_impossible_blocks_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nearer to the equator"):
        block_of(0, 4, 4, side=3600, overlap=None, region="1499p300")
    for options in ({"columns": 0, "rows": 1}, {"columns": 1, "rows": 1, "side": 20}):
        with pytest.raises(UserError):
            write_bricks(tmp_path / "x", seed=0, galaxies=1, **options)
    with pytest.raises(UserError, match="have no room"):
        write_bricks(tmp_path / "x", seed=0, columns=1, rows=1, galaxies=50, side=128)
    with pytest.raises(RuntimeError, match="stop"):
        small(tmp_path, on_progress=lambda _: (_ for _ in ()).throw(RuntimeError("stop")))
    assert list(tmp_path.iterdir()) == []


def test_same_seed_writes_the_same_files_and_replaces_old_ones(tmp_path: Path) -> None:
    small(tmp_path, seed=2)
    other = files_of(tmp_path)
    small(tmp_path)
    first = files_of(tmp_path)
    small(tmp_path)
    assert files_of(tmp_path) == first
    assert first.keys() == other.keys()
    assert first != other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["simulated_bricks_truth.csv", "survey"]


@pytest.mark.slow
def test_brick_of_full_size_has_the_density_and_the_masks_of_the_survey(tmp_path: Path) -> None:
    made = write_bricks(tmp_path / "survey", seed=1, columns=1, rows=1, galaxies=100)
    (tractor,) = made.root.glob("tractor/*/*.fits")
    table = fits.getdata(tractor, 1)
    assert 2000 < len(table) < 20000
    assert {"DUP", "SER", "PSF"} <= set(table["type"].tolist())
    assert (table["shape_r"] > 10).any()
    for row in table[table["brick_primary"]]:
        assert brick_of(row["ra"], row["dec"]) == "1498p000"
    sizes = {path.name: path.stat().st_size for path in made.root.glob("coadd/*/*/*.fits.fz")}
    assert max(sizes.values()) < 15e6
    mask = fits.getdata(next(made.root.glob("coadd/*/*/*maskbits*")), 1)
    assert mask.shape == (3600, 3600)
    assert 0.0005 < (mask & 1 << 1 > 0).mean() < 0.2
