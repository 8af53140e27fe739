"""Which files belong to a brick, where its neighbours and its objects are, and when it must be done again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline.core.errors import InputChanged, UserError
from pipeline.ingest.discovery import brick_tile, discover
from pipeline.readers.dispatch import read_tile
from pipeline.tiles.brick_files import neighbour_folders, plane_file, source_of_brick, tables_of_brick
from pipeline.tiles.file_names import TileKind, brick_of_file, kind_of, product_of_file, role_of
from pipeline.tiles.sky_tile import SkyTile
from tests.pipeline.brick_makers import (
    BLOCK,
    BRICK,
    READING,
    coadd,
    plane_path,
    reading,
    rows,
    tractor_path,
    write_brick,
    write_rows,
)
from tests.pipeline.makers import write_cutouts


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("name", "brick", "product"),
    [
        ("legacysurvey-1498p020-image-g.fits.fz", "1498p020", ("image", "g")),
        ("legacysurvey-1498p020-maskbits.fits.fz", "1498p020", ("maskbits", "")),
        ("legacysurvey-0959p805-nexp-z.fits", "0959p805", ("nexp", "z")),
        ("decals-1498p020-image-r.fits.gz", "1498p020", ("image", "r")),
        ("legacysurvey-1498p021-image-g.fits", "", ("image", "g")),  # the grid has no such brick
        ("tractor-1498p020.fits", "", ("", "")),
        ("legacysurvey-1498p020-image.jpg", "", ("", "")),
        ("g001.fits", "", ("", "")),
    ],
)
def test_names_of_coadd_files(name: str, brick: str, product: tuple[str, str]) -> None:
    assert brick_of_file(name) == brick and product_of_file(name) == product
    assert (kind_of(name) is TileKind.BRICK) == bool(brick)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("tractor-1498p020.fits", "catalogue"),
        ("sweep-140m005-150p000-pz.fits", "catalogue"),
        ("survey-bricks-dr6.fits.gz", "survey table"),
        ("blobs-0959p805.fits.gz", "survey table"),
        ("manifest.sha256", "manifest"),
        ("legacysurvey-1498p020.sha256sum", "manifest"),
        ("legacysurvey-1498p020-image.jpg", "preview"),
        ("legacysurvey-1498p020-model-blobmap.jpg", "preview"),
        ("cutout-150.1-2.3.jpg", ""),
    ],
)
def test_files_of_the_survey_that_hold_no_image_to_cut_from(name: str, role: str) -> None:
    assert role_of(name) == role
    assert kind_of(name) is (None if role else TileKind.PICTURES)


def test_the_better_packed_file_is_taken(tmp_path: Path) -> None:
    plain, packed = (plane_path(tmp_path, BRICK, "image", "g", suffix) for suffix in (".fits", ".fits.fz"))
    touch(plain)
    assert plane_file(tmp_path, BRICK, "image", "g") == plain
    touch(packed)
    assert plane_file(tmp_path, BRICK, "image", "g") == packed
    assert plane_file(tmp_path, BRICK, "image", "r") is None
    assert plane_file(tmp_path / "nowhere", BRICK, "image", "g") is None


def test_neighbours_are_found_in_each_layout_if_they_have_an_image(tmp_path: Path) -> None:
    home = coadd(tmp_path, BRICK)
    in_survey, beside, together = coadd(tmp_path, "1498p000"), home.parent / "1501p002", home
    touch(plane_path(home, BRICK, "image", "g"))
    touch(plane_path(in_survey, "1498p000", "image", "g"))
    touch(plane_path(beside, "1501p002", "image", "z", ".fits.fz"))
    touch(plane_path(together, "1498p002", "image", "r"))
    touch(plane_path(coadd(tmp_path, "1503p000"), "1503p000", "invvar", "r"))
    touch(plane_path(coadd(tmp_path, "1506p000"), "1506p000", "image", "r"))  # too far away
    found = neighbour_folders(home, BRICK)
    assert found == {"1498p000": in_survey, "1501p002": beside, "1498p002": together}


def test_a_tractor_file_goes_before_sweeps_and_sweeps_are_told_by_their_boxes(tmp_path: Path) -> None:
    home = coadd(tmp_path, BRICK)  # right ascension 150 to 150.25, declination -0.125 to 0.125
    home.mkdir(parents=True)
    hits = ["sweep-150m005-160p000.fits", "sweep-150p000-160p005.fits"]
    touch(*(tmp_path / "sweep" / name for name in [*hits, "sweep-140m005-150p005.fits", "sweep-150p001-160p005.fits"]))
    assert [path.name for path in tables_of_brick(home, BRICK)] == hits
    touch(tmp_path / "sweep" / "10.1" / "sweep-150m005-160p005-v2.fits")
    assert len(tables_of_brick(home, BRICK)) == 3
    touch(tractor_path(home))
    assert tables_of_brick(home, BRICK) == (tractor_path(home),)
    touch(tractor_path(tmp_path / "tractor" / BRICK[:3]))
    assert tables_of_brick(home, BRICK) == (tractor_path(tmp_path / "tractor" / BRICK[:3]),)


def test_bricks_and_cutouts_are_told_apart(tmp_path: Path) -> None:
    root = tmp_path / "incoming"
    for brick in ("1498p000", "1501p000"):
        touch(plane_path(coadd(root / "south", brick), brick, "image", "g"))
        touch(coadd(root / "south", brick) / f"legacysurvey-{brick}-image.jpg")
        touch(tractor_path(root / "south" / "tractor" / brick[:3], brick))
        touch(plane_path(root / "flat", brick, "image", "r"))
    touch(root / "flat" / "survey-bricks.fits.gz")
    write_cutouts(root / "flat", 2)
    found = {(tile.kind, tile.source): tile for tile in discover([root], 10).tiles}
    assert set(found) == {
        (TileKind.CUTOUTS, "incoming/flat"),
        *((TileKind.BRICK, f"{place}/{brick}") for place in ("flat", "south") for brick in ("1498p000", "1501p000")),
    }
    tile = found[(TileKind.BRICK, "south/1501p000")]
    assert tile.brick == "1501p000" and [Path(table).name for table in tile.tables] == ["tractor-1501p000.fits"]
    assert found[(TileKind.BRICK, "flat/1501p000")].tables == ()
    assert discover([root], 100).skipped == {"preview": 2, "survey table": 1}
    assert source_of_brick(coadd(root / "south", "1501p000"), "1501p000") == "south/1501p000"


def test_two_copies_of_a_brick_under_one_name_are_refused(tmp_path: Path) -> None:
    for root in ("a", "b"):
        touch(plane_path(coadd(tmp_path / root / "south", BRICK), BRICK, "image", "g"))
    with pytest.raises(UserError, match="rename one of the folders"):
        discover([tmp_path], 10)


# Fingerprints.


@pytest.fixture
def block(tmp_path: Path) -> Path:
    root = tmp_path / "south"
    for brick in BLOCK:
        write_brick(coadd(root, brick), brick)
    write_rows(tractor_path(root / "tractor" / BRICK[:3]), rows([100], [100]))
    return root


def at(folder: Path, edges: bool = True, **changed: object) -> SkyTile:
    return brick_tile(folder, BRICK, reading(complete_edges=edges, **changed))


def test_a_neighbour_that_arrives_or_changes_is_noticed_where_edges_are_completed(block: Path, tmp_path: Path) -> None:
    home, other = coadd(block, BRICK), coadd(block, "1498p000")
    away = other.rename(tmp_path / "later")
    without = [at(home, edges).fingerprint for edges in (True, False)]
    shutil.move(away, other)
    arrived = [at(home, edges).fingerprint for edges in (True, False)]
    assert arrived[0] != without[0] and arrived[1] == without[1]
    os.utime(next(other.iterdir()), ns=(1, 1))
    changed = [at(home, edges).fingerprint for edges in (True, False)]
    assert changed[0] != arrived[0] and changed[1] == arrived[1]


def test_own_files_objects_and_settings_are_noticed(block: Path) -> None:
    home, table = coadd(block, BRICK), tractor_path(block / "tractor" / BRICK[:3])
    prints = [at(home).fingerprint]
    write_rows(table, rows([100, 110], [100, 110]))
    prints.append(at(home).fingerprint)
    touch(plane_path(home, BRICK, "maskbits"))
    prints.append(at(home).fingerprint)
    prints.append(at(home, faintest_r=18.0).fingerprint)
    assert len(set(prints)) == 4 and at(home, faintest_r=18.0).fingerprint == prints[-1]
    far = coadd(block, "1506p000")
    touch(plane_path(far, "1506p000", "image", "g"))
    touch(plane_path(coadd(block, "1498p000"), "1498p000", "invvar", "g"))  # is not read
    assert at(home).fingerprint == prints[2]


def test_a_brick_that_changes_while_it_is_read_is_not_committed(block: Path) -> None:
    home = coadd(block, BRICK)
    tile = at(home)
    assert sum(len(batch.stamps) for batch in read_tile(tile, READING, 8)) == 1
    batches = read_tile(tile, READING, 8)
    next(batches)
    os.utime(plane_path(coadd(block, "1498p002"), "1498p002", "image", "z"), ns=(1, 1))
    with pytest.raises(InputChanged):
        list(batches)
