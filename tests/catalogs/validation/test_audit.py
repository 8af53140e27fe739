"""An audit passes a sound release, and names whatever is done to one."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalogs.errors import CatalogError
from catalogs.paths import ReleaseLayout, partition_path
from catalogs.schema import QualityFlag
from catalogs.tiles import tile_path
from catalogs.validation import partitions as audit_partitions
from catalogs.validation.audit import CHECKS, AuditReport, audit, verify
from catalogs.validation.partitions import repeated_ids, scan_partition
from catalogs.validation.rows import row_sums
from tests.catalogs.conftest import MODEL, SLUGS, make_table
from tests.catalogs.released import (
    a_leaf,
    commit_rows,
    make_release,
    pixels,
    published,
    rewrite,
    with_column,
    with_value,
)

Damage = Callable[[ReleaseLayout], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    catalog = tmp_path_factory.mktemp("audited") / "catalog"
    make_release(catalog)
    return catalog


@pytest.fixture
def layout(made: Path, tmp_path: Path) -> ReleaseLayout:
    """A copy of the release, to be damaged."""
    shutil.copytree(made, tmp_path / "catalog")
    (root,) = (tmp_path / "catalog" / "releases").glob("[!.]*")
    return ReleaseLayout(root)


def audited(layout: ReleaseLayout, *, quick: bool = False) -> AuditReport:
    return audit(layout.root.parents[1], quick=quick)


def wrong(report: AuditReport) -> dict[str, str]:
    """Names of the checks that found something, with their first example."""
    return {check.name: check.examples[0] for check in report.checks if check.status == "wrong"}


@pytest.mark.parametrize("quick", [False, True])
def test_a_sound_release_passes_every_check_and_nothing_is_written(
    layout: ReleaseLayout, as_was: Callable[[Path], AbstractContextManager[None]], quick: bool
) -> None:
    with as_was(layout.root.parents[1]):
        report = audited(layout, quick=quick)
    assert wrong(report) == {} and report.ok
    assert [check.name for check in report.checks] == list(CHECKS)
    assert [check.name for check in report.checks if check.status == "skipped"] == (["files"] if quick else [])
    assert (report.rows, report.tiles) == (34, 3)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True
    assert len(pixels(layout)) > 3 and list((layout.margin / "dataset").rglob("Npix=*"))  # so there was much to check


# --- a damaged partition file ---------------------------------------------------------------------------------------


def flipped_pairs(table: pa.Table) -> pa.Table:
    return table.take([1, 0, *range(2, table.num_rows)])


def widened(table: pa.Table) -> pa.Table:
    return with_column(table, "entropy", table["entropy"].cast(pa.float64()).combine_chunks())


def nullable(table: pa.Table) -> pa.Table:
    return with_column(table, "entropy", table["entropy"].combine_chunks(), nullable=True)


def renamed_class(table: pa.Table) -> pa.Table:
    return table.rename_columns(["p_ring" if name == "p_spiral" else name for name in table.column_names])


LEAF_DAMAGE: dict[str, tuple[Callable[[pa.Table], pa.Table], set[str]]] = {
    "removed column": (lambda t: t.drop_columns(["entropy"]), {"schema"}),
    "removed row": (lambda t: t.slice(1), {"counts", "tiles", "index"}),
    "repeated row": (lambda t: t.take([0, *range(t.num_rows)]), {"counts", "tiles", "index", "ids"}),
    "float32 to float64": (widened, {"schema"}),
    "two rows exchanged": (flipped_pairs, {"order"}),
    "probability": (with_value("p_round", lambda v: v + 0.01), {"probabilities"}),
    "object_id": (with_value("object_id", 12345), {"index", "tiles"}),
    "another model": (with_value("model_id", "other"), {"model"}),
    "another run": (with_value("run_id", "run-x"), {"model"}),
    "another tile": (with_value("tile_id", "z-tile"), {"tiles"}),
    "digest": (with_value("input_digest", 5), {"tiles"}),
    "simulated": (with_value("survey_layer", "simulated-grz"), {"counts"}),
}
ROW_DAMAGE: dict[str, tuple[Callable[[pa.Table], pa.Table], set[str]]] = {
    "nullable": (nullable, {"schema"}),
    "columns exchanged": (lambda t: t.select(["object_id", "_healpix_29", *t.column_names[2:]]), {"schema"}),
    "another class": (renamed_class, {"schema"}),
    "another index": (with_value("_healpix_29", lambda v: v + 1), {"positions"}),
    "a position elsewhere": (with_value("dec", lambda v: v + 1e-5), {"positions"}),
    "no position": (with_value("ra", float("nan")), {"positions"}),
    "a small edit": (with_value("p_round", lambda v: v + 0.0005), {"labels"}),
    "NaN": (with_value("p_round", float("nan")), {"probabilities"}),
    "unrounded": (with_value("p_round", lambda v: v + 0.00003), {"probabilities"}),
    "label": (with_value("label", lambda v: "spiral" if v == "round" else "round"), {"labels"}),
    "no such label": (with_value("label", "ring"), {"labels"}),
    "label_id": (with_value("label_id", lambda v: (v + 1) % 3), {"labels"}),
    "confidence": (with_value("confidence", lambda v: v + 0.001), {"labels"}),
    "confidence_gap": (with_value("confidence_gap", 0.123), {"labels"}),
    "entropy": (with_value("entropy", lambda v: v - 0.001), {"labels"}),
    "pred_set_size": (with_value("pred_set_size", 7), {"certainty"}),
    "pred_set": (with_value("pred_set", 8), {"certainty"}),
    "views": (with_value("n_views", 0), {"certainty"}),
    "spread": (with_value("confidence_std", float("nan")), {"certainty"}),
    "novelty": (with_value("ood_score", 1.5), {"certainty"}),
    "unknown flag": (with_value("quality_flags", 1 << 30), {"flags"}),
    "unclassified with a label": (with_value("quality_flags", int(QualityFlag.UNCLASSIFIED)), {"flags"}),
    "is_reliable": (with_value("is_reliable", lambda v: not v), {"flags"}),
}


@pytest.mark.parametrize("damage", LEAF_DAMAGE)
def test_a_changed_leaf_is_caught_by_its_rows_and_by_its_checksum(layout: ReleaseLayout, damage: str) -> None:
    change, expected = LEAF_DAMAGE[damage]
    path = a_leaf(layout)
    rewrite(path, change)
    found = wrong(audited(layout))
    assert expected | {"files"} <= found.keys()
    assert found["files"].startswith(path.relative_to(layout.root).as_posix())


@pytest.mark.parametrize("damage", ROW_DAMAGE)
def test_every_rule_of_the_contract_is_looked_at(made: Path, tmp_path: Path, damage: str) -> None:
    change, expected = ROW_DAMAGE[damage]
    (root,) = (made / "releases").glob("[!.]*")
    source, layout = ReleaseLayout(root), ReleaseLayout(tmp_path)
    largest = max(source.partitions(), key=lambda partition: partition.rows)
    path = layout.partition_file(largest.order, largest.pixel)
    path.parent.mkdir(parents=True)
    shutil.copy(a_leaf(source), path)
    assert scan_partition(layout, largest, SLUGS, np.empty(0, np.int64)).findings.counts == {}
    rewrite(path, change)
    scan = scan_partition(layout, largest, SLUGS, np.empty(0, np.int64))
    assert scan.findings.counts.keys() == expected
    assert scan.readable is ("schema" not in expected)


def test_an_edited_leaf_is_caught_without_checksums_too(layout: ReleaseLayout) -> None:
    rewrite(a_leaf(layout), with_value("p_round", lambda v: v + 0.01))
    report = audited(layout, quick=True)
    assert wrong(report).keys() == {"probabilities"} and not report.ok
    assert "such as object" in wrong(report)["probabilities"]


def test_a_flipped_bit_anywhere_in_a_leaf_is_caught(layout: ReleaseLayout) -> None:
    path = a_leaf(layout)
    content = path.read_bytes()
    for at in [0, 8, len(content) // 3, len(content) // 2, len(content) - 100, len(content) - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        assert [problem.path for problem in verify(layout)] == [path.relative_to(layout.root).as_posix()], at
    assert "files" in wrong(audited(layout))
    path.write_bytes(content)
    assert verify(layout) == []


def test_a_leaf_that_is_no_parquet_is_named_and_the_rest_is_looked_at(layout: ReleaseLayout) -> None:
    a_leaf(layout).write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    report = audited(layout, quick=True)
    assert "cannot be read" in wrong(report)["schema"]
    assert 0 < report.rows < 34


def test_leaves_that_changed_places_are_caught(layout: ReleaseLayout, tmp_path: Path) -> None:
    one, other = (layout.partition_file(p.order, p.pixel) for p in pixels(layout)[:2])
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    found = wrong(audited(layout))
    assert "not in the pixel of its partition file" in found["order"]
    assert {"files", "index"} <= found.keys()


def test_a_leaf_of_the_release_before_is_caught(layout: ReleaseLayout) -> None:
    catalog = layout.root.parents[1]
    commit_rows(catalog, make_table("b-tile", range(18, 30), input_digest=np.arange(12) + 900), fingerprint="new")
    after = published(catalog)
    other = next(
        p
        for p in pixels(after)
        if not layout.partition_file(p.order, p.pixel).samefile(after.partition_file(p.order, p.pixel))
    )
    assert audited(after).ok
    after.partition_file(other.order, other.pixel).unlink()
    shutil.copy(layout.partition_file(other.order, other.pixel), after.partition_file(other.order, other.pixel))
    assert {"files", "tiles"} <= wrong(audited(after)).keys()
    assert "b-tile: its rows are not those of the release" in wrong(audited(after))["tiles"]


def test_metadata_that_describe_the_columns_must_be_there(layout: ReleaseLayout) -> None:
    path = a_leaf(layout)
    table = pq.ParquetFile(path).read()
    pq.write_table(table.replace_schema_metadata(None), path)
    assert wrong(audited(layout, quick=True)).keys() == {"metadata"}


# --- what stands around the partition files -------------------------------------------------------------------------


def edit_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def edit_info(layout: ReleaseLayout, **values: Any) -> None:
    layout.info.write_text(json.dumps({**json.loads(layout.info.read_text()), **values}))


def a_margin_leaf(layout: ReleaseLayout) -> Path:
    with (layout.margin / "partition_info.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    return partition_path(layout.margin, int(row["Norder"]), int(row["Npix"]))


def index_part(layout: ReleaseLayout) -> Path:
    return next((layout.index / "dataset" / "index").glob("*.parquet"))


def extra_leaf(layout: ReleaseLayout) -> None:
    shutil.copy(a_leaf(layout), a_leaf(layout).with_name("Npix=99.parquet"))


AROUND: dict[str, tuple[Damage, set[str]]] = {
    "missing partition file": (lambda r: a_leaf(r).unlink(), {"schema"}),
    "extra partition file": (extra_leaf, {"counts"}),
    "hats_nrows": (lambda r: edit_text(r.primary / "hats.properties", "hats_nrows=34", "hats_nrows=35"), {"counts"}),
    "no properties": (lambda r: (r.primary / "hats.properties").unlink(), {"counts"}),
    "partition_info": (lambda r: edit_text(r.primary / "partition_info.csv", ",6", ",7"), {"counts"}),
    "objects": (lambda r: edit_info(r, objects=33), {"counts", "ledger"}),
    "classified": (lambda r: edit_info(r, classified=34, unclassified=0), {"counts"}),
    "quarantined": (lambda r: edit_info(r, quarantined=0), {"ledger"}),
    "model": (lambda r: edit_info(r, model_id="other"), {"model"}),
    "tile count": (
        lambda r: rewrite(r.provenance / "tiles.parquet", with_value("classified", 18)),
        {"ledger", "tiles"},
    ),
    "found": (lambda r: rewrite(r.provenance / "tiles.parquet", with_value("found", 25)), {"ledger", "tiles"}),
    "recipe": (lambda r: rewrite(r.provenance / "tiles.parquet", with_value("recipe_digest", "x")), {"model"}),
    "tile forgotten": (lambda r: rewrite(r.provenance / "tiles.parquet", lambda t: t.slice(1)), {"ledger", "tiles"}),
    "quarantine": (lambda r: rewrite(r.provenance / "quarantine.parquet", lambda t: t.slice(1)), {"ledger"}),
    "no tiles": (lambda r: (r.provenance / "tiles.parquet").unlink(), {"ledger"}),
    "no _metadata": (lambda r: (r.primary / "dataset" / "_metadata").unlink(), {"counts"}),
    "margin value": (lambda r: rewrite(a_margin_leaf(r), with_value("source_name", "x")), {"margin"}),
    "margin object": (lambda r: rewrite(a_margin_leaf(r), with_value("object_id", 7)), {"margin"}),
    "margin row": (lambda r: rewrite(a_margin_leaf(r), lambda t: t.slice(1)), {"margin"}),
    "margin partition file": (lambda r: a_margin_leaf(r).unlink(), {"margin"}),
    "index row": (lambda r: rewrite(index_part(r), lambda t: t.slice(1)), {"index"}),
    "index pixel": (lambda r: rewrite(index_part(r), with_value("Npix", lambda v: v + 1)), {"index"}),
    "index order": (lambda r: rewrite(index_part(r), flipped_pairs), {"index"}),
    "no index": (lambda r: index_part(r).unlink(), {"index"}),
}


@pytest.mark.parametrize("damage", AROUND)
def test_what_does_not_agree_with_the_leaves_is_caught(layout: ReleaseLayout, damage: str) -> None:
    do, expected = AROUND[damage]
    do(layout)
    assert wrong(audited(layout, quick=True)).keys() >= expected
    assert verify(layout) != []


# --- committed tiles ------------------------------------------------------------------------------------------------


def test_a_tile_file_that_is_gone_or_holds_other_rows_is_caught(layout: ReleaseLayout) -> None:
    catalog = layout.root.parents[1]
    path = tile_path(catalog, MODEL, "c-tile")
    rewrite(path, with_value("object_id", 999))
    assert wrong(audited(layout)) == {"tiles": "tile c-tile: its rows are not those of the release"}
    assert audited(layout, quick=True).ok  # which counts rows only
    rewrite(path, lambda table: table.slice(1))
    assert "rows in its file 4, but 5 expected" in wrong(audited(layout, quick=True))["tiles"]
    rewrite(path, lambda table: table.drop_columns(["object_id"]))
    assert "tile c-tile: the columns of its file" in wrong(audited(layout))["tiles"]
    path.unlink()
    assert "tile c-tile: its file is missing" in wrong(audited(layout))["tiles"]


def test_a_tile_that_was_committed_again_since_is_no_mismatch(layout: ReleaseLayout) -> None:
    commit_rows(layout.root.parents[1], make_table("b-tile", [18, 19]), run_id="run-2")
    report = audited(layout)
    assert report.ok
    (remark,) = [check.remark for check in report.checks if check.name == "tiles"]
    assert remark.startswith("1 tiles were committed again since")


def test_a_release_can_be_audited_when_its_tiles_are_elsewhere(layout: ReleaseLayout) -> None:
    shutil.rmtree(layout.root.parents[1] / "tiles")
    report = audited(layout)
    assert report.ok and any("not compared with committed tiles" in check.remark for check in report.checks)


def test_what_is_no_release_is_an_error(layout: ReleaseLayout, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no release in"):
        audit(tmp_path / "nothing")
    with pytest.raises(CatalogError, match=r"no release '1\.2'"):
        audit(layout.root.parents[1], "1.2")
    (layout.primary / "partition_info.csv").write_text("nothing\n1\n")
    with pytest.raises(CatalogError, match=r"partition_info\.csv: cannot be read"):
        audited(layout)


# --- bounded memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1 << 25, 10, 1])
def test_repeated_ids_are_found_in_one_pass_or_many(
    layout: ReleaseLayout, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(audit_partitions, "IDS_IN_MEMORY", limit)
    assert repeated_ids(layout, layout.partitions()) == (0, [])
    for partition in pixels(layout)[:3]:
        rewrite(layout.partition_file(partition.order, partition.pixel), with_value("object_id", 77))
    rewrite(a_leaf(layout), lambda table: table.take([0, 0, *range(table.num_rows)]))
    count, some = repeated_ids(layout, layout.partitions())
    ids = np.concatenate(
        [
            pq.read_table(layout.partition_file(p.order, p.pixel), columns=["object_id"])["object_id"]
            for p in layout.partitions()
        ]
    )
    values, counts = np.unique(ids, return_counts=True)
    assert (count, sorted(some)) == ((counts > 1).sum(), values[counts > 1].tolist()) and 77 in some


def test_sums_of_rows_do_not_depend_on_their_order_and_change_with_any_value() -> None:
    rng = np.random.default_rng(4)
    columns = [rng.integers(-(2**62), 2**62, 500), rng.random(500).astype(np.float32)]
    order = rng.permutation(500)
    total = row_sums(columns).sum()
    assert row_sums([column[order] for column in columns]).sum() == total
    assert row_sums([columns[0], columns[1][order]]).sum() != total  # the same values, paired otherwise
    changed = columns[0].copy()
    changed[17] += 1
    assert row_sums([changed, columns[1]]).sum() != total
