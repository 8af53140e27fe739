"""The survey's catalogues of every column layout: what is read from a row, and which rows are wanted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.inputs import BrickSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.core.object_ids import NO_SURVEY_KEYS, target_id
from pipeline.readers.bricks.objects import Selection, read_objects
from pipeline.tiles.brick_files import tables_of_brick
from tests.pipeline.brick_makers import BRICK, KEYS, rows, tractor_path, write_rows

ALL = BrickSettings(excluded_types=(), faintest_r=99.0, primary_only=False)
SOURCE = f"south/{BRICK}"


def select(path: Path, wanted: BrickSettings = ALL, brick: str = BRICK) -> Selection:
    return read_objects([path], brick, SOURCE, wanted)


def written(folder: Path, count: int = 3, *, upper: bool = False, **columns: Any) -> Path:
    """A tractor file of the brick with `count` rows."""
    at = 50 + 10 * np.arange(count)
    return write_rows(tractor_path(folder), rows(at, at, **columns), upper=upper)


def refusal(path: Path, brick: str = BRICK) -> Reason:
    with pytest.raises(BadInput) as bad:
        select(path, brick=brick)
    assert str(path) in bad.value.detail
    return bad.value.reason


@pytest.mark.parametrize("upper", [False, True])
def test_a_table_of_today_in_lower_and_in_upper_case(tmp_path: Path, upper: bool) -> None:
    path = written(tmp_path, upper=upper, flux_r=np.array([10.0, 100.0, 0.5]), shape_r=np.array([0.0, 1.5, 12.0]))
    found = select(path).targets
    np.testing.assert_allclose(
        found.mag_r, 22.5 - 2.5 * np.log10(np.array([10, 100, 0.5]) / np.float32(0.9)), rtol=1e-7
    )
    np.testing.assert_array_equal(found.radius, [0, 1.5, 12])
    np.testing.assert_array_equal(found.keys, [(*KEYS, 0), (*KEYS, 1), (*KEYS, 2)])
    np.testing.assert_allclose(found.depth, 22.5 - 2.5 * math.log10(5 / math.sqrt(2000)), rtol=1e-6)
    np.testing.assert_array_equal(found.psfsize, 1.25)
    np.testing.assert_array_equal(found.maskbits, 0)
    assert found.name.tolist() == ["0", "1", "2"] and found.ra.dtype == np.float64


def test_shapes_of_the_releases_before_the_ninth(tmp_path: Path) -> None:
    """The radius of a composite is the mean of both, weighted by the share of the light in the bulge."""
    path = written(
        tmp_path,
        6,
        upper=True,
        type=np.array(["PSF ", "REX ", "EXP ", "DEV ", "COMP", "SIMP"]),
        shape_r=None,
        shapeexp_r=np.array([0.0, 0.7, 1.0, 0.0, 2.0, 0.0]),
        shapedev_r=np.array([0.0, 0.0, 0.0, 3.0, 6.0, 0.0]),
        fracdev=np.array([0.0, 0.0, 0.0, 1.0, 0.25, 0.0]),
    )
    np.testing.assert_allclose(select(path).targets.radius, [0, 0.7, 1, 3, 0.25 * 6 + 0.75 * 2, 0.45])


def test_six_bands_in_one_column(tmp_path: Path) -> None:
    """DR3 and before: u, g, r, i, z, Y side by side; no release, no mask bits."""
    sixes = np.arange(1.0, 13.0, dtype="f4").reshape(2, 6)
    depths = (f"psfdepth_{band}" for band in "grz")
    gone = dict.fromkeys(("release", "flux_r", "mw_transmission_r", "maskbits", "psfsize_r", "shape_r", *depths))
    path = written(
        tmp_path,
        2,
        **gone,
        decam_flux=sixes,
        decam_mw_transmission=np.full((2, 6), 0.5, "f4"),
        decam_psfsize=sixes / 10,
        decam_depth=sixes * 100,
    )
    found = select(path).targets
    np.testing.assert_allclose(found.mag_r, 22.5 - 2.5 * np.log10(np.array([3, 9]) / 0.5))
    np.testing.assert_allclose(found.psfsize, [0.3, 0.9], rtol=1e-6)
    np.testing.assert_allclose(found.depth, 22.5 - 2.5 * np.log10(5 / np.sqrt([[200, 300, 500], [800, 900, 1100]])))
    assert (found.maskbits == -1).all() and np.isnan(found.radius).all()
    assert [tuple(keys) for keys in found.keys] == [NO_SURVEY_KEYS, NO_SURVEY_KEYS]
    known = select(path, ALL.model_copy(update={"release": 3000})).targets
    assert [tuple(keys) for keys in known.keys] == [(3000, KEYS[1], 0), (3000, KEYS[1], 1)]


def test_what_the_table_does_not_have_is_unknown(tmp_path: Path) -> None:
    ra, dec = np.array([150.0, 150.01]), np.array([0.1, 0.1])
    found = select(write_rows(tractor_path(tmp_path), {"ra": ra, "dec": dec}), ALL)
    assert found.set_aside == {"no_r_flux": 2} and len(found.targets) == 0
    bare = select(write_rows(tractor_path(tmp_path), {"ra": ra, "dec": dec, "flux_r": np.array([100.0, 10.0])}))
    np.testing.assert_allclose(bare.targets.mag_r, [17.5, 20.0])
    assert bare.targets.name.tolist() == ["row0", "row1"]
    assert np.isnan(bare.targets.radius).all() and np.isnan(bare.targets.depth).all()


@pytest.mark.parametrize("flux", [0.0, -3.0, np.nan])
def test_without_light_there_is_no_magnitude_and_without_transmission_no_correction(
    tmp_path: Path, flux: float
) -> None:
    path = written(tmp_path, flux_r=np.array([flux, 100, 100]), mw_transmission_r=np.array([1.0, 0.0, 0.5]))
    found = select(path)
    assert found.set_aside == {"no_r_flux": 1}
    np.testing.assert_allclose(found.targets.mag_r, [17.5, 22.5 - 2.5 * math.log10(200)])


def test_nothing_exposed_has_no_depth(tmp_path: Path) -> None:
    found = select(written(tmp_path, psfdepth_z=np.array([0.0, np.nan, 4.0]))).targets
    assert found.depth[0, 2] == -np.inf and np.isnan(found.depth[1, 2])
    assert found.depth[2, 2] == pytest.approx(22.5 - 2.5 * math.log10(5 / 2))


SELECTION: dict[
    str, tuple[dict[str, Any], dict[str, Any]]
] = {  # by reason: columns of two rows, settings; first row out
    "not_primary": ({"brick_primary": [False, True]}, {}),
    "type_psf": ({"type": ["PSF", "SER"]}, {}),
    "type_dup": ({"type": ["DUP", "SER"]}, {}),
    "type_rex": ({"type": ["REX", "SER"]}, {"excluded_types": ("REX",)}),
    "no_r_flux": ({"flux_r": [np.nan, 100.0]}, {}),
    "too_faint": ({"flux_r": [25.0, 100.0], "mw_transmission_r": [1.0, 1.0]}, {}),
    "too_bright": ({"flux_r": [1e6, 100.0]}, {"brightest_r": 12.0}),
    "too_small": ({"shape_r": [0.9, 1.0]}, {"smallest_radius": 1.0}),
    "masked": ({"maskbits": [1 << 12 | 1 << 3, 1 << 3]}, {"excluded_bits": (1, 12)}),
}


@pytest.mark.parametrize("reason", SELECTION)
def test_each_reason_leaves_out_its_row(tmp_path: Path, reason: str) -> None:
    columns, changed = SELECTION[reason]
    path = written(tmp_path, 2, **{name: np.array(values) for name, values in columns.items()})
    found = select(path, BrickSettings(**changed))
    assert found.set_aside == {reason: 1} and found.targets.name.tolist() == ["1"] and found.refused == []


def test_settings_of_selection_let_rows_in(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        4,
        type=np.array(["PSF", "DUP", "EXP", "EXP"]),
        brick_primary=np.array([True, True, False, True]),
        flux_r=np.array([100.0, 100.0, 100.0, 10.0]),
    )
    assert len(select(path, BrickSettings()).targets) == 0
    assert sum(select(path, BrickSettings()).set_aside.values()) == 4
    assert select(path, BrickSettings(excluded_types=("DUP",))).targets.name.tolist() == ["0"]
    assert select(path, BrickSettings(primary_only=False)).targets.name.tolist() == ["2"]
    assert select(path, BrickSettings(faintest_r=21.0)).targets.name.tolist() == ["3"]


def test_extinction_counts_at_the_limit(tmp_path: Path) -> None:
    """19.3 mag as observed, 18.9 without the dust: wanted."""
    path = written(tmp_path, 2, flux_r=np.full(2, 10 ** ((22.5 - 19.3) / 2.5)), mw_transmission_r=np.array([0.7, 1.0]))
    found = select(path, BrickSettings())
    assert found.targets.name.tolist() == ["0"] and found.set_aside == {"too_faint": 1}


NAMES = st.sampled_from([BRICK, BRICK, BRICK, "1498p000"])
PLACES = st.sampled_from([(150.0, 0.1), (150.0, 0.1), (np.nan, 0.1), (150.0, np.nan), (-999.0, 0.1), (10.0, -99.0)])
TYPES = st.sampled_from(["PSF", "DUP", "EXP", "SER", "REX"])
FLUXES = st.sampled_from([np.nan, -1.0, 0.0, 3.0, 25.0, 30.0, 1e7])
ROW = st.tuples(NAMES, PLACES, st.booleans(), TYPES, FLUXES, st.sampled_from([0.2, 3.0]), st.sampled_from([0, 2, 4096]))


def fate(row: tuple[Any, ...], wanted: BrickSettings) -> str:
    """What must become of a row, written out once more: a reason of refusal or of selection, or empty."""
    name, (ra, dec), primary, kind, flux, radius, bits = row
    if name != BRICK:
        return Reason.BRICK_MISMATCH
    if math.isnan(ra) or math.isnan(dec) or abs(dec) > 90 or ra < -180:
        return Reason.NO_POSITION
    if not primary:
        return "not_primary"
    if kind in ("PSF", "DUP"):
        return f"type_{kind.lower()}"
    if not flux > 0:
        return "no_r_flux"
    magnitude = 22.5 - 2.5 * math.log10(flux)
    if magnitude >= wanted.faintest_r or magnitude < wanted.brightest_r:
        return "too_faint" if magnitude >= wanted.faintest_r else "too_bright"
    return "too_small" if radius < wanted.smallest_radius else "masked" if bits & 4096 else ""


@given(st.lists(ROW, max_size=12))
@settings(max_examples=40, deadline=None)
def test_every_row_is_a_target_or_left_out_or_refused(
    tmp_path_factory: pytest.TempPathFactory, table: list[Any]
) -> None:
    wanted = BrickSettings(smallest_radius=1.0, excluded_bits=(12,), brightest_r=10.0)
    names, places, primary, kinds, fluxes, radii, bits = zip(*table, strict=True) if table else [()] * 7
    path = write_rows(
        tractor_path(tmp_path_factory.getbasetemp()),
        {
            "brickname": np.array(names, "U8"),
            "objid": np.arange(len(table)),
            "ra": np.array([ra for ra, _ in places], float),
            "dec": np.array([dec for _, dec in places], float),
            "brick_primary": np.array(primary, bool),
            "type": np.array(kinds, "U4"),
            "flux_r": np.array(fluxes, float),
            "shape_r": np.array(radii, float),
            "maskbits": np.array(bits, "i4"),
        },
    )
    if table and BRICK not in names:
        assert refusal(path) is Reason.BRICK_MISMATCH
        return
    found = select(path, wanted)
    fates = [fate(row, wanted) for row in table]
    assert found.targets.name.tolist() == [str(i) for i, what in enumerate(fates) if not what]
    refused = [what for what in fates if what in (Reason.BRICK_MISMATCH, Reason.NO_POSITION)]
    assert sorted(entry.reason for entry in found.refused) == sorted(refused)
    aside = [what for what in fates if what and what not in refused]
    assert found.set_aside == {what: aside.count(what) for what in set(aside)}
    assert len(found.targets) + len(found.refused) + sum(found.set_aside.values()) == len(table)


def test_rows_of_another_brick_and_rows_without_a_position_are_named(tmp_path: Path) -> None:
    names = np.array([BRICK, "1498p000", BRICK])
    path = written(tmp_path, brickname=names, ra=np.array([150.0, 150.0, np.nan]))
    found = select(path)
    assert found.targets.name.tolist() == ["0"]
    other, nowhere = found.refused
    assert (other.source_name, other.reason) == (f"{SOURCE}#1", Reason.BRICK_MISMATCH) and "1498p000" in other.detail
    assert (nowhere.source_name, nowhere.reason) == (f"{SOURCE}#2", Reason.NO_POSITION) and "nan" in nowhere.detail
    assert all(str(path) in entry.detail and entry.file == str(path) for entry in found.refused)


def test_tables_that_are_no_catalogue_of_the_brick(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"tractor-1501p000\.fits or sweep") as bad:
        read_objects([], BRICK, SOURCE, ALL)
    assert bad.value.reason is Reason.MISSING_CATALOGUE
    path = tractor_path(tmp_path)
    assert refusal(written(tmp_path, brickname=np.full(3, "1498p000"))) is Reason.BRICK_MISMATCH
    write_rows(path, {"ra": np.zeros(2)})
    assert refusal(path) is Reason.NO_POSITION
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(path, overwrite=True)
    assert refusal(path) is Reason.MISSING_DATASET
    whole = written(tmp_path).read_bytes()
    path.write_bytes(whole[: len(whole) - 2880])
    assert refusal(path) is Reason.UNREADABLE_FILE
    path.write_bytes(b"")
    assert refusal(path) is Reason.EMPTY_FILE


def test_an_empty_table_holds_nothing_and_is_no_error(tmp_path: Path) -> None:
    found = select(written(tmp_path, 0, brickname=np.array([], "U8")), BrickSettings())
    assert len(found.targets) == 0 and found.targets.keys.shape == (0, 3) and found.targets.depth.shape == (0, 3)
    assert found.set_aside == {} and found.refused == []


def test_the_table_may_be_named_by_its_hdu(tmp_path: Path) -> None:
    one, two = (fits.BinTableHDU(Table(rows([50 + i], [50]))) for i in range(2))
    one.name, two.name = "OTHER", "TRACTOR"
    path = tractor_path(tmp_path)
    fits.HDUList([fits.PrimaryHDU(), one, two]).writeto(path)
    by_name = select(path, ALL.model_copy(update={"table_hdu": "tractor"})).targets
    by_number = select(path, ALL.model_copy(update={"table_hdu": "2"})).targets
    assert by_name.ra[0] == by_number.ra[0] == two.data["ra"][0] != select(path).targets.ra[0]


def sweeps(root: Path) -> Path:
    """Two sweeps that meet in the brick 1501p000 (right ascension 150 to 150.25), with rows of three bricks."""
    for name, ra, bricks in (
        ("sweep-140m005-150p005.fits", [149.9, 149.95], ["1498p000", "1498p000"]),
        ("sweep-150m005-160p005.fits", [150.1, 150.4, 150.2, 150.1], [BRICK, "1503p000", BRICK, BRICK]),
    ):
        columns = rows(np.zeros(len(ra)), np.zeros(len(ra)), ra=ra, dec=np.zeros(len(ra)), brickname=bricks)
        del columns["brick_primary"]
        write_rows(root / "sweep" / name, columns, upper=True)
    (root / "coadd" / BRICK[:3] / BRICK).mkdir(parents=True)
    return root / "coadd" / BRICK[:3] / BRICK


def test_a_sweep_gives_each_brick_its_rows(tmp_path: Path) -> None:
    folder = sweeps(tmp_path)
    tables = tables_of_brick(folder, BRICK)
    assert [path.name for path in tables] == ["sweep-150m005-160p005.fits"]
    found = read_objects(tables, BRICK, SOURCE, BrickSettings())
    np.testing.assert_array_equal(found.targets.ra, [150.1, 150.2, 150.1])  # in the order of the file
    assert found.targets.name.tolist() == ["0", "2", "3"] and found.refused == [] and found.set_aside == {}
    assert read_objects(tables, "1503p000", SOURCE, BrickSettings()).targets.name.tolist() == ["1"]
    assert len(read_objects(tables, "1506p000", SOURCE, BrickSettings()).targets) == 0


def test_two_sweeps_that_reach_into_one_brick_are_joined(tmp_path: Path) -> None:
    folder = sweeps(tmp_path)
    name = "sweep-150m010-160p000.fits"  # ends at declination 0, in the middle of the brick
    write_rows(
        tmp_path / "sweep" / name,
        rows([0, 0], [0, 0], ra=[150.2, 150.2], dec=[-0.1, -0.2], objid=[70, 71], brickname=[BRICK, "1501m002"]),
        upper=True,
    )
    tables = tables_of_brick(folder, BRICK)
    assert len(tables) == 2
    found = read_objects(tables, BRICK, SOURCE, BrickSettings(brightest_r=-5, faintest_r=18.0)).targets
    assert sorted(found.name.tolist()) == ["0", "2", "3", "70"]


def test_a_sweep_that_names_no_bricks_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "sweep-150m005-160p005.fits", rows([1], [1]))
    assert refusal(path) is Reason.WRONG_SHAPE


def real_rows(path: Path) -> Table:
    table = Table.read(path, hdu=1)
    return Table({name.lower(): table[name] for name in table.colnames})


def test_real_rows_of_dr8(shared: Path) -> None:
    """Six tractor and sweep files: magnitudes, radii, depths and TARGETIDs by another way."""
    seen = 0
    for path in sorted((shared / "data/catalogs/desitarget_sweeps_tractor").glob("*.fits")):
        raw = real_rows(path)
        for brick in sorted(set(raw["brickname"])):
            mine = raw[raw["brickname"] == brick]
            found = select(path, brick=brick).targets
            assert found.name.tolist() == [str(objid) for objid in mine["objid"]], path.name
            for i, row in enumerate(mine):
                flux = float(row["flux_r"]) / float(row["mw_transmission_r"])
                assert found.mag_r[i] == pytest.approx(-2.5 * math.log10(flux / 10**9), abs=1e-9)
                radius = {"DEV": row["shapedev_r"], "PSF": 0.0}.get(row["type"].strip(), row["shapeexp_r"])
                assert found.radius[i] == pytest.approx(float(radius))
                assert target_id(*map(int, found.keys[i])) == (
                    int(row["release"]) * 2**42 + int(row["brickid"]) * 2**22 + int(row["objid"])
                )
                inverse = float(row["psfdepth_r"])
                depth = 2.5 * math.log10(10**9 * math.sqrt(inverse) / 5) if inverse else -math.inf
                assert found.depth[i, 1] == pytest.approx(depth, abs=1e-9)
                assert found.maskbits[i] == row["maskbits"]
                seen += 1
            types = [kind.strip() for kind in mine["type"]]
            assert select(path, BrickSettings(faintest_r=99), brick).set_aside.get("type_psf", 0) == types.count("PSF")
    assert seen == 40


def test_real_rows_of_dr3(shared: Path, tmp_path: Path) -> None:
    """Two galaxies that were seen in z only: without r they are left out, with the flux of z as r they are read."""
    path = shared / "data/fits/decam_ccd_tractor_example/tractor-1816p325-sub.fits"
    raw, wanted = real_rows(path), ALL.model_copy(update={"release": 3000})
    assert select(path, wanted, "1816p325").set_aside == {"no_r_flux": 2}
    for name in ("decam_flux", "decam_psfsize"):
        raw[name][:, 2] = raw[name][:, 4]
    found = select(write_rows(tractor_path(tmp_path), raw), wanted, "1816p325").targets
    flux = raw["decam_flux"][:, 4] / raw["decam_mw_transmission"][:, 2]
    np.testing.assert_allclose(found.mag_r, 22.5 - 2.5 * np.log10(flux.astype(float)), rtol=1e-6)
    np.testing.assert_allclose(found.radius, [raw["shapedev_r"][0], 0.45], rtol=1e-6)
    np.testing.assert_allclose(found.psfsize, 1.685899, rtol=1e-6)
    np.testing.assert_allclose(found.depth[:, 2], 22.5 - 2.5 * np.log10(5 / np.sqrt(9.505714)), rtol=1e-6)
    assert (found.depth[:, :2] == -np.inf).all() and [int(keys[0]) for keys in found.keys] == [3000, 3000]
