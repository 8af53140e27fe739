"""Which sky tiles there are, what they are called, and which need work."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import h5py
import pytest

from catalogs.schema import arrow_schema
from catalogs.tiles import TileMetadata, commit
from pipeline.config.inputs import BrickSettings, InputSettings, ReadingSettings
from pipeline.core.errors import InputChanged, UserError
from pipeline.ingest.discovery import discover
from pipeline.ingest.planning import plan
from pipeline.readers import hdf5 as hdf5_reader
from pipeline.readers.dispatch import read_tile
from pipeline.tiles.file_names import TileKind, kind_of
from pipeline.tiles.sky_tile import SkyTile
from tests.pipeline.makers import hdf5_columns, write_cutout, write_cutouts, write_hdf5, write_pictures


def ids(tiles: list[SkyTile]) -> list[str]:
    return [tile.tile_id for tile in tiles]


def by_source(tiles: list[SkyTile]) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for tile in tiles:
        found.setdefault(f"{tile.kind}:{tile.source}", []).append((tile.start, tile.stop))
    return found


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Nested folders of every kind, with things that are no input."""
    root = tmp_path / "incoming"
    write_cutouts(root / "night1" / "C", 5)
    write_pictures(root / "night1" / "C", 3)
    write_hdf5(root / "night2" / "a.h5", hdf5_columns(7))
    write_hdf5(root / "b.hdf5", hdf5_columns(2, flux=True), bands="grz")
    write_cutout(root / "night2" / ".partial" / "x.fits")
    write_cutout(root / "night2" / "D" / "UPPER.FITS")
    (root / "night1" / "C" / ".hidden.fits").write_bytes(b"x")
    (root / "night1" / "C" / "readme.txt").write_text("no input")
    (root / "night1" / "C" / "folder.fits").mkdir()
    (root / "empty").mkdir()
    return root


def test_all_kinds_in_nested_folders_cut_into_ranges_of_rows(mixed: Path) -> None:
    assert by_source(discover([mixed], 3).tiles) == {
        "hdf5:incoming/b.hdf5": [(0, 2)],
        "cutouts:night1/C": [(0, 3), (3, 5)],
        "pictures:night1/C": [(0, 3)],
        "hdf5:night2/a.h5": [(0, 3), (3, 6), (6, 7)],
        "cutouts:night2/D": [(0, 1)],
    }


def test_tile_ids_are_unique_names_of_files(mixed: Path) -> None:
    found = ids(discover([mixed], 2).tiles)
    assert len(set(found)) == len(found)
    assert all(name == Path(name).name and not name.startswith(".") for name in found)


def test_tile_ids_and_fingerprints_stay_when_the_root_moves(mixed: Path, tmp_path: Path) -> None:
    before = {t.tile_id: t.fingerprint for t in discover([mixed], 2).tiles}
    moved = tmp_path / "elsewhere" / "incoming"
    moved.parent.mkdir()
    mixed.rename(moved)
    assert {t.tile_id: t.fingerprint for t in discover([moved], 2).tiles} == before


def test_a_file_alone_may_be_given(mixed: Path) -> None:
    assert by_source(discover([mixed / "night2" / "a.h5"], 100).tiles) == {"hdf5:night2/a.h5": [(0, 7)]}
    with pytest.raises(UserError, match="give a folder of bricks, cutouts"):
        discover([mixed / "night2" / "D" / "UPPER.FITS"], 100)


def test_a_root_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder.*--tiles"):
        discover([tmp_path / "nowhere"], 10)


def test_the_same_root_given_twice_or_by_another_way_is_one(mixed: Path, tmp_path: Path) -> None:
    once = ids(discover([mixed], 3).tiles)
    (tmp_path / "link").symlink_to(mixed)
    assert ids(discover([mixed, mixed], 3).tiles) == once
    assert ids(discover([mixed, mixed / "night1"], 3).tiles) == once
    assert ids(discover([mixed, mixed / ".." / "incoming", tmp_path / "link"], 3).tiles) == once


def test_two_folders_of_one_name_are_an_error_not_a_mixture(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_cutouts(tmp_path / place / "night" / "C", 2)
    with pytest.raises(UserError, match="same name") as error:
        discover([tmp_path / "a", tmp_path / "b"], 10)
    assert str(tmp_path / "a/night/C") in str(error.value) and str(tmp_path / "b/night/C") in str(error.value)
    with pytest.raises(UserError, match="same name"):
        discover([tmp_path], 10)


def test_a_changed_input_changes_the_fingerprint_of_its_tile_only(tmp_path: Path) -> None:
    folder = write_cutouts(tmp_path / "n" / "C", 4)
    before = [t.fingerprint for t in discover([tmp_path], 2).tiles]
    assert [t.fingerprint for t in discover([tmp_path], 2).tiles] == before
    os.utime(folder / "g003.fits", ns=(1, 1))
    after = [t.fingerprint for t in discover([tmp_path], 2).tiles]
    assert after[0] == before[0] and after[1] != before[1]
    (folder / "g001.fits").rename(folder / "g001b.fits")
    assert discover([tmp_path], 2).tiles[0].fingerprint != before[0]


def test_tables_rows_and_settings_belong_to_the_fingerprint(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "n" / "P", 3)
    other = ReadingSettings(input=InputSettings(picture_pixscale=0.3))
    of_bricks = ReadingSettings(bricks=BrickSettings(faintest_r=18))
    (before,) = discover([tmp_path], 10).tiles
    assert discover([tmp_path], 10, other).tiles[0].fingerprint != before.fingerprint
    assert discover([tmp_path], 10, of_bricks).tiles == [before]
    os.utime(folder / "positions.csv", ns=(1, 1))
    assert discover([tmp_path], 10).tiles[0].fingerprint != before.fingerprint


def test_links_to_folders_are_followed_once_and_links_to_nothing_are_inputs(tmp_path: Path) -> None:
    folder = write_cutouts(tmp_path / "archive" / "C", 2)
    root = tmp_path / "incoming"
    root.mkdir()
    (root / "linked").symlink_to(folder)
    (folder / "loop").symlink_to(root)
    (folder / "z.fits").symlink_to(tmp_path / "gone.fits")
    assert by_source(discover([root], 10).tiles) == {"cutouts:incoming/linked": [(0, 3)]}


def test_hidden_and_foreign_names_are_no_inputs() -> None:
    assert kind_of("a.FITS.GZ") == kind_of("a.fits.fz") == TileKind.CUTOUTS
    assert kind_of("x.JPeG") == TileKind.PICTURES
    for name in (".a.fits", "a.csv", "a.fits.part", "fits", ""):
        assert kind_of(name) is None


def test_files_that_are_no_input_are_counted(tmp_path: Path) -> None:
    write_cutouts(tmp_path / "n" / "C", 1)
    for name in ("a.tif", "b.TIF", "readme", "table.csv", ".hidden.tif"):
        (tmp_path / "n" / name).touch()
    assert discover([tmp_path, tmp_path / "n" / "C"], 100).skipped == {".tif": 2, "none": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    folder = write_cutouts(tmp_path / "n" / "C", 1)
    folder.chmod(0)
    try:
        with pytest.raises(UserError, match="cannot be read"):
            discover([tmp_path], 10)
    finally:
        folder.chmod(0o700)


def test_a_damaged_or_empty_hdf5_file_is_still_a_tile(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "n" / "none.h5", hdf5_columns(0))
    (tmp_path / "n" / "bad.h5").write_bytes(b"no HDF5")
    assert by_source(discover([tmp_path], 10).tiles) == {"hdf5:n/bad.h5": [(0, 0)], "hdf5:n/none.h5": [(0, 0)]}


# --- files that change between discovery and reading ----------------------------------------------------------------


def tile_of(root: Path, rows: int = 2, index: int = 0) -> SkyTile:
    return discover([root], rows).tiles[index]


def read(tile: SkyTile) -> int:
    return sum(len(batch.stamps) for batch in read_tile(tile, ReadingSettings(), 1))


def test_an_unchanged_tile_is_read(tmp_path: Path) -> None:
    write_cutouts(tmp_path / "n" / "C", 4)
    tile = tile_of(tmp_path, index=1)
    write_cutout(tmp_path / "n" / "C" / "z.fits")  # after all others: the ranges before stay what they were
    assert read(tile) == 2


@pytest.mark.parametrize("index", [0, 1])
def test_a_file_that_came_or_went_since_is_noticed(tmp_path: Path, index: int) -> None:
    """Else row ranges would shift, and a tile would be committed as something it is not."""
    folder = write_cutouts(tmp_path / "n" / "C", 4)
    tile = tile_of(tmp_path, index=index)
    write_cutout(folder / "a.fits")
    with pytest.raises(InputChanged, match="run again"):
        read(tile)
    (folder / "a.fits").unlink()
    assert read(tile) == 2
    (folder / "g000.fits").unlink()
    with pytest.raises(InputChanged):
        read(tile)


def test_a_file_written_while_its_tile_is_read_is_noticed(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "n" / "a.h5", hdf5_columns(3))
    batches = read_tile(tile_of(tmp_path, rows=9), ReadingSettings(), 1)
    next(batches)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputChanged):
        list(batches)


def test_a_file_that_was_away_for_an_instant_while_its_tile_is_read_is_noticed(tmp_path: Path) -> None:
    """It comes back with its size and time of change: else its objects would count as lost until somebody looks."""
    folder = write_cutouts(tmp_path / "n" / "C", 4)
    tile = tile_of(tmp_path, rows=9)
    batches = read_tile(tile, ReadingSettings(), 1)
    next(batches)
    (folder / "g003.fits").rename(folder / ".away")
    next(batches)
    (folder / ".away").rename(folder / "g003.fits")
    with pytest.raises(InputChanged, match="moved or written while"):
        list(batches)
    assert read(tile) == 4


def test_a_file_that_cannot_be_read_because_it_changes_is_no_bad_input(tmp_path: Path) -> None:
    """A reader that gives up on the whole file: what it saw is not what the plan has found."""
    path = write_hdf5(tmp_path / "n" / "a.h5", hdf5_columns(40), chunk=1)
    tile, whole, times = tile_of(tmp_path, rows=99), path.read_bytes(), path.stat()
    batches = read_tile(tile, ReadingSettings(), 1)
    path.unlink()  # after the plan, before the first byte is read
    with pytest.raises(InputChanged):
        next(batches)
    path.write_bytes(whole)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    batches = read_tile(tile, ReadingSettings(), 1)
    next(batches)
    os.truncate(path, 1000)
    with pytest.raises(InputChanged):
        list(batches)


def test_a_file_that_is_busy_costs_its_own_tile_and_retires_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system fails at discovery: the tile fails with the system's error, and is done by a later run."""
    write_hdf5(tmp_path / "n" / "a.h5", hdf5_columns(4))
    write_hdf5(tmp_path / "n" / "b.h5", hdf5_columns(4))
    for tile in discover([tmp_path], 2).tiles:
        commit_empty(tmp_path / "catalog", tile)
    original = h5py.File

    def busy(path: Path, *args: object, **more: object) -> h5py.File:
        if str(path).endswith("a.h5"):
            raise BlockingIOError(errno.EAGAIN, "unable to lock file")
        return original(path, *args, **more)

    monkeypatch.setattr(hdf5_reader.h5py, "File", busy)
    tiles = discover([tmp_path], 2).tiles
    assert [(t.source, t.start, t.stop) for t in tiles] == [("n/a.h5", 0, -1), ("n/b.h5", 0, 2), ("n/b.h5", 2, 4)]
    assert plan(tiles, tmp_path / "catalog", "m", "r").retired == []
    with pytest.raises(BlockingIOError):
        read(tiles[0])
    monkeypatch.setattr(hdf5_reader.h5py, "File", original)
    with pytest.raises(InputChanged, match="run again"):
        read(tiles[0])


# --- the plan -------------------------------------------------------------------------------------------------------


def commit_empty(catalog: Path, tile: SkyTile, model: str = "m", recipe: str = "r") -> Path:
    stamp = TileMetadata(
        tile_id=tile.tile_id,
        source=tile.source,
        fingerprint=tile.fingerprint,
        model_id=model,
        recipe_digest=recipe,
        run_id="run",
        class_slugs=["a", "b"],
        classified=0,
        unclassified=0,
    )
    return commit(catalog, arrow_schema(["a", "b"]).empty_table(), stamp)


def test_what_matches_is_done_and_all_else_to_do(tmp_path: Path) -> None:
    folder = write_cutouts(tmp_path / "in" / "C", 6)
    catalog = tmp_path / "catalog"
    tiles = discover([tmp_path / "in"], 2).tiles
    for tile in tiles[:2]:
        commit_empty(catalog, tile)
    first = plan(tiles, catalog, "m", "r")
    assert (ids(first.done), ids(first.todo), first.retired) == (ids(tiles[:2]), ids(tiles[2:]), [])
    assert len(plan(tiles, catalog, "other", "r").todo) == 3
    assert len(plan(tiles, catalog, "m", "other").todo) == 3
    os.utime(folder / "g000.fits", ns=(1, 1))
    assert ids(plan(discover([tmp_path / "in"], 2).tiles, catalog, "m", "r").done) == ids(tiles[1:2])


def test_a_damaged_or_truncated_tile_file_is_to_do(tmp_path: Path) -> None:
    write_cutouts(tmp_path / "in" / "C", 2)
    (tile,) = discover([tmp_path / "in"], 5).tiles
    path = commit_empty(tmp_path / "catalog", tile)
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"x" * 500):
        path.write_bytes(damaged)
        assert ids(plan([tile], tmp_path / "catalog", "m", "r").todo) == [tile.tile_id]


def test_tiles_of_a_source_that_shrank_are_retired_and_others_are_left_alone(tmp_path: Path) -> None:
    folder = write_cutouts(tmp_path / "in" / "C", 6)
    write_cutouts(tmp_path / "in" / "D", 2)
    catalog = tmp_path / "catalog"
    paths = {t.tile_id: commit_empty(catalog, t) for t in discover([tmp_path / "in"], 2).tiles}
    for name in ("g002", "g003", "g004", "g005"):
        (folder / f"{name}.fits").unlink()
    shutil.rmtree(tmp_path / "in" / "D")  # a source that is gone as a whole: its objects stay in the catalogue
    todo = plan(discover([tmp_path / "in"], 2).tiles, catalog, "m", "r")
    assert [len(todo.done), len(todo.todo), len(todo.retired)] == [1, 0, 2]
    assert {paths[i] for i in paths if "-00001" in i or "-00002" in i} == set(todo.retired)
