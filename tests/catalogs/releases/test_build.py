"""Releases: immutable, complete, balanced, and visible only when they are whole."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from catalogs.errors import CatalogError
from catalogs.query.sql import query
from catalogs.releases import build as publishing
from catalogs.releases.build import publish
from catalogs.releases.manifest import verify_manifest
from catalogs.releases.provenance import RUNS_SCHEMA, RunRecord
from catalogs.releases.registry import (
    ReleaseInfo,
    ReleaseLocked,
    current_release,
    history,
    is_published,
    layout_of,
    read_release,
    release_names,
    rollback,
)
from catalogs.schema import arrow_schema
from catalogs.tiles import commit, committed, tile_path
from tests.catalogs.conftest import MODEL, SLUGS, commit_tile, make_stamp, make_table
from tests.paths import ROOT

Contents = Callable[[Path], dict[str, bytes]]


def published(catalog: Path, **options: Any) -> ReleaseInfo:
    info = publish(catalog, MODEL, **{"exports": False, **options})
    assert info is not None
    return info


def rows(catalog: Path, info: ReleaseInfo, table: str = "morphology") -> pa.Table:
    layout = layout_of(catalog, info.release)
    files = [layout.partition_file(p.order, p.pixel) for p in layout.partitions()]
    if table != "morphology":
        files = [layout.provenance / f"{table}.parquet"]
    elif not files:
        files = [layout.primary / "dataset" / "_common_metadata"]
    return pa.concat_tables(pq.ParquetFile(path).read().replace_schema_metadata(None) for path in files)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReleaseInfo]:
    """A catalogue of two tiles and its release in several partition files, with exports; to be read only."""
    root = tmp_path_factory.mktemp("released") / "catalog"
    commit_tile(root, "b-tile", [11, 12, 13, 14], unclassified=[12])
    commit_tile(root, "a-tile", [21, 22, 23, 24, 25], quarantined=2)
    return root, published(root, max_rows=3, exports=True)


def made(catalog: Path, info: ReleaseInfo) -> list[str]:
    """How each partition file came to be."""
    return rows(catalog, info, "partitions")["made"].to_pylist()


def test_a_release_holds_all_rows_sorted_by_position(released: tuple[Path, ReleaseInfo]) -> None:
    catalog, info = released
    table = rows(catalog, info)
    assert table.schema.equals(arrow_schema(SLUGS))
    assert sorted(table["object_id"].to_pylist()) == [11, 12, 13, 14, 21, 22, 23, 24, 25]
    positions = table["_healpix_29"].to_pylist()
    assert positions == sorted(positions)  # of the partition files in their order, too
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
    assert publish(catalog, MODEL) == info and is_published(catalog, MODEL)
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


# --- the collection ---------------------------------------------------------------------------------------------


def test_a_release_is_a_valid_collection_whose_leaves_have_one_schema(released: tuple[Path, ReleaseInfo]) -> None:
    from hats.catalog.dataset.collection_properties import CollectionProperties
    from hats.catalog.dataset.table_properties import TableProperties
    from hats.io.validation import is_valid_catalog, is_valid_collection

    catalog, info = released
    layout = layout_of(catalog, info.release)
    assert is_valid_collection(layout.collection, strict=True)
    assert all(is_valid_catalog(part, strict=True) for part in (layout.primary, layout.margin, layout.index))
    properties = TableProperties.read_from_dir(layout.primary)
    assert properties.total_rows == 9 and properties.hats_max_rows == 3 and properties.skymap_order == 8
    assert 0 < (properties.moc_sky_fraction or 0) < 1e-5 and "label" in (properties.default_columns or [])
    assert {"hats_creator", "hats_builder", "hats_creation_date", "obs_description", "bib_reference"} <= set(
        properties.provenance_dict()
    )
    assert CollectionProperties.read_from_dir(layout.collection).default_index == "object_id"
    common = pq.read_schema(layout.primary / "dataset" / "_common_metadata")
    assert b"IVOA.VOTable-Parquet.content" in common.metadata
    for partition in layout.partitions():
        file = pq.read_schema(layout.partition_file(partition.order, partition.pixel))
        assert file.equals(arrow_schema(SLUGS)) and common.metadata.keys() <= file.metadata.keys()
    footer = pq.read_metadata(layout.primary / "dataset" / "_metadata")
    assert footer.num_rows == 9 and footer.num_row_groups == info.partitions == len(layout.partitions()) > 3
    assert (layout.primary / footer.row_group(0).column(0).file_path).name.startswith("Npix=")


def test_the_maps_say_where_the_objects_are(released: tuple[Path, ReleaseInfo]) -> None:
    from hats.io.file_io import read_fits_image
    from mocpy import MOC

    catalog, info = released
    primary, table = layout_of(catalog, info.release).primary, rows(catalog, info)
    density = read_fits_image(primary / "point_map.fits")
    cells = table["_healpix_29"].to_numpy() >> 2 * (29 - 8)
    assert density.sum() == 9 and (density[cells] > 0).all()
    coverage = MOC.from_fits(primary / "moc.fits")
    assert coverage.contains_lonlat(*(pa_degrees(table[name]) for name in ("ra", "dec"))).all()


def pa_degrees(column: pa.ChunkedArray) -> Any:
    from astropy import units

    return column.to_numpy() * units.deg


def test_every_file_is_in_the_manifest_and_the_extension_says_how_to_join(released: tuple[Path, ReleaseInfo]) -> None:
    catalog, info = released
    root = layout_of(catalog, info.release).root
    assert verify_manifest(root) == []
    done = subprocess.run(["sha256sum", "-c", "--quiet", "sidecar/manifest.sha256"], cwd=root, capture_output=True)
    assert done.returncode == 0
    extension = json.loads((root / "extension.json").read_text())
    assert extension["hats_col_assn_join"] == "object_id" and "BRICKID << 22" in extension["join_rule"]
    assert set(extension["hats_ext_cols"].split()) < set(arrow_schema(SLUGS).names)
    assert {"CITATION.txt", "README.md", "report", "export"} <= {path.name for path in root.iterdir()}
    assert not [path for path in root.rglob("*") if path.name.startswith(".")]


def test_runs_join_every_row_and_say_what_is_known_of_them(catalog: Path) -> None:
    commit_tile(catalog, "c-tile", [31], run_id="run-2")  # its row was predicted by run-1
    known = RunRecord(
        git_revision="abc-dirty", versions={"torch": "2.13.0"}, seconds=2.5, classified=9, unclassified=1, host="node7"
    )
    info = published(catalog, runs={"run-1": known})
    table = rows(catalog, info, "runs")
    assert table.schema.equals(RUNS_SCHEMA)
    runs = {row["run_id"]: row for row in table.to_pylist()}
    assert set(rows(catalog, info)["run_id"].to_pylist()) == {"run-1"}
    assert {run: row["tiles"] for run, row in runs.items()} == {"run-1": 2, "run-2": 1}
    first, second = runs["run-1"], runs["run-2"]
    assert first["git_revision"] == "abc-dirty" and json.loads(first["versions"])["torch"] == "2.13.0"
    assert (first["host"], first["objects_per_second"], first["simulated"]) == ("node7", 4.0, False)
    assert second["settings_digest"] == "" and second["model_id"] == MODEL
    assert all(second[name] is None for name in ("started", "seconds", "objects_per_second", "simulated"))


def test_a_run_is_simulated_where_all_its_rows_are(tmp_path: Path) -> None:
    one_sky, other = make_table("a", [1], layer="simulated", run_id=["A"]), make_table("b", [5], run_id=["B"])
    mixed = make_table("c", [1 + 360 * 120], run_id=["C"])  # beside object 1, in the same partition file
    for table in (one_sky, other, mixed):
        commit(tmp_path, table, make_stamp(table["tile_id"][0].as_py(), 1, run_id=table["run_id"][0].as_py()))
    info = published(tmp_path)
    told = {row["run_id"]: row["simulated"] for row in rows(tmp_path, info, "runs").to_pylist()}
    assert told == {"A": None, "B": False, "C": None}


# --- what does not change is carried over -----------------------------------------------------------------------


def test_only_the_pixels_of_a_changed_tile_are_written_again(catalog: Path) -> None:
    first = published(catalog, max_rows=3)
    assert set(made(catalog, first)) == {"written"}
    commit_tile(catalog, "c-tile", [13 + 360 * 120])  # beside object 13
    second = published(catalog, max_rows=3)
    partitions = rows(catalog, second, "partitions").to_pylist()
    assert [p["made"] for p in partitions].count("written") == 1 < len(partitions)
    before, after = layout_of(catalog, first.release), layout_of(catalog, second.release)
    for p in partitions:
        file, old = after.partition_file(p["order"], p["pixel"]), before.partition_file(p["order"], p["pixel"])
        assert (file.stat().st_ino == old.stat().st_ino) == (p["made"] == "carried")
    assert second.previous == first.release and verify_manifest(after.root) == []
    assert verify_manifest(before.root) == []


def test_a_damaged_leaf_is_not_carried_over(catalog: Path) -> None:
    first = published(catalog, max_rows=3)
    layout = layout_of(catalog, first.release)
    partition = layout.partitions()[0]
    path = layout.partition_file(partition.order, partition.pixel)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    commit_tile(catalog, "c-tile", [500])
    second = published(catalog, max_rows=3)
    assert made(catalog, second).count("written") == 2 and rows(catalog, second).num_rows == 10
    assert verify_manifest(layout_of(catalog, second.release).root) == []


def test_where_links_fail_leaves_are_copied(catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Any) -> None:
        raise OSError("no links here")

    first = published(catalog, max_rows=3)
    commit_tile(catalog, "c-tile", [500])
    monkeypatch.setattr(os, "link", refuse)
    second = published(catalog, max_rows=3)
    assert made(catalog, second).count("carried") == first.partitions - made(catalog, second).count("written") + 1 > 1
    assert {p.stat().st_nlink for p in layout_of(catalog, second.release).primary.rglob("Npix=*")} == {1}


# --- killed, and at the same time -------------------------------------------------------------------------------


def crash(*arguments: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


def second_leaf_kills(what: str, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
    for job in jobs[:2]:
        yield function(job)
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["a partition file", "_describe", "fsync", "set_current"])
def test_a_crash_anywhere_leaves_readers_with_the_release_before(
    catalog: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    first = published(catalog, max_rows=3)
    commit_tile(catalog, "c-tile", [31, 14], fingerprint="new")
    options: dict[str, Any] = {"run_units": second_leaf_kills} if where == "a partition file" else {}
    with monkeypatch.context() as patched:
        if where != "a partition file":
            patched.setattr(publishing, where, crash)
        with pytest.raises(KeyboardInterrupt):
            published(catalog, max_rows=4, **options)
    assert current_release(catalog) == first and rows(catalog, first).num_rows == 9
    after = published(catalog, max_rows=4)
    assert after.objects == 10 and current_release(catalog) == after
    assert len(release_names(catalog)) == 2 and verify_manifest(layout_of(catalog, after.release).root) == []
    assert sorted(p.name for p in (catalog / "releases").iterdir()) == release_names(catalog)
    again = made(catalog, after)
    assert {"a partition file": again.count("kept") == 2, "set_current": "kept" not in again}.get(
        where, "written" not in again
    )


_KILLED = """
import os, signal, sys
from pathlib import Path
from catalogs.releases.build import publish

def units(what, function, jobs):
    yield function(jobs[0])
    os.kill(os.getpid(), signal.SIGKILL)

publish(Path(sys.argv[1]), sys.argv[2], run_units=units, max_rows=3)
"""


@pytest.mark.slow
def test_a_killed_publish_lets_go_of_its_lock_and_the_next_goes_on(catalog: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(catalog), MODEL], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert current_release(catalog) is None and not release_names(catalog)
    assert made(catalog, published(catalog, max_rows=3)).count("kept") == 1


def test_leaves_of_a_killed_build_that_nobody_wants_any_more_are_gone(catalog: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        published(catalog, max_rows=1, run_units=second_leaf_kills)
    info = published(catalog)
    files = list(layout_of(catalog, info.release).primary.rglob("Npix=*"))
    assert len(files) == info.partitions < 9 and rows(catalog, info).num_rows == 9


def test_of_two_publishes_at_once_one_wins_and_the_other_says_so(catalog: Path) -> None:
    with (catalog / ".publish.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ReleaseLocked, match="another process"):
            published(catalog)
        with pytest.raises(ReleaseLocked):
            rollback(catalog, "2020.01.0", "")
    assert published(catalog).objects == 9


def test_readers_in_a_loop_see_whole_releases_only(catalog: Path) -> None:
    published(catalog)
    seen: list[tuple[Any, ...]] = []
    done = threading.Event()
    wrong: list[Exception] = []

    def read() -> None:
        sql = "SELECT count(*), sum(object_id), (SELECT count(*) FROM tiles) FROM morphology"
        while not done.is_set():
            try:
                seen.append(tuple(query(catalog, sql).to_pylist()[0].values()))
            except Exception as error:
                wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    expected = [(9, 165, 2)]
    for number in range(2):
        commit_tile(catalog, f"z{number}-tile", [100 + number])
        info = published(catalog)
        expected.append((info.objects, expected[-1][1] + 100 + number, 3 + number))
    rollback(catalog, release_names(catalog)[0], "for the readers")
    done.set()
    reader.join()
    assert not wrong and len(set(seen)) > 1 and set(seen) <= set(expected)


# --- going back -------------------------------------------------------------------------------------------------


def test_a_rollback_is_kept_and_not_undone_by_the_next_publish(catalog: Path, contents: Contents) -> None:
    first = published(catalog)
    commit_tile(catalog, "c-tile", [31])
    second = published(catalog)
    assert rollback(catalog, first.release, "a bad night") == first == current_release(catalog)
    step = history(catalog)[-1]
    assert (step["from"], step["to"], step["reason"]) == (second.release, first.release, "a bad night")
    assert step["utc"].endswith("+00:00")
    before = contents(catalog)
    assert publish(catalog, MODEL) == first and is_published(catalog, MODEL) and contents(catalog) == before
    commit_tile(catalog, "d-tile", [32])
    third = published(catalog)
    assert third.objects == 11 and third.previous == first.release and not third.release.endswith(".1")
    with pytest.raises(CatalogError, match="no release"):
        rollback(catalog, "../tiles", "")


def test_a_rollback_that_was_killed_is_done_by_the_next_and_not_undone(
    catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is kept before the pointer is replaced: the other way round the next publish would take it back."""
    first = published(catalog)
    commit_tile(catalog, "c-tile", [31])
    second = published(catalog)

    def interrupted(catalog: Path, release: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("catalogs.releases.registry.set_current", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rollback(catalog, first.release, "a bad night")
    assert current_release(catalog) == second and publish(catalog, MODEL) == second
    rollback(catalog, first.release, "a bad night")
    assert publish(catalog, MODEL) == first == current_release(catalog)
    assert {step["to"] for step in history(catalog)} == {first.release}


def test_one_can_turn_back_from_a_damaged_release_and_publish_beside_one(catalog: Path) -> None:
    first = published(catalog)
    commit_tile(catalog, "c-tile", [31])
    second = published(catalog)
    layout_of(catalog, second.release).info.write_text("{")
    assert rollback(catalog, first.release, "damaged") == current_release(catalog)
    third = published(catalog)
    assert third.objects == 10 and third.release != second.release


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


def test_sidecars_say_what_each_tile_gave_and_why_inputs_were_refused(released: tuple[Path, ReleaseInfo]) -> None:
    catalog, info = released
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
    assert "are simulated" not in (catalog / "releases" / real.release / "README.md").read_text()
    commit_tile(catalog, "c-tile", [31, 32], layer="simulated-grz")
    info = published(catalog)
    text = (catalog / "releases" / info.release / "README.md").read_text()
    assert info.simulated_objects == 2
    assert "2 of 11 objects are simulated" in text
    assert f"# Morphology catalogue {info.release}" in text
    assert "Galaxy Zoo" in (catalog / "releases" / info.release / "CITATION.txt").read_text()


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


def test_no_name_leads_out_of_the_catalogue(catalog: Path) -> None:
    info = published(catalog)
    (catalog / "releases" / info.release).rename(catalog / "elsewhere")
    (catalog / "CURRENT").write_text("../elsewhere\n")
    with pytest.raises(CatalogError, match=r"no release '\.\./elsewhere'"):
        current_release(catalog)
    (catalog / "elsewhere").rename(catalog / "releases" / "renamed")
    with pytest.raises(CatalogError, match="a release cannot be renamed"):
        read_release(catalog, "renamed")
