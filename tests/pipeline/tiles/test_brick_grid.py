"""The brick grid: real names, numbers and boxes of the survey, and a grid that covers the sphere once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from pipeline.tiles.brick_grid import (
    STEP_DEG,
    bounds,
    brick_id,
    brick_ids,
    brick_name,
    brick_of,
    centre,
    columns,
    neighbours,
)

ALL_BRICKS = 662_174  # in the survey's own table of bricks


def test_real_brick_has_the_number_and_the_box_of_its_header() -> None:
    assert brick_id("0959p805") == 657438
    assert centre("0959p805") == (pytest.approx(95.9504132231405, abs=1e-12), 80.5)
    assert bounds("0959p805") == pytest.approx((95.206611570248, 96.6942148760331, 80.375, 80.625), abs=1e-12)


def test_real_catalogue_rows_lie_in_the_brick_they_name(shared: Path) -> None:
    rows = 0
    for path in sorted((shared / "data/catalogs/desitarget_sweeps_tractor").glob("*.fits")):
        for row in fits.getdata(path, 1):
            inside = path.name.startswith("sweep")  # a brick's own table also holds objects just outside its box
            assert brick_id(row["BRICKNAME"]) == row["BRICKID"], path.name
            assert not inside or brick_of(row["RA"], row["DEC"]) == row["BRICKNAME"], path.name
            rows += 1
    assert rows > 20


def test_fifty_thousand_real_objects_have_the_brick_numbers_of_the_survey(shared: Path) -> None:
    pd = pytest.importorskip("pandas")
    table = pd.read_parquet(
        shared / "data/catalogs/gz_desi_explorer_50k_radec.parquet", columns=["id_str", "ra", "dec"]
    )
    expected = table["id_str"].str.split("_").str[0].astype(int).to_numpy()
    assert np.mean(brick_ids(table["ra"].to_numpy(), table["dec"].to_numpy()) == expected) == 1.0


def test_every_brick_has_its_own_name_that_leads_back_to_it() -> None:
    assert int(columns().sum()) == ALL_BRICKS
    row_starts = 1 + np.concatenate([[0], np.cumsum(columns())])
    some = {1, 2, ALL_BRICKS - 1, ALL_BRICKS, *range(1, ALL_BRICKS, 97)}
    for row in (305, 360, 415, 442, 595):  # with centres on whole tenths of a degree, where floats go wrong, and others
        some |= set(range(int(row_starts[row]), int(row_starts[row + 1])))
    names = {brickid: brick_name(brickid) for brickid in some}
    assert len(set(names.values())) == len(some)
    for brickid, name in names.items():
        assert brick_id(name) == brickid
        assert brick_of(*centre(name)) == name


def test_names_are_cut_off_in_whole_numbers() -> None:
    assert centre("0027p137") == (pytest.approx(2.7), 13.75)  # 2.7 * 10 is 26.999… as a float
    assert brick_of(0.1, 0.0) == "0001p000"
    assert brick_of(0.1, -0.2) == "0001m002"
    assert (brick_of(12.0, -90.0), brick_of(12.0, 90.0)) == ("1800m900", "1800p900")
    assert brick_of(360.0, 2.0) == brick_of(0.0, 2.0)
    assert brick_of(-0.1, 2.0) == brick_of(359.9, 2.0)


@pytest.mark.parametrize("name", ["0959p80", "9999p805", "0958p805", "1498p021", "1498p900", "1498q020", "149８p020"])
def test_what_is_no_brick_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a brick"):
        bounds(name)


def test_impossible_positions_and_numbers_are_refused() -> None:
    for ra, dec in ((np.nan, 0.0), (10.0, 90.1), (np.inf, 1.0)):
        with pytest.raises(ValueError, match="finite"):
            brick_of(ra, dec)
    for number in (0, ALL_BRICKS + 1):
        with pytest.raises(ValueError, match="BRICKID"):
            brick_name(number)
    with pytest.raises(ValueError, match="within"):
        neighbours("1498p020", within=0.0)


def test_boxes_tile_the_sky_without_gap_or_overlap() -> None:
    area = 0.0
    for row in range(len(columns())):
        dec = -90.0 + row * STEP_DEG
        ra1, ra2, south, north = bounds(brick_of(1.0, dec))
        area += columns()[row] * (ra2 - ra1) * np.degrees(np.sin(np.radians(north)) - np.sin(np.radians(south)))
        assert (ra2 - ra1) * np.cos(np.radians(min(abs(south), abs(north)))) <= STEP_DEG + 1e-9 or row in (0, 720)
    assert area == pytest.approx(41252.96, abs=0.01)  # square degrees of the sphere


@pytest.mark.parametrize("name", ["1498p020", "0001p000", "3598m302", "0959p805", "1800p900", "0180p897"])
def test_neighbours_are_the_bricks_that_a_walk_around_the_box_meets(name: str) -> None:
    """Positions just outside the box, all around, lie in neighbours and nowhere else."""
    ra1, ra2, dec1, dec2 = bounds(name)
    step = 0.005
    along = np.linspace(0.0, 1.0, 400)
    met: set[str] = set()
    for dec in (dec1 - step, dec2 + step):
        if abs(dec) < 90.0:
            met |= {brick_of(ra, dec) for ra in ra1 + along * (ra2 - ra1)}
    for dec in dec1 + along * (dec2 - dec1 - 1e-9):
        reach = step / max(np.cos(np.radians(dec)), 1e-6)
        met |= {brick_of(ra, float(dec)) for ra in (ra1 - reach, ra2 + reach)}
    found = neighbours(name)
    assert met - {name} <= set(found)
    assert name not in found
    assert len(found) == len(set(found))
    for other in found:
        assert name in neighbours(other) or dec2 > 89.0  # there a step in RA is not the same length in every row


def test_brick_near_the_equator_has_the_eight_around_it() -> None:
    assert neighbours("1498p000") == [
        "1496m002", "1498m002", "1501m002", "1496p000", "1501p000", "1496p002", "1498p002", "1501p002",
    ]  # fmt: skip
    assert len(neighbours("0001p000")) == 8
    assert "3598p000" in neighbours("0001p000")
