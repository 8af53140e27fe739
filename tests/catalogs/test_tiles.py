"""A tile is there whole or not at all, and its stamp is the only ledger."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from catalogs import tiles as tile_store
from catalogs.atomic import atomic_write
from catalogs.errors import CatalogError
from catalogs.schema import arrow_schema
from catalogs.tiles import commit, committed, read_tile_metadata, tile_path, with_history
from tests.catalogs.conftest import MODEL, SLUGS, commit_tile, make_stamp, make_table, quarantine_entry


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


# --- writing whole ------------------------------------------------------------------------------------------------


def test_an_exception_leaves_nothing_and_the_old_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with pytest.raises(RuntimeError, match="killed"), atomic_write(target) as beside:
        beside.write_text("half")
        raise RuntimeError("killed")
    assert names(tmp_path) == ["deep"]
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and names(tmp_path / "deep") == ["file.txt"]


def test_what_is_being_written_is_hidden_and_two_writers_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    with atomic_write(target) as one, atomic_write(target) as other:
        assert one != other and one.parent == other.parent == tmp_path
        for beside in (one, other):
            assert beside.name.startswith(".")
            beside.write_text(beside.name)
        assert not target.exists()
    assert target.read_text() == one.name  # the last to finish
    assert names(tmp_path) == ["file.txt"]


def test_a_folder_is_written_whole_too(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "release") as beside:
        beside.mkdir()
        (beside / "part").write_text("x")
        raise RuntimeError
    assert names(tmp_path) == []
    with atomic_write(tmp_path / "release") as beside:
        beside.mkdir()
        (beside / "part").write_text("x")
    assert names(tmp_path) == ["release", "release/part"]


# --- committing ---------------------------------------------------------------------------------------------------


def test_a_committed_tile_reads_back_with_its_stamp(tmp_path: Path) -> None:
    table = make_table("t", [3, 1, 2], unclassified=[1])
    stamp = make_stamp("t", 2, 1, quarantined=2, rejected="")
    path = commit(tmp_path, table, stamp)
    assert path == tile_path(tmp_path, MODEL, "t")
    assert path.parent.parent == tmp_path / "tiles" / MODEL and path.name == "t.parquet"
    assert read_tile_metadata(path) == stamp
    assert stamp.inputs == 5
    back = pq.read_table(path)
    assert back.schema.equals(arrow_schema(SLUGS))
    pd.testing.assert_frame_equal(back.to_pandas(), table.to_pandas())
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"


def test_a_tile_that_cannot_be_read_commits_no_row_and_the_reason(tmp_path: Path) -> None:
    stamp = make_stamp("t", 0, 0, quarantined=1, rejected="unreadable_file")
    path = commit(tmp_path, arrow_schema(SLUGS).empty_table(), stamp)
    assert read_tile_metadata(path) == stamp and pq.read_table(path).num_rows == 0


@pytest.mark.parametrize(("classified", "unclassified"), [(3, 1), (2, 0), (3, 0), (1, 2)])
def test_counts_that_do_not_add_up_are_refused(tmp_path: Path, classified: int, unclassified: int) -> None:
    with pytest.raises(CatalogError, match="counted"):
        commit(tmp_path, make_table("t", [1, 2, 3], unclassified=[1]), make_stamp("t", classified, unclassified))
    assert names(tmp_path) == []


def without_a_column(table: pa.Table) -> pa.Table:
    return table.drop_columns(["entropy"])


def in_another_order(table: pa.Table) -> pa.Table:
    return table.select(table.column_names[::-1])


def of_another_type(table: pa.Table) -> pa.Table:
    at = table.schema.get_field_index("confidence")
    return table.set_column(at, "confidence", table["confidence"].cast(pa.float64()))


@pytest.mark.parametrize("spoil", [without_a_column, in_another_order, of_another_type])
def test_other_columns_than_those_of_the_catalogue_are_refused(tmp_path: Path, spoil: Any) -> None:
    with pytest.raises(CatalogError, match="columns"):
        commit(tmp_path, spoil(make_table("t", [1, 2])), make_stamp("t", 2))
    assert names(tmp_path) == []


def test_what_does_not_read_back_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_tile(tmp_path, "t", [1, 2])
    real = pq.write_table

    def lossy(table: pa.Table, *arguments: Any, **settings: Any) -> None:
        real(table.slice(1), *arguments, **settings)

    monkeypatch.setattr(tile_store.pq, "write_table", lossy)
    with pytest.raises(CatalogError, match="does not read back"):
        commit_tile(tmp_path, "t", [5, 6, 7])
    assert pq.read_table(tile_path(tmp_path, MODEL, "t"))["object_id"].to_pylist() == [1, 2]
    assert [n for n in names(tmp_path) if Path(n).name.startswith(".")] == []


def test_a_tile_done_again_replaces_its_file(tmp_path: Path) -> None:
    commit_tile(tmp_path, "t", [1, 2])
    path = commit_tile(tmp_path, "t", [1, 2, 3], fingerprint="new")
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
    assert pq.read_table(path).num_rows == 3


# --- stamps -------------------------------------------------------------------------------------------------------


def test_a_stamp_matches_the_same_input_model_and_recipe_only() -> None:
    stamp = make_stamp("t", 1)
    wanted = {"fingerprint": stamp.fingerprint, "model_id": stamp.model_id, "recipe_digest": stamp.recipe_digest}
    assert stamp.matches(**wanted)
    for name in wanted:
        assert not stamp.matches(**{**wanted, name: "other"}), name


def test_what_cannot_be_trusted_has_no_stamp(tmp_path: Path) -> None:
    path = commit_tile(tmp_path, "t", [1, 2, 3])
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], whole[:-1], whole[:-40] + bytes(40), b"x" * 5000):
        path.write_bytes(damaged)
        assert read_tile_metadata(path) is None
    path.write_bytes(whole)
    assert read_tile_metadata(path) is not None
    path.unlink()
    assert read_tile_metadata(path) is None
    path.mkdir()
    assert read_tile_metadata(path) is None


@pytest.mark.parametrize("stamp", [None, b"", b"{", b'{"tile_id": "t"}', b"\xff\xfe"])
def test_a_foreign_parquet_file_has_no_stamp(tmp_path: Path, stamp: bytes | None) -> None:
    metadata = None if stamp is None else {b"morphcat.stamp": stamp}
    pq.write_table(make_table("t", [1]).replace_schema_metadata(metadata), tmp_path / "x.parquet")
    assert read_tile_metadata(tmp_path / "x.parquet") is None


# --- the store as a whole -----------------------------------------------------------------------------------------


def test_tiles_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    for i, name in enumerate(["b", "a-1", "c", "a"]):
        commit_tile(tmp_path, name, [i])
    assert [stamp.tile_id for _, stamp in committed(tmp_path, MODEL)] == ["a", "a-1", "b", "c"]
    assert list(committed(tmp_path, "another-model")) == []


def test_what_no_commit_wrote_is_left_out_and_said(catalog: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tile_path(catalog, MODEL, "a-tile")
    shutil.copy(path, path.with_name(".a-tile.parquet.123"))
    shutil.copy(path, path.with_name(".hidden.parquet"))
    (path.parent / "notes.txt").write_text("x")
    assert [s.tile_id for _, s in committed(catalog, MODEL)] == ["a-tile", "b-tile"]
    assert caplog.text == ""
    shutil.copy(path, path.with_name("a-tile (copy).parquet"))
    path.with_name("cut.parquet").write_bytes(path.read_bytes()[:100])
    assert [s.tile_id for _, s in committed(catalog, MODEL)] == ["a-tile", "b-tile"]
    assert "a-tile (copy).parquet" in caplog.text and "cut.parquet" in caplog.text


def test_other_tools_read_the_whole_folder(catalog: Path) -> None:
    """Also while a tile is being written."""
    tiles = catalog / "tiles" / MODEL
    with atomic_write(tile_path(catalog, MODEL, "a-tile")) as beside:
        beside.write_bytes(b"half a file")
        by_pandas = pd.read_parquet(tiles)
        by_dataset = ds.dataset(tiles).to_table()
        by_duckdb = duckdb.sql(f"SELECT * FROM read_parquet('{tiles}/*/*.parquet')").to_arrow_table()
        shutil.copy(tile_path(catalog, MODEL, "a-tile"), beside)
    wanted = [11, 12, 13, 14, 21, 22, 23, 24, 25]
    assert sorted(by_pandas["object_id"]) == wanted
    assert sorted(by_dataset["object_id"].to_pylist()) == wanted
    assert sorted(by_duckdb["object_id"].to_pylist()) == wanted
    assert by_duckdb.column_names == by_dataset.column_names == arrow_schema(SLUGS).names
    assert by_pandas["is_reliable"].dtype == bool and by_pandas["label_id"].dtype == np.int16
    assert not by_pandas.drop(columns="mag_r").isna().any().any() and by_pandas["mag_r"].isna().all()


def test_an_entry_remembers_when_it_was_first_seen_and_how_often() -> None:
    first = with_history([quarantine_entry("a"), quarantine_entry("b")], None, "2026-01-01T00:00:00Z")
    assert {(e.attempts, e.first_seen, e.last_seen) for e in first} == {(1, *["2026-01-01T00:00:00Z"] * 2)}
    before = make_stamp("t", 0, quarantine=first)
    changed = quarantine_entry("a", detail="still none", exception="KeyError")
    second = with_history(
        [changed, quarantine_entry("b", "empty_file"), quarantine_entry("c")], before, "2026-02-02T00:00:00Z"
    )
    assert [(e.attempts, e.first_seen[:7], e.last_seen[:7]) for e in second] == [
        (2, "2026-01", "2026-02"),
        (1, "2026-02", "2026-02"),  # another reason: another matter
        (1, "2026-02", "2026-02"),
    ]
    assert (second[0].detail, second[0].exception) == ("still none", "KeyError")


def test_entries_of_before_there_was_a_history_get_one() -> None:
    before = make_stamp("t", 0, quarantine=[quarantine_entry("a")])
    (now,) = with_history([quarantine_entry("a")], before, "2026-02-02T00:00:00Z")
    assert (now.attempts, now.first_seen) == (2, "2026-02-02T00:00:00Z")
