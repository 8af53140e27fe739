"""Lists of positions: read from every format, cut from one brick each, and nothing of them lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from catalogs.schema import QualityFlag
from pipeline.core.errors import Reason, UserError
from pipeline.core.object_ids import target_id
from pipeline.ingest.discovery import brick_tile, discover
from pipeline.ingest.position_list import for_positions
from pipeline.readers.bricks.positions import is_prepared, read_list, read_outside, read_prepared, write_prepared
from pipeline.readers.dispatch import read_tile
from pipeline.readers.stamps import Stamp
from pipeline.tiles.brick_grid import brick_of, centre
from pipeline.tiles.file_names import TileKind
from pipeline.tiles.sky_tile import SkyTile
from tests.pipeline.brick_makers import coadd, mosaic, outcome_of, reading, rows, tangent_plane, write_brick, write_rows
from tests.pipeline.makers import write_cutouts

SIDE = 200
COARSE = 5.2  # arcsec: small bricks that cover a quarter of a degree, at their true places
HERE, EAST = "1498p000", "1501p000"
READING = reading(catalogue="list.csv")
ROWS = {"Name": ["a", "b,c", "ü"], "RA": [150.0, -1.5, 10.25], "DEC": [2.0, -30.0, 89.0], "mag_r": [17.0, 18.5, np.nan]}


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet", ".fits", ".fits.gz", ".vot", ".xml"])
def test_one_list_in_every_format(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"list{ending}"
    columns = ROWS if "fits" not in ending else {**ROWS, "Name": ["a", "b,c", "d"]}  # text in FITS is ASCII
    if ".csv" in ending:
        pd.DataFrame(columns).to_csv(path, index=False)
    elif ending == ".parquet":
        pd.DataFrame(columns).to_parquet(path)
    else:
        Table(columns).write(path, format="fits" if "fits" in ending else "votable")
    found = read_list(path)
    assert found["name"].tolist() == [f"list{ending}#{name}" for name in columns["Name"]]
    for name in ("ra", "dec", "mag_r"):
        np.testing.assert_allclose(found[name], columns[name if name == "mag_r" else name.upper()], rtol=1e-15)
        assert found[name].dtype == np.float64
    assert found[["release", "brickid", "objid", "radius"]].isna().all(axis=None)


def test_names_come_from_the_first_column_that_has_them_else_from_the_order(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("ra,dec\n1,2\n3,4\n")
    assert read_list(path)["name"].tolist() == ["list.csv#0", "list.csv#1"]
    path.write_text("ID,Source_Name,ra,dec\n7,x,1,2\n")
    assert read_list(path)["name"].tolist() == ["list.csv#x"]
    number = 39633321763504387  # more digits than a float has
    path.write_text(f"TARGETID,ra,dec\n{number},1,2\n")
    assert read_list(path)["name"].tolist() == [f"list.csv#{number}"]
    for ending in ("fits", "parquet"):
        table = tmp_path / f"list.{ending}"
        frame = pd.DataFrame({"targetid": [number], "ra": [1.0], "dec": [2.0]})
        frame.to_parquet(table) if ending == "parquet" else Table.from_pandas(frame).write(table)
        assert read_list(table)["name"].tolist() == [f"list.{ending}#{number}"]


def test_what_is_no_number_is_no_position_and_stays_in_the_list(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("ra,dec\n1,2\n,4\n10h12m,5\n1e400,0\n")
    found = read_list(path)
    assert len(found) == 4 and found["ra"].isna().sum() == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"alpha,delta\n1,2\n", "no columns ra and dec"),
        ("list.csv", b"", "cannot be read"),
        ("list.csv", b"ra,dec\n1,2,3,4\n1\n\xff,5\n", "cannot be read"),
        ("list.csv", b"ra,RA,dec\n1,2,3\n", "two columns"),
        ("list.parquet", b"PAR1 and nothing", "cannot be read"),
        ("list.fits", b"SIMPLE  = what", "cannot be read"),
        ("list.vot", b"<html>not found</html>", "cannot be read"),
        ("list.txt", b"1 2", "csv"),
    ],
)
def test_a_list_that_cannot_be_read_is_told_to_the_user(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as bad:
        read_list(path)
    assert str(path) in str(bad.value)


def test_prepared_rows_come_back_and_are_written_once(tmp_path: Path) -> None:
    listed = pd.DataFrame(
        {"id": ["x", "y"], "ra": [1.0, 2.0], "dec": [3.0, 4.0], "mag_r": [17.5, np.nan]}
        | {"release": [9010, 9010], "brickid": [5, np.nan], "objid": [6, 7], "radius": [2.0, 11.0]}
    )
    source = tmp_path / "list.parquet"
    listed.to_parquet(source)
    path = write_prepared(read_list(source), tmp_path)
    assert is_prepared(path) and not is_prepared(source)
    before = path.stat()
    assert write_prepared(read_list(source), tmp_path) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns) == (before.st_ino, 0)
    assert write_prepared(read_list(source).iloc[:1], tmp_path) != path
    found = read_prepared(path)
    assert found.name.tolist() == ["list.parquet#x", "list.parquet#y"]
    np.testing.assert_array_equal(found.keys, [(9010, 5, 6), (-1, -1, -1)])
    np.testing.assert_array_equal(found.radius, [2, 11])
    np.testing.assert_array_equal(found.mag_r, [17.5, np.nan])
    assert (found.maskbits == -1).all() and np.isnan(found.psfsize).all() and found.depth.shape == (2, 3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two neighbouring bricks at their true places."""
    root = tmp_path_factory.mktemp("pair") / "south"
    for seed, brick in enumerate((HERE, EAST)):
        header = tangent_plane(*centre(brick), side=SIDE, pixscale=COARSE)
        write_brick(coadd(root, brick), brick, mosaic(SIDE, seed), header)
    return root


def write_list(folder: Path, positions: dict[str, tuple[float, float]]) -> Path:
    path = folder / "list.csv"
    lines = [f"{name},{ra!r},{dec!r}" for name, (ra, dec) in positions.items()]
    path.write_text("\n".join(["name,ra,dec", *lines]).replace("nan", "") + "\n")
    return path


def by_brick(tiles: list[SkyTile]) -> dict[str, set[str]]:
    found = {}
    for tile in tiles:
        names = {str(name).split("#")[1] for name in pd.read_parquet(tile.tables[0])["name"]}
        found[tile.brick or str(tile.kind)] = names
    return found


def test_each_position_is_cut_once_or_accounted_for(pair: Path, tmp_path: Path) -> None:
    edge = 150.0  # right ascension where the boxes of the two bricks meet; their images reach 0.019 degrees further
    positions = {
        "inside": (149.9, 0.0),
        "overlap": (edge - 0.005, 0.03),
        "other side": (edge + 0.005, 0.03),
        "south of it": (149.9, -0.13),  # in 1498m002, which is not there
        "far": (10.0, 20.0),
        "none": (float("nan"), 1.0),
        "sentinel": (-999.0, 0.0),
    }
    assert [brick_of(*positions[name]) for name in ("overlap", "other side", "south of it")] == [HERE, EAST, "1498m002"]
    tiles = for_positions(discover([pair], 100, READING).tiles, write_list(tmp_path, positions), tmp_path, READING)
    assert by_brick(tiles) == {
        HERE: {"inside", "overlap", "south of it"},
        EAST: {"other side"},
        "positions": {"far", "none", "sentinel"},
    }
    stamps: list[str] = []
    for tile in tiles:
        if tile.kind is TileKind.BRICK:
            found = outcome_of(tile, READING)
            assert found.refused == {} and tile.source.endswith("@list.csv")
            stamps += found.stamps
            for name, stamp in found.stamps.items():
                assert (stamp.ra, stamp.dec) == pytest.approx(positions[name])
                assert not stamp.quality & QualityFlag.EDGE_OR_OFF_FOOTPRINT or name == "south of it"
    assert sorted(stamps) == ["inside", "other side", "overlap", "south of it"]
    (outside,) = (tile for tile in tiles if tile.kind is TileKind.POSITIONS)
    refused = {entry.source_name: entry for entry in read_outside(outside)}
    reasons = {name.split("#")[1]: entry.reason for name, entry in refused.items()}
    expected = {"far": Reason.OUT_OF_FOOTPRINT, "none": Reason.NO_POSITION, "sentinel": Reason.NO_POSITION}
    assert reasons == expected
    assert all("list.csv" in entry.file and name.startswith("list.csv#") for name, entry in refused.items())


def test_a_position_between_its_absent_brick_and_two_that_reach_it_is_cut_once(pair: Path, tmp_path: Path) -> None:
    """South of the corner: the brick 1498m002 is absent, both others have the place in their images."""
    listed = write_list(tmp_path, {"corner": (149.995, -0.13)})
    tiles = for_positions(discover([pair], 100, READING).tiles, listed, tmp_path, READING)
    assert len(tiles) == 1 and len(outcome_of(tiles[0], READING).stamps) == 1


def test_bricks_without_positions_are_left_out_and_other_tiles_stay(pair: Path, tmp_path: Path) -> None:
    write_cutouts(tmp_path / "C", 1)
    listed = write_list(tmp_path, {"a": (149.9, 0.0)})
    tiles = for_positions(discover([pair, tmp_path / "C"], 100, READING).tiles, listed, tmp_path, READING)
    assert Counter((tile.kind, tile.brick) for tile in tiles) == {(TileKind.BRICK, HERE): 1, (TileKind.CUTOUTS, ""): 1}


def test_the_same_list_again_is_the_same_input(pair: Path, tmp_path: Path) -> None:
    listed = write_list(tmp_path, {"a": (149.9, 0.0), "b": (10.0, 10.0)})
    prints = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        tiles = for_positions(discover([pair], 100, READING).tiles, listed, tmp_path / folder, READING)
        prints.append({tile.tile_id: tile.fingerprint for tile in tiles})
    assert prints[0] == prints[1] and len(prints[0]) == 2
    write_list(tmp_path, {"a": (149.9, 0.0001), "b": (10.0, 10.0)})
    tiles = for_positions(discover([pair], 100, READING).tiles, listed, tmp_path / "one", READING)
    changed = {tile.tile_id: tile.fingerprint for tile in tiles}
    assert {name for name in changed if changed[name] != prints[0][name]} == {
        tile.tile_id for tile in tiles if tile.kind is TileKind.BRICK
    }


def test_the_front_door_reads_both_kinds(pair: Path, tmp_path: Path) -> None:
    listed = write_list(tmp_path, {"a": (149.9, 0.0), "b": (10.0, 10.0)})
    tiles = for_positions(discover([pair], 100, READING).tiles, listed, tmp_path, READING)
    batches = [batch for tile in tiles for batch in read_tile(tile, READING, 10)]
    stamps: list[Stamp] = [stamp for batch in batches for stamp in batch.stamps]
    assert [stamp.source_name for stamp in stamps] == ["list.csv#a"]
    assert [entry.source_name for batch in batches for entry in batch.quarantine] == ["list.csv#b"]


def test_the_keys_of_a_list_make_the_ids_of_the_survey(pair: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("ra,dec,release,brickid,objid,mag_r,radius\n149.9,0,9010,330367,44,16.5,20\n")
    (tile,) = for_positions(discover([pair], 100, READING).tiles, listed, tmp_path, READING)
    stamp = outcome_of(tile, reading(catalogue="list.csv", large_radius=10.0)).only
    assert stamp.object_id == target_id(9010, 330367, 44) and stamp.mag_r == 16.5
    assert stamp.pixscale == pytest.approx(2 * COARSE, rel=1e-5)
    assert stamp.survey_layer == "ls-dr9-south-grz"


def test_a_list_that_is_not_there_and_a_brick_with_a_catalogue_of_its_own(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        for_positions([], tmp_path / "absent.csv", tmp_path, READING)
    header = tangent_plane(*centre(HERE), side=SIDE, pixscale=COARSE)
    own = write_rows(tmp_path / f"tractor-{HERE}.fits", rows([50], [50], header))
    with_own = brick_tile(coadd(pair, HERE), HERE, READING, own)
    (tile,) = for_positions([with_own], write_list(tmp_path, {"a": (149.9, 0.0)}), tmp_path, READING)
    assert set(outcome_of(tile, READING).stamps) == {"a"}  # the list stands in for the survey's objects
