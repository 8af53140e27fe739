"""What changed between two releases is named exactly, with the reason; what both share is not even read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalogs.healpix import healpix_29
from catalogs.paths import ReleaseLayout
from catalogs.releases.diff import CHANGES_SCHEMA, compare, flip_matrix, totals, write_changes
from catalogs.schema import QualityFlag, arrow_schema, label_columns
from catalogs.tiles import QuarantineEntry
from tests.catalogs.conftest import SLUGS, make_table
from tests.catalogs.released import all_rows, commit_rows, published

MOVED, BRIGHT, EVEN = 9, int(QualityFlag.BRIGHT_STAR), [0.34, 0.33, 0.33]


def edited(tile_id: str, ids: Sequence[int], edits: dict[int, dict[str, Any]]) -> pa.Table:
    """Rows of a tile with other values for some objects; `p` sets the probabilities and what follows from them."""
    rows = {row["object_id"]: row for row in make_table(tile_id, ids).to_pylist()}
    for object_id, values in edits.items():
        p = values.pop("p", None)
        if p is not None:
            columns = label_columns(np.array([p], np.float32), np.array([sum(p) > 0]), SLUGS)
            rows[object_id].update({name: column[0] for name, column in columns.items()})
        rows[object_id].update(values)
        place = rows[object_id]
        place["_healpix_29"] = healpix_29(np.array([place["ra"]]), np.array([place["dec"]]))[0]
    return pa.Table.from_pylist(list(rows.values()), schema=arrow_schema(SLUGS))


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReleaseLayout, ReleaseLayout]:
    """Two releases: tile a stays, b is made again with one change of each sort, c goes, d comes."""
    catalog = tmp_path_factory.mktemp("changes") / "catalog"
    commit_rows(catalog, make_table("a-tile", range(100, 140)))
    flat = {"p": EVEN, "input_digest": 1}
    commit_rows(catalog, edited("b-tile", range(1, 14), {1: dict(flat), 4: {"p": EVEN}, 13: {"p": EVEN}}))
    commit_rows(catalog, make_table("c-tile", [50]))
    old = published(catalog, 5)
    edits: dict[int, dict[str, Any]] = {
        1: {"p": [0.0, 0.0, 1.0], "input_digest": 2},
        2: {"input_digest": 99},
        3: {"mag_r": 17.5},
        4: {"p": [0.3399, 0.3301, 0.33]},
        5: {"quality_flags": BRIGHT, "is_reliable": False},
        6: {"maskbits": 2},
        7: {"p": [0, 0, 0], "quality_flags": int(QualityFlag.UNCLASSIFIED | QualityFlag.MISSING_BAND)},
        8: {"quality_flags": int(QualityFlag.VIEWS_DISAGREE)},
        MOVED: {"ra": 200.0, "dec": 70.0},
        10: {"run_id": "run-2", "mjd_predicted": 62000.0, "source_name": "elsewhere"},
        13: {"p": [0.33, 0.34, 0.33]},
    }
    refused = QuarantineEntry(file="/b/11.fits", source_name="b-tile#11", reason="no_wcs", detail="no WCS")
    table = edited("b-tile", [*range(1, 11), 13, 14], edits)
    commit_rows(catalog, table, fingerprint="new", run_id="run-2", quarantine=[refused])
    (next((catalog / "tiles").rglob("c-tile.parquet"))).unlink()
    commit_rows(catalog, make_table("d-tile", [60]))
    return old, published(catalog, 5)


def test_every_object_that_changed_is_named_once_with_its_reason(
    releases: tuple[ReleaseLayout, ReleaseLayout],
) -> None:
    changes = compare(*releases)
    assert changes.column_names == CHANGES_SCHEMA.names
    assert {row["object_id"]: (row["kind"], row["reason"]) for row in changes.to_pylist()} == {
        1: ("label", "pixels"),
        2: ("input", "pixels"),
        3: ("input", "input"),
        4: ("confidence", "calibration"),
        5: ("flags", "mask"),
        6: ("flags", "mask"),
        7: ("label", "mask"),
        8: ("flags", "calibration"),
        MOVED: ("position", "position"),
        11: ("gone", "quarantine: no_wcs"),
        12: ("gone", "input"),
        13: ("label", "calibration"),
        14: ("new", "input"),
        50: ("gone", "tile"),
        60: ("new", "tile"),
    }
    assert changes.num_rows == 15


def test_the_most_changed_come_first(releases: tuple[ReleaseLayout, ReleaseLayout]) -> None:
    rows = compare(*releases).to_pylist()
    assert [row["object_id"] for row in rows[:4]] == [7, 1, 13, 4]
    assert [row["variation"] for row in rows[:4]] == pytest.approx([1, 0.67, 0.01, 0.0001], abs=6e-5)
    assert [row["kind"] for row in rows[-5:]] == ["gone", "gone", "new", "gone", "new"]  # by id
    assert all(np.isnan(row["variation"]) for row in rows[-5:])
    first = rows[1]
    assert (first["old_label"], first["new_label"]) == ("round", "edge_on")
    assert (first["old_confidence"], first["new_confidence"]) == pytest.approx((0.34, 1))


def test_positions_are_those_of_the_newer_row(releases: tuple[ReleaseLayout, ReleaseLayout]) -> None:
    rows = {row["object_id"]: row for row in compare(*releases).to_pylist()}
    assert (rows[MOVED]["ra"], rows[MOVED]["dec"]) == (200, 70)
    assert rows[50]["ra"] == make_table("c-tile", [50])["ra"][0].as_py()
    assert (rows[60]["old_label"], rows[60]["old_confidence"]) == ("", 0) and rows[60]["new_label"] in SLUGS


def test_back_again_is_the_mirror_image(releases: tuple[ReleaseLayout, ReleaseLayout]) -> None:
    there, back = compare(*releases).to_pylist(), compare(*reversed(releases)).to_pylist()
    swapped = {"gone": "new", "new": "gone"}
    assert {(r["object_id"], swapped.get(r["kind"], r["kind"])) for r in there} == {
        (r["object_id"], r["kind"]) for r in back
    }
    assert flip_matrix(compare(releases[0], releases[0])).num_rows == 0


def test_flips_and_totals_add_up(releases: tuple[ReleaseLayout, ReleaseLayout]) -> None:
    changes = compare(*releases)
    seven = make_table("b-tile", [7])["label"][0].as_py()
    assert {tuple(row.values()) for row in flip_matrix(changes).to_pylist()} == {
        ("round", "edge_on", 1),
        ("round", "spiral", 1),
        (seven, "", 1),
    }
    rows = totals(changes).to_pylist()
    assert sum(row["objects"] for row in rows) == changes.num_rows
    assert rows[0]["kind"] == "label" and rows[-1]["kind"] == "gone"


def test_leaves_that_both_releases_share_are_not_read(releases: tuple[ReleaseLayout, ReleaseLayout]) -> None:
    old, new = releases
    expected = compare(old, new)
    shared = [
        new.partition_file(p.order, p.pixel)
        for p in new.partitions()
        if old.partition_file(p.order, p.pixel).exists()
        and old.partition_file(p.order, p.pixel).samefile(new.partition_file(p.order, p.pixel))
    ]
    assert len(shared) > 2
    content = {path: path.read_bytes() for path in shared}
    try:
        for path in shared:
            path.write_bytes(b"not to be read")
        found = compare(old, new)
        assert all(found[name].equals(expected[name]) for name in ("object_id", "kind", "reason"))
    finally:
        for path, data in content.items():
            path.write_bytes(data)


def test_a_release_writes_down_what_changed_since_the_one_before(
    releases: tuple[ReleaseLayout, ReleaseLayout],
) -> None:
    old, new = releases
    first, second = (pq.ParquetFile(layout.provenance / "changes.parquet") for layout in releases)
    assert first.schema_arrow.equals(CHANGES_SCHEMA) and first.metadata.num_rows == 0
    assert second.schema_arrow.equals(CHANGES_SCHEMA)
    assert second.metadata.metadata[b"morphcat.changes_since"] == old.root.name.encode()
    assert second.read()["object_id"].to_pylist() == compare(old, new)["object_id"].to_pylist()


def test_another_model_with_other_classes_is_compared_by_their_names(tmp_path: Path) -> None:
    table = make_table("a-tile", range(1, 9))
    old = hand_made(tmp_path / "old", table)
    renamed = ["p_" + {"spiral": "disc"}.get(n[2:], n[2:]) if n.startswith("p_") else n for n in table.column_names]
    at = table.column_names.index("model_id")
    other = table.rename_columns(renamed).set_column(at, "model_id", pa.array(["new"] * 8))
    changes = compare(old, hand_made(tmp_path / "new", other)).to_pylist()
    spirals = [row["object_id"] for row in table.to_pylist() if row["label"] == "spiral"]
    assert spirals and {r["object_id"] for r in changes if r["kind"] == "label"} == set(spirals)
    assert {(r["old_label"], r["new_label"], r["reason"]) for r in changes if r["kind"] == "label"} == {
        ("spiral", "disc", "model")
    }


def test_it_agrees_with_a_comparison_of_whole_tables_when_pixels_differ_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    ids = rng.permutation(400)[:300] + 1
    edits = {int(i): {"p": rng.dirichlet([1, 1, 1]).tolist(), "input_digest": 5} for i in rng.choice(ids, 60, False)}
    edits |= {int(i): {"ra": float(rng.random() * 360)} for i in rng.choice(ids, 20, False)}
    catalog = tmp_path / "catalog"
    commit_rows(catalog, make_table("a-tile", sorted(rng.permutation(400)[:300] + 1)))
    old = published(catalog, 100)
    commit_rows(catalog, edited("a-tile", sorted(ids.tolist()), edits), fingerprint="new")
    new = published(catalog, 30)
    before, after = ({r["object_id"]: r for r in all_rows(layout).to_pylist()} for layout in (old, new))
    names = [n for n in arrow_schema(SLUGS).names if n not in ("mag_r",)]
    expected = {
        i for i in before.keys() | after.keys()
        if i not in before or i not in after or any(before[i][n] != after[i][n] for n in names)
    }  # fmt: skip
    changes = compare(old, new).to_pylist()
    assert {row["object_id"] for row in changes} == expected and len(changes) == len(expected)
    flips = {i for i in before.keys() & after.keys() if before[i]["label"] != after[i]["label"]}
    assert {row["object_id"] for row in changes if row["kind"] == "label"} == flips and len(flips) > 10


def hand_made(root: Path, table: pa.Table) -> ReleaseLayout:
    """The parts of a release that a comparison reads, with all rows in base pixels."""
    layout = ReleaseLayout(root)
    schema = pa.schema([field.with_nullable(False) for field in table.schema])
    pixels = table["_healpix_29"].to_numpy() >> 58
    lines = ["Norder,Npix,num_rows"]
    for pixel in np.unique(pixels).tolist():
        path = layout.partition_file(0, pixel)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(pa.array(pixels == pixel)).cast(schema), path)
        lines.append(f"0,{pixel},{(pixels == pixel).sum()}")
    (layout.primary / "partition_info.csv").write_text("\n".join(lines) + "\n")
    pq.write_metadata(schema, layout.primary / "dataset" / "_common_metadata")
    layout.provenance.mkdir()
    pq.write_table(pa.table({"tile_id": ["a-tile"]}), layout.provenance / "tiles.parquet")
    empty = pa.schema([("source_name", pa.string()), ("reason", pa.string())]).empty_table()
    pq.write_table(empty, layout.provenance / "quarantine.parquet")
    return layout


def test_the_first_release_has_no_changes(tmp_path: Path) -> None:
    layout = hand_made(tmp_path / "new", make_table("a-tile", [1, 2]))
    assert pq.read_table(write_changes(None, layout)).num_rows == 0
