"""The labels store: what is refused, what is in force, and that nothing is ever lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalogs.errors import CatalogError
from catalogs.labels import checks as label_checks
from catalogs.labels import store as labels
from catalogs.labels.checks import Proposal, ResolvedLabel, checked
from catalogs.labels.io import VoteRule, class_of, read_proposals
from catalogs.labels.store import add, digest, in_force, revert, versions

CLASSES = (("round", "Round Smooth"), ("spiral", "Barred Spiral"), ("edge_on", "Edge-on"))
ARCSEC = 1 / 3600
OBJECTS = pa.table(
    {
        "object_id": [5, 7, 9, 11, (1 << 62) + 3],
        "ra": [0.00001, 10.0, 10.0 + 0.8 * ARCSEC, 200.0, 50.0],
        "dec": [0.0, 0.0, 0.0, 89.9999, -45.0],
    }
)


def says(object_id: int, label: str = "round", **more: Any) -> ResolvedLabel:
    number = next(i for i, (slug, _) in enumerate(CLASSES) if slug == label)
    return ResolvedLabel(object_id, label, number, 1.5, -2.5, **more)


def now(folder: Path, version: str | None = None) -> dict[int, str]:
    table = in_force(folder, version)
    return dict(zip(table["object_id"].to_pylist(), table["label"].to_pylist(), strict=True))


def where(object_id: int = -1, ra: float = 0, dec: float = 0, label: str = "round", row: int = 1) -> Proposal:
    return Proposal(row, object_id, ra, dec, label, 0)


def test_the_newest_label_wins_and_a_revision_is_recorded(tmp_path: Path) -> None:
    first = add(tmp_path, [says(7), says(5, note="faint")], author="A", source="a.csv").version
    second = add(tmp_path, [says(7, "spiral"), says(9)], author="B", note="again").version
    assert first and second and (second.labels, second.new, second.revised) == (2, 1, 1)
    assert second.parent == first.name and [v.number for v in versions(tmp_path)] == [1, 2]
    assert now(tmp_path) == {5: "round", 7: "spiral", 9: "round"}
    assert now(tmp_path, "1") == now(tmp_path, first.name) == now(tmp_path, "0001") == {5: "round", 7: "round"}
    row = in_force(tmp_path).to_pylist()[1]
    assert {**row, "time": ""} == {
        **{"object_id": 7, "label": "spiral", "label_id": 1, "ra": 1.5, "dec": -2.5, "author": "B", "source": ""},
        **{"time": "", "version": second.name, "note": "", "previous": "round"},
    }
    assert row["time"].endswith("+00:00")


def test_what_is_said_again_changes_nothing_but_another_author_confirms(tmp_path: Path) -> None:
    add(tmp_path, [says(5), says(7)], author="A")
    assert add(tmp_path, [says(7), says(5)], author="A") == labels.AddResult(None, 2)
    confirmed = add(tmp_path, [says(5)], author="B").version
    assert confirmed and (confirmed.labels, confirmed.new, confirmed.revised) == (1, 0, 0)
    assert len(versions(tmp_path)) == 2


def test_a_version_is_taken_back_and_back_again(tmp_path: Path) -> None:
    add(tmp_path, [says(5), says(7)], author="A")
    wrong = add(tmp_path, [says(5, "spiral"), says(9)], author="B").version
    add(tmp_path, [says(7, "edge_on")], author="A")
    assert wrong
    files = {path: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    undone = revert(tmp_path, "2", author="A", note="B was wrong")
    assert undone.reverts == wrong.name and now(tmp_path) == {5: "round", 7: "edge_on"}
    assert all(path.read_bytes() == content for path, content in files.items())
    assert now(tmp_path, "3") == {5: "spiral", 7: "edge_on", 9: "round"}
    with pytest.raises(CatalogError, match="taken back already"):
        revert(tmp_path, wrong.name, author="A")
    revert(tmp_path, "4", author="B")
    assert now(tmp_path) == {5: "spiral", 7: "edge_on", 9: "round"}
    with pytest.raises(CatalogError, match="no version '9'"):
        revert(tmp_path, "9", author="A")
    with pytest.raises(CatalogError, match="--author"):
        revert(tmp_path, "1", author=" ")


def test_the_digest_is_of_the_set_and_not_of_its_history(tmp_path: Path) -> None:
    add(tmp_path / "a", [says(5), says(7, "spiral")], author="A")
    add(tmp_path / "b", [says(7)], author="B")
    add(tmp_path / "b", [says(7, "spiral")], author="B")
    add(tmp_path / "b", [says(5)], author="C")
    table = in_force(tmp_path / "b")
    assert digest(in_force(tmp_path / "a")) == digest(table) == digest(table.take([1, 0]))
    add(tmp_path / "b", [says(5, "edge_on")], author="C")
    assert digest(in_force(tmp_path / "b")) != digest(table)
    assert in_force(tmp_path / "none").num_rows == 0 and versions(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_a_version_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    first = add(tmp_path, [says(5)], author="A").version
    add(tmp_path, [says(7)], author="A")
    assert first
    path = tmp_path / f"{first.name}.parquet"
    table = pq.ParquetFile(path).read()
    other = table.set_column(1, table.schema.field("label"), [pa.array(["spiral"])])
    pq.write_table(other, path)
    with pytest.raises(CatalogError, match="it was changed"):
        in_force(tmp_path)
    path.write_bytes(b"PAR1")
    with pytest.raises(CatalogError, match="not a version of the labels"):
        add(tmp_path, [says(9)], author="A")
    path.unlink()
    with pytest.raises(CatalogError, match="put the file back"):
        versions(tmp_path)


def test_head_leads_to_no_version_of_another_store(tmp_path: Path) -> None:
    version = add(tmp_path / "other", [says(5)], author="A").version
    assert version
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "HEAD").write_text(f"../other/{version.name}\n")
    with pytest.raises(CatalogError, match="no name of a version"):
        in_force(tmp_path / "here")


def test_two_who_add_at_once_are_both_heard(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda n=n: add(tmp_path, [says(n), says(100)], author=f"A{n}")) for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [v.number for v in versions(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert set(now(tmp_path)) == {0, 1, 2, 3, 4, 5, 100}


_KILLED = """
import os, signal, sys
from pathlib import Path
from catalogs import atomic as files
from catalogs.labels.store import add
from catalogs.labels.checks import ResolvedLabel
real, left = os.replace, 0
def replace(source, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
files.os.replace = replace
for number, folder in enumerate(sys.argv[1:]):
    if os.fork() == 0:
        left = number
        add(Path(folder), [ResolvedLabel(9, "spiral", 1, 0.0, 0.0)], author="B")
        os._exit(0)
    print(os.wait()[1], end=" ")
"""


def test_a_kill_at_either_rename_leaves_what_was_in_force(tmp_path: Path) -> None:
    folders = [tmp_path / "version", tmp_path / "head"]
    for folder in folders:
        add(folder, [says(5)], author="A")
    command = [sys.executable, "-c", _KILLED, *map(str, folders)]
    killed = subprocess.run(command, env=os.environ, check=True, capture_output=True, text=True)
    assert killed.stdout.split() == [str(int(signal.SIGKILL))] * 2
    for renames, folder in enumerate(folders):
        assert now(folder) == {5: "round"} and len(list(folder.glob("0002-*.parquet"))) == renames
        again = add(folder, [says(9, "spiral")], author="B").version
        assert again and again.number == 2 and now(folder) == {5: "round", 9: "spiral"}


def test_positions_find_the_only_object_within_the_radius() -> None:
    given = [
        where(ra=360 - 0.2 * ARCSEC, dec=0, row=1),  # across the zero of right ascension
        where(ra=200 + 0.5 * ARCSEC / 1.75e-6, dec=89.9999, row=2),  # close to the pole
        where(ra=10.0 - 0.5 * ARCSEC, dec=0, row=3),  # 0.5 and 1.3 arcsec
        where(ra=10.0 + 0.3 * ARCSEC, dec=0, row=4),  # 0.3 and 0.5 arcsec
        where(ra=-310.0, dec=-45.0, row=5),
        where(ra=50.0, dec=-45.0 + 1.01 * ARCSEC, row=6),
    ]
    found, refused, repeated = checked(given, OBJECTS, 1.0)
    assert [one.object_id for one in found] == [5, 11, 7, (1 << 62) + 3] and repeated == 0
    assert found[0].ra == 0.00001  # the position of the catalogue, not that of the file
    assert [(one.row, one.reason) for one in refused] == [
        (4, label_checks.AMBIGUOUS),
        (6, label_checks.NO_MATCH),
    ]
    assert "(7, 9)" in refused[0].detail
    assert [one.object_id for one in checked(given, OBJECTS, 0.45)[0]] == [5, 7, (1 << 62) + 3]
    for radius in (0, -1, float("nan"), 1e5):
        with pytest.raises(CatalogError, match="radius"):
            checked(given, OBJECTS, radius)


def test_unknown_objects_and_conflicts_are_refused() -> None:
    given = [
        where(7, row=1),
        where(8, row=2),
        where(9, label="round", row=3),
        where(9, label="spiral", row=4),
        where(ra=10.0 - 0.5 * ARCSEC, row=5),  # is 7 again
        where(5, row=6),
    ]
    found, refused, repeated = checked(given, OBJECTS, 1.0)
    assert [one.object_id for one in found] == [7, 5] and repeated == 1
    assert [(one.row, one.reason) for one in refused] == [
        (2, label_checks.UNKNOWN_OBJECT),
        (3, label_checks.CONFLICT),
        (4, label_checks.CONFLICT),
    ]
    assert "row 3 round, row 4 spiral" in refused[1].detail
    nothing = checked(given, OBJECTS.slice(0, 0), 1.0)
    assert nothing[0] == [] and len(nothing[1]) == 6


IDS = [5, 7, (1 << 62) + 3, 9]
WORDS = ["round", "BARRED SPIRAL", "2", "sprial"]


def _write(path: Path, ids: Sequence[int | None], words: Sequence[str]) -> Path:
    from astropy.table import Table

    if path.suffix == ".csv":
        rows = [f"{i},{w}" for i, w in zip(ids, words, strict=True)]
        path.write_text("\n".join([" TargetID,label", *rows]) + "\n", encoding="utf-8-sig")
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"TARGETID": pa.array(ids, pa.int64()), "label": words}), path)
    else:
        table = Table({"TARGETID": ids, "label": words})
        table.write(path, format="fits" if ".fits" in path.name else "votable")
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.fits", "a.fits.gz", "a.vot"])
def test_four_formats_say_the_same(tmp_path: Path, name: str) -> None:
    proposals, refused = read_proposals(_write(tmp_path / name, IDS, WORDS), CLASSES)
    assert [(p.row, p.object_id, p.label, p.label_id) for p in proposals] == [
        (1, 5, "round", 0),
        (2, 7, "spiral", 1),
        (3, (1 << 62) + 3, "edge_on", 2),
    ]
    (one,) = refused
    assert (one.row, one.object, one.label, one.reason) == (4, "9", "sprial", label_checks.UNKNOWN_CLASS)
    assert "did you mean spiral?" in one.detail
    (tmp_path / name).write_bytes(b"\x00<html>")
    with pytest.raises(CatalogError, match=r"cannot be read|no column"):
        read_proposals(tmp_path / name, CLASSES)


def test_rows_that_name_no_object_are_refused(tmp_path: Path) -> None:
    rows = ["5.5,,,round", "9223372036854775808,,,round", "-3,1,1,round", ",10,91,round", ",,,round", ",10,20,spiral"]
    (tmp_path / "a.csv").write_text("object_id,ra,dec,label\n" + "\n".join(rows) + "\n")
    proposals, refused = read_proposals(tmp_path / "a.csv", CLASSES)
    assert [one.row for one in refused] == [1, 2, 3, 4, 5]
    assert {one.reason for one in refused} == {label_checks.NO_OBJECT}
    assert [(p.object_id, p.ra, p.dec) for p in proposals] == [(-1, 10, 20)]


def test_columns_can_be_named_and_missing_ones_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,what,alpha,delta,label\n5,1,1,2,junk\n")
    named = {"object_id": "who", "label": "what"}
    (one,), _ = read_proposals(tmp_path / "a.csv", CLASSES, columns=named)
    assert (one.object_id, one.label) == (5, "spiral")
    for columns, message in (
        ({}, "neither object_id nor ra and dec"),
        ({"object_id": "id"}, "no column 'id'; found who, what"),
        ({"colour": "who"}, "expected one of object_id"),
    ):
        with pytest.raises(CatalogError, match=message):
            read_proposals(tmp_path / "a.csv", CLASSES, columns=columns)
    (tmp_path / "c.csv").write_text("object_id,label,label\n5,1,2\n")
    with pytest.raises(CatalogError, match="two columns 'label'"):
        read_proposals(tmp_path / "c.csv", CLASSES)
    with pytest.raises(CatalogError, match="no such file"):
        read_proposals(tmp_path / "b.csv", CLASSES)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(CatalogError, match=r"expected a name that ends in \.csv"):
        read_proposals(tmp_path / "a.txt", CLASSES)


def test_votes_take_the_place_of_a_column(tmp_path: Path) -> None:
    rule = VoteRule(frozenset({"p"}), lambda row: ("round", "p") if row.get("p", 0) > 0.5 else ("", "too few"))
    (tmp_path / "a.csv").write_text("object_id,label,p\n5,spiral,0.9\n7,spiral,0.2\n9,spiral,\n")
    (one,), refused = read_proposals(tmp_path / "a.csv", CLASSES, votes=rule)
    assert (one.object_id, one.label, one.note) == (5, "round", "p")
    assert [(r.object, r.reason, r.detail) for r in refused] == [
        (name, label_checks.UNDECIDED, "too few") for name in ("7", "9")
    ]
    (tmp_path / "b.csv").write_text("object_id,label\n5,spiral\n")
    with pytest.raises(CatalogError, match="no column of vote fractions"):
        read_proposals(tmp_path / "b.csv", CLASSES, votes=rule)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *[("Edge-on", 2), ("EDGE_ON", 2), (1, 1), (1.0, 1), ("1", 1), (1.5, None), (3, None), (-1, None)],
        *[(None, None), ("", None), (True, None), ("٣", None), (float("nan"), None)],
    ],
)
def test_a_class_is_a_slug_a_name_or_a_number(value: Any, number: int | None) -> None:
    assert class_of(value, CLASSES) == number
