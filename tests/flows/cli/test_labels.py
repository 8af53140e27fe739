"""`morphcat labels`, `explain` and `reproduce` as they are typed; none of them starts Prefect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from catalogs.query.sql import query
from flows.cli.main import main
from tests.conftest import SMALL_TRAINING, Small
from tests.pipeline import survey_driver
from tests.pipeline.makers import write_cutout, write_cutouts

Typed = Callable[..., str]


@pytest.fixture(scope="module")
def surveyed(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = small.elsewhere(tmp_path_factory.mktemp("labels"))
    write_cutouts(workspace.incoming / "C", 5)
    survey_driver.run(workspace)
    return workspace.root


@pytest.fixture(scope="module")
def objects(surveyed: Path) -> pa.Table:
    return query(surveyed / "catalog", "SELECT object_id, ra, dec FROM morphology ORDER BY ra")


@pytest.fixture
def typed(surveyed: Path, small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command; gives what it printed. Each test has labels of its own."""
    settings = [
        *SMALL_TRAINING,
        f'folders.models="{small.workspace.models}"',
        f'folders.labels="{tmp_path / "labels"}"',
    ]
    common = ["--workspace", str(surveyed), *(word for s in settings for word in ("--set", s))]

    def run(*words: str, status: int = 0) -> str:
        got = main([*common, *words])
        out, err = capsys.readouterr()
        assert got == status, err
        return out + err

    return run


def test_labels_from_the_first_to_taking_them_back(typed: Typed, objects: pa.Table, tmp_path: Path) -> None:
    first, second, third, *_ = objects["object_id"].to_pylist()
    (tmp_path / "a.csv").write_text(f"object_id,label\n{first},Merging\n{second},5\n12,disturbed\n{third},spirl\n")
    assert "no labels yet" in typed("labels", "log")
    add = ("labels", "add", str(tmp_path / "a.csv"), "--author", "Ann")
    out = typed(*add, "--strict", status=1)
    assert "nothing added: 2 of 4 rows are refused" in out and "no labels yet" in typed("labels", "log")
    out = typed(*add)
    assert "2 labels added (2 new, 0 revised, 0 confirmed)" in out and "2 refused" in out
    assert "unknown object" in out and "'spirl' is no class" in out
    assert "nothing to add: 2 were there already" in typed(*add)

    ra, dec = objects["ra"][0].as_py(), objects["dec"][0].as_py()
    (tmp_path / "b.csv").write_text(
        f"alpha,dec,label\n{ra + 0.5 / 3600},{dec},round_smooth\n{ra},{dec + 0.01},merging\n"
    )
    by_place = ("labels", "add", str(tmp_path / "b.csv"), "--author", "Ben", "--column", "ra=alpha", "--json")
    told = json.loads(typed(*by_place))
    assert (told["added"], told["revised"], told["refused"]) == (1, 1, 1)
    assert told["refused_rows"][0]["reason"] == "no object there"
    shown = json.loads(typed("labels", "show", "--json"))
    assert {row["object_id"]: row["label"] for row in shown["labels"]} == {
        first: "round_smooth",
        second: "barred_spiral",
    }
    typed("labels", "revert", told["version"], "--author", "Ann", "--note", "by mistake")
    after = json.loads(typed("labels", "show", "--json"))
    assert {row["label"] for row in after["labels"]} == {"merging", "barred_spiral"}
    assert (
        after["digest"] != shown["digest"] == json.loads(typed("labels", "show", "--version", "2", "--json"))["digest"]
    )
    log = json.loads(typed("labels", "log", "--json"))
    assert [(v["number"], v["author"], v["taken_back"]) for v in log] == [
        (3, "Ann", False),
        (2, "Ben", True),
        (1, "Ann", False),
    ]
    assert "(taken back)" in typed("labels", "log")
    assert typed("labels", "show", "--format", "csv").splitlines()[0].startswith("object_id,label,label_id,ra,dec")


def test_votes_become_labels_and_say_what_they_rest_on(typed: Typed, objects: pa.Table, tmp_path: Path) -> None:
    first, second, *_ = objects["object_id"].to_pylist()
    head = "TARGETID,smooth-or-featured_smooth_fraction,how-rounded_round_fraction"
    (tmp_path / "v.csv").write_text(f"{head}\n{first},0.9,0.7\n{second},0.5,0.7\n")
    told = json.loads(typed("labels", "add", str(tmp_path / "v.csv"), "--author", "GZ", "--votes", "--json"))
    assert (told["added"], told["refused"]) == (1, 1)
    assert told["refused_rows"][0]["detail"] == "no clear majority: smooth 0.50"
    (row,) = json.loads(typed("labels", "show", "--json"))["labels"]
    assert (row["label"], row["note"]) == ("round_smooth", "votes: smooth 0.90, round 0.70")


def test_what_cannot_be_done_is_said(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("object_id,label\n1,2\n")
    add = ("labels", "add", str(tmp_path / "a.csv"), "--author", "A")
    assert "expected FOR=NAME" in typed(*add, "--column", "label", status=1)
    assert "radius" in typed(*add, "--radius", "-1", status=1)
    assert "no release '2000.01.0'" in typed(*add, "--release", "2000.01.0", status=1)
    assert "no version '7'" in typed("labels", "revert", "7", "--author", "A", status=1)
    assert "is not in release" in typed("explain", "17", status=1)


def test_an_object_is_explained_and_reproduced(
    typed: Typed, objects: pa.Table, surveyed: Path, small: Small, tmp_path: Path
) -> None:
    name = str(objects["object_id"][1].as_py())
    images = str(small.workspace.benchmark / "galaxy10.h5")
    out = typed("explain", name, "--out", str(tmp_path / "page.html"), "--galaxy10", images)
    assert "calibration: of" in out and "nearest training examples: among" in out
    html = (tmp_path / "page.html").read_text()
    assert html.startswith("<!DOCTYPE html>") and html.count("data:image/png;base64,") == 6
    told = json.loads(typed("explain", name, "--json"))
    assert told["same_input"] is True and len(told["classes"]) == 10 and "not at hand" in told["neighbours_from"]
    assert "equal (the same pixels" in typed("reproduce", name)
    write_cutout(surveyed / "incoming" / "C" / "g001.fits", ra=150.01, dec=2.005)
    again = json.loads(typed("reproduce", name, "--json", status=1))
    assert not again["equal"] and again["differences"][0].startswith("input changed")
