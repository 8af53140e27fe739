"""When a tile may be taken: manifests that declare it complete, files that lie still, checksums that hold."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from pipeline.core.errors import BadInput, Reason
from pipeline.ingest.discovery import discover
from pipeline.ingest.planning import Plan
from pipeline.ingest.readiness import not_ready_reason, ready_plan
from pipeline.tiles.checksums import check_sum, check_sums, checksums, sums_of
from pipeline.tiles.file_names import MANIFEST
from pipeline.tiles.sky_tile import SkyTile, names_of
from tests.pipeline.makers import hdf5_columns, write_cutouts, write_hdf5, write_pictures

HOUR = 3600.0


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(path: Path, files: list[Path], *more: str) -> Path:
    path.write_text("".join(f"{sha256(f)}  {f.name}\n" for f in files) + "".join(f"{'0' * 64}  {n}\n" for n in more))
    return path


def why(tile: SkyTile, *, settle: float = 0.0, later: float = 0.0) -> str:
    return not_ready_reason(tile, names_of(tile), settle, time.time() + later)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cutouts(tmp_path / "incoming" / "C", 3)


def only_tile(place: Path) -> SkyTile:
    (tile,) = discover([place], 100).tiles
    return tile


def test_without_a_manifest_a_tile_is_taken_once_its_files_lie_still(folder: Path) -> None:
    tile = only_tile(folder)
    assert why(tile) == ""
    assert "taken when unchanged for 60 s" in why(tile, settle=60)
    assert why(tile, settle=60, later=61) == ""
    os.utime(folder / "g000.fits", (1e9, 1e9))  # an old time copied along with the file: it came a moment ago
    assert "changed 0 s ago" in why(only_tile(folder), settle=60)
    os.utime(folder / "g001.fits", (4e9, 4e9))  # a clock that was wrong must not keep the tile for ever
    assert why(only_tile(folder), settle=60, later=61) == ""


def test_a_manifest_says_when_a_folder_is_complete(folder: Path) -> None:
    files = sorted(folder.iterdir())
    write_manifest(folder / MANIFEST, files, "g003.fits", "p000.jpg", "../elsewhere.fits", "/etc/passwd.fits")
    tile = only_tile(folder)
    assert why(tile, settle=HOUR) == "1 of 4 files of manifest.sha256 are not there yet"
    write_cutouts(folder, 1, first=3)
    assert why(only_tile(folder), settle=HOUR) == ""  # declared complete: no need to lie still
    write_cutouts(folder, 1, first=4)
    assert "changed 0 s ago" in why(only_tile(folder), settle=HOUR)  # the manifest says nothing of this one


def test_a_table_of_pictures_belongs_to_them_but_not_to_cutouts(folder: Path) -> None:
    pictures = write_pictures(folder, 2)
    write_manifest(pictures / MANIFEST, [], "g000.fits", "p000.jpg", "more.csv")
    told = {tile.kind: why(tile) for tile in discover([folder], 100).tiles}
    assert told == {"cutouts": "", "pictures": "1 of 2 files of manifest.sha256 are not there yet"}


def test_a_manifest_of_a_brick_speaks_for_this_brick_alone(tmp_path: Path) -> None:
    for brick in ("1498p020", "1498p022"):
        (tmp_path / f"legacysurvey-{brick}-image-g.fits.fz").write_bytes(b"x")
    here = [f"legacysurvey-1498p020-image-{band}.fits.fz" for band in "gr"]
    write_manifest(tmp_path / MANIFEST, [], *here, "tractor-1498p020.fits", "legacysurvey-1498p022-image-g.fits.fz")
    told = {tile.brick: why(tile) for tile in discover([tmp_path], 100).tiles}
    assert told == {"1498p020": "2 of 3 files of manifest.sha256 are not there yet", "1498p022": ""}


@pytest.mark.parametrize("name", ["a.h5.sha256", MANIFEST])
def test_a_file_is_declared_complete_by_a_list_beside_it(tmp_path: Path, name: str) -> None:
    path = write_hdf5(tmp_path / "a.h5", hdf5_columns(2))
    write_hdf5(tmp_path / "b.h5", hdf5_columns(2))
    write_manifest(tmp_path / name, [path])
    told = {tile.source[-4:]: why(tile, settle=HOUR) != "" for tile in discover([tmp_path], 100).tiles}
    assert told == {"a.h5": False, "b.h5": True}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no end of its last line"),
        (b"0" * 64 + b"  g000.fi", "no end of its last line"),
        (b"<html>not found</html>\n", "line 1"),
        (bytes(range(256)) + b"\n", "line 1"),
        (b"# comment\n\n" + b"0" * 64 + b" *g000.fits\r\n", ""),
    ],
)
def test_a_manifest_that_is_none_keeps_the_tile_and_says_why(folder: Path, content: bytes, told: str) -> None:
    (folder / MANIFEST).write_bytes(content)
    said = why(only_tile(folder), later=2 * HOUR, settle=HOUR)
    assert (told in said) if told else said == ""


def test_strange_lists_are_harmless(folder: Path) -> None:
    with (folder / MANIFEST).open("wb") as file:
        file.truncate(1 << 40)  # a sparse terabyte is not read
    assert "too much for a list" in why(only_tile(folder))
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    assert why(only_tile(folder)) == ""
    (folder / MANIFEST).rmdir()
    os.mkfifo(folder / MANIFEST)  # reading it would wait for ever
    assert why(only_tile(folder)) == ""


def test_names_are_those_of_the_folder_itself(tmp_path: Path) -> None:
    digest = "AB" * 32
    names = ["x.fits", "./y.fits", "../up.fits", "sub/z.fits", "/etc/passwd", "..", "nul\0.fits"]
    lines = [f"{digest}  {name}\n" for name in names] + [f"\\{digest}  back\\\\slash.fits\n"]
    (tmp_path / "some.sha256sum").write_text("".join(lines))
    (tmp_path / "only.h5.sha256").write_text("cd" * 32 + "\n")  # a digest alone is that of the file
    (tmp_path / MANIFEST).write_text(f"{'ef' * 32}  x.fits\n")  # counts before the others
    assert sums_of(tmp_path) == {
        "x.fits": "ef" * 32,
        "y.fits": digest.lower(),
        "back\\slash.fits": digest.lower(),
        "only.h5": "cd" * 32,
    }
    assert checksums(tmp_path / "none").digests == {}


def test_a_file_that_differs_from_its_checksum_is_named(folder: Path) -> None:
    files = sorted(folder.iterdir())
    write_manifest(folder / "legacysurvey-1498p020.sha256sum", files[:2], "never-fetched.fits")
    check_sums(files)
    assert why(only_tile(folder)) == ""  # the survey's own list demands nothing
    expected, was = sha256(files[1]), files[1].read_bytes()
    files[1].write_bytes(was[:-1] + b"?")
    with pytest.raises(BadInput, match=f"{files[1]}.*{sha256(files[1])}.*{expected}") as bad:
        check_sums(files)
    assert bad.value.reason is Reason.CHECKSUM_DIFFERS
    check_sum(files[0], sha256(files[0]).upper())
    with pytest.raises(BadInput, match="FileNotFoundError"):
        check_sum(folder / "gone.fits", expected)


def test_a_plan_leaves_out_what_waits_and_what_may_move_with_it(tmp_path: Path) -> None:
    write_cutouts(tmp_path / "C", 6)
    write_cutouts(tmp_path / "D", 1)
    tiles = discover([tmp_path], 2).tiles
    late = time.time() + HOUR
    young = tmp_path / "C" / "g002.fits"
    write_manifest(tmp_path / "C" / MANIFEST, [p for p in (tmp_path / "C").iterdir() if p != young])
    got = ready_plan(Plan(tiles, [], []), 2 * HOUR, late)
    c0, c1, c2, d = tiles
    assert got.todo == [c0]
    assert {name: said.split(";")[0] for name, said in got.waiting.items()} == {
        c1.tile_id: "changed 3600 s ago",
        c2.tile_id: f"an earlier part of {c2.source} is still arriving",
        d.tile_id: "changed 3600 s ago",
    }
    assert ready_plan(Plan(tiles, [], []), 0, late).waiting == {}
