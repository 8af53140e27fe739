"""Releases: immutable, complete, balanced, and visible only when they are whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from catalogs import release as release_module
from catalogs.errors import CatalogError
from catalogs.files import written_whole
from catalogs.release import ReleaseInfo, current_release, publish, read_release, table_paths
from catalogs.schema import arrow_schema
from catalogs.tile_store import committed, tile_path
from tests.catalogs.conftest import MODEL, SLUGS, commit_tile, make_table

Contents = Callable[[Path], dict[str, bytes]]


def published(catalog: Path) -> ReleaseInfo:
    info = publish(catalog, MODEL)
    assert info is not None
    return info


def rows(catalog: Path, info: ReleaseInfo, table: str = "morphology") -> Any:
    return pq.read_table(table_paths(catalog, info.release)[table])


def test_a_release_holds_all_rows_sorted_by_position(catalog: Path) -> None:
    info = published(catalog)
    table = rows(catalog, info)
    assert table.schema.equals(arrow_schema(SLUGS))
    assert sorted(table["object_id"].to_pylist()) == [11, 12, 13, 14, 21, 22, 23, 24, 25]
    positions = table["_healpix_29"].to_pylist()
    assert positions == sorted(positions)
    assert len(set(table["tile_id"].to_pylist()[:5])) == 2  # so the tiles were merged
    assert (info.tiles, info.objects, info.classified, info.unclassified, info.quarantined, info.duplicates) == (
        2, 9, 8, 1, 2, 0,
    )  # fmt: skip
    assert info.model_id == MODEL and info.simulated_objects == 0
    assert current_release(catalog) == info == read_release(catalog, info.release)
    assert (catalog / "CURRENT").read_text() == info.release + "\n"
    assert re.fullmatch(r"\d{4}\.\d{2}\.0", info.release)


def test_nothing_committed_is_nothing_published(tmp_path: Path) -> None:
    assert publish(tmp_path, MODEL) is None
    assert current_release(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_publishing_what_is_published_changes_no_byte(catalog: Path, contents: Contents) -> None:
    info = published(catalog)
    before = contents(catalog)
    assert publish(catalog, MODEL) == info
    assert contents(catalog) == before


def test_a_changed_tile_gives_a_new_release_and_leaves_the_old_one(catalog: Path, contents: Contents) -> None:
    first = published(catalog)
    before = contents(catalog / "releases" / first.release)
    commit_tile(catalog, "a-tile", [21, 22], fingerprint="new")
    second = published(catalog)
    assert second.release == first.release[:-1] + "1" and second.objects == 6
    assert contents(catalog / "releases" / first.release) == before
    assert read_release(catalog, first.release) == first
    assert current_release(catalog) == second


def test_numbers_go_past_ten_and_folders_of_others_do_not_matter(catalog: Path) -> None:
    first = published(catalog)
    month = first.release.rsplit(".", 1)[0]
    for name in (f"{month}.9", f"{month}.10", f"{month}.10.bak", f"{month}.x", "2001.01.99"):
        (catalog / "releases" / name).mkdir()
    commit_tile(catalog, "c-tile", [31])
    assert published(catalog).release == f"{month}.11"


def test_tiles_of_another_model_stay_out(catalog: Path) -> None:
    commit_tile(catalog, "a-tile", [91], model_id="other")
    assert published(catalog).objects == 9


@pytest.mark.parametrize("target", ["releases", "CURRENT"])
def test_a_crash_while_publishing_leaves_readers_with_the_release_before(
    catalog: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    first = published(catalog)
    commit_tile(catalog, "c-tile", [31])

    def crash(path: Path) -> Any:
        if target in (path.name, path.parent.name):
            raise KeyboardInterrupt
        return written_whole(path)

    with monkeypatch.context() as patched:
        patched.setattr(release_module, "written_whole", crash)
        with pytest.raises(KeyboardInterrupt):
            publish(catalog, MODEL)
    assert current_release(catalog) == first
    assert rows(catalog, first).num_rows == 9
    after = published(catalog)
    assert after.objects == 10 and current_release(catalog) == after
    assert read_release(catalog, first.release) == first


def test_a_release_is_hidden_until_it_is_whole(catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = release_module._write

    def watched(folder: Path, *arguments: Any) -> None:
        real(folder, *arguments)
        seen.extend(p.name for p in (catalog / "releases").iterdir())
        assert not (catalog / "CURRENT").exists()

    monkeypatch.setattr(release_module, "_write", watched)
    info = published(catalog)
    assert len(seen) == 1 and seen[0].startswith(".")
    assert [p.name for p in (catalog / "releases").iterdir()] == [info.release]


# --- the sum closes -----------------------------------------------------------------------------------------------


def test_an_object_of_two_tiles_is_kept_once_and_the_other_is_accounted_for(catalog: Path) -> None:
    commit_tile(catalog, "c-tile", [13, 25, 31], unclassified=[31], quarantined=1)
    info = published(catalog)
    table, quarantine = rows(catalog, info), rows(catalog, info, "quarantine")
    ids = table["object_id"].to_pylist()
    assert len(ids) == len(set(ids)) == info.objects == 10
    kept = {row["object_id"]: row["tile_id"] for row in table.select(["object_id", "tile_id"]).to_pylist()}
    assert kept[13] == "b-tile" and kept[25] == "a-tile"  # the first by tile id, the positions being the same
    refused = [r for r in quarantine.to_pylist() if r["reason"] == "duplicate_object_id"]
    assert {(r["tile_id"], r["source_name"]) for r in refused} == {("c-tile", "c-tile#13"), ("c-tile", "c-tile#25")}
    assert all(re.search(r"object_id (13|25) ", r["detail"]) for r in refused)
    inputs = sum(stamp.inputs for _, stamp in committed(catalog, MODEL))
    assert inputs == 4 + 7 + 4
    assert inputs == info.classified + info.unclassified + info.quarantined + info.duplicates
    assert inputs == table.num_rows + quarantine.num_rows
    assert (info.duplicates, info.quarantined) == (2, 3)


def test_sidecars_say_what_each_tile_gave_and_why_inputs_were_refused(catalog: Path) -> None:
    info = published(catalog)
    tiles = rows(catalog, info, "tiles").to_pylist()
    assert [(t["tile_id"], t["inputs"], t["classified"], t["unclassified"], t["quarantined"]) for t in tiles] == [
        ("a-tile", 7, 5, 0, 2),
        ("b-tile", 4, 3, 1, 0),
    ]
    quarantine = rows(catalog, info, "quarantine").to_pylist()
    assert quarantine[0] == {
        "tile_id": "a-tile",
        "file": "/sky/a-tile/0.fits",
        "source_name": "a-tile/0",
        "reason": "no_wcs",
        "exception": "",
        "attempts": 1,
        "first_seen": "",
        "last_seen": "",
        "detail": "no WCS",
    }


def test_a_catalogue_of_nothing_but_refused_inputs_is_a_release(tmp_path: Path) -> None:
    commit_tile(tmp_path, "t", [], quarantined=3, rejected="unreadable_file")
    info = published(tmp_path)
    assert (info.objects, info.classified, info.quarantined, info.simulated_objects) == (0, 0, 3, 0)
    assert rows(tmp_path, info).schema.equals(arrow_schema(SLUGS))


def test_simulated_objects_are_counted_and_the_readme_says_so(catalog: Path) -> None:
    real = published(catalog)
    assert "simulated**" not in (catalog / "releases" / real.release / "README.md").read_text()
    commit_tile(catalog, "c-tile", [31, 32], layer="simulated-grz")
    info = published(catalog)
    text = (catalog / "releases" / info.release / "README.md").read_text()
    assert info.simulated_objects == 2
    assert "**2 of 11 objects are simulated**" in text
    assert f"# Morphology catalogue {info.release}" in text and "Galaxy Zoo" in text
    for column in arrow_schema(SLUGS).names:
        assert f"| {column} |" in text


# --- damage -------------------------------------------------------------------------------------------------------


def restamped(path: Path, change: Callable[[Any], Any]) -> None:
    """Rewrite a tile's rows and keep its stamp, as an older version would have written it."""
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def test_a_tile_with_other_columns_is_refused_by_name(catalog: Path, contents: Contents) -> None:
    first = published(catalog)
    restamped(tile_path(catalog, MODEL, "b-tile"), lambda table: table.drop_columns(["entropy"]))
    commit_tile(catalog, "c-tile", [31])
    before = contents(catalog)
    with pytest.raises(CatalogError, match=r"b-tile\.parquet: its columns"):
        publish(catalog, MODEL)
    assert contents(catalog) == before and current_release(catalog) == first


def test_a_column_that_changed_its_type_is_refused(catalog: Path) -> None:
    def widen(table: Any) -> Any:
        at = table.schema.get_field_index("entropy")
        return table.set_column(at, "entropy", pc.cast(table["entropy"], "float64"))

    restamped(tile_path(catalog, MODEL, "b-tile"), widen)
    with pytest.raises(CatalogError, match="columns"):
        publish(catalog, MODEL)


def test_tiles_that_disagree_about_the_classes_are_refused(catalog: Path) -> None:
    path = tile_path(catalog, MODEL, "b-tile")
    key, stamp = b"morphcat.stamp", pq.read_metadata(path).metadata[b"morphcat.stamp"]
    table = make_table("b-tile", [1]).replace_schema_metadata({key: stamp.replace(b'"round"', b'"ring"')})
    pq.write_table(table, path)
    with pytest.raises(CatalogError, match="disagree about the classes"):
        publish(catalog, MODEL)


def test_a_tile_whose_rows_are_damaged_is_named(catalog: Path) -> None:
    path = tile_path(catalog, MODEL, "b-tile")
    content = bytearray(path.read_bytes())
    content[4:1500] = bytes(1496)  # the footer stays, and with it the stamp
    path.write_bytes(content)
    with pytest.raises(CatalogError, match=r"b-tile\.parquet: damaged"):
        publish(catalog, MODEL)


def test_an_unknown_or_damaged_release_is_an_error_that_names_it(catalog: Path) -> None:
    with pytest.raises(CatalogError, match=r"no release '2020\.01\.0' .*there are: none"):
        read_release(catalog, "2020.01.0")
    info = published(catalog)
    with pytest.raises(CatalogError, match=rf"there are: {re.escape(info.release)}"):
        read_release(catalog, "2020.01.0")
    (catalog / "releases" / info.release / "release.json").write_bytes(b"\xff{")
    with pytest.raises(CatalogError, match=r"release\.json: damaged"):
        current_release(catalog)
    (catalog / "CURRENT").write_text("gone\n")
    with pytest.raises(CatalogError, match="no release 'gone'"):
        current_release(catalog)
