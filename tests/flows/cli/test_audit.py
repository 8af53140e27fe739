"""`morphcat audit` and `diff` on a small release: what they print, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from catalogs.validation.audit import CHECKS
from flows.cli.main import main
from tests.catalogs.conftest import make_table
from tests.catalogs.released import a_leaf, commit_rows, make_release, published, rewrite, with_value


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two releases; in the second, three objects of tile b have another label, and it is damaged."""
    root = tmp_path_factory.mktemp("audit_commands")
    make_release(root / "catalog")
    table = make_table("b-tile", range(18, 30))
    other = make_table("b-tile", [i + 100 if i in (22, 23, 24) else i + 70 for i in range(18, 30)])
    predicted = [
        n for n in table.column_names if n.startswith(("p_", "label", "conf", "entropy", "pred", "is_reliable"))
    ]
    for name in predicted:
        at = table.column_names.index(name)
        table = table.set_column(at, table.schema.field(name), other[name])
    commit_rows(root / "catalog", table, fingerprint="new", quarantined=2)
    after = published(root / "catalog")
    rewrite(a_leaf(after), with_value("pred_set_size", 9))
    return root


def run(workspace: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["--workspace", str(workspace), *arguments])
    return status, capsys.readouterr().out


def releases(workspace: Path) -> list[str]:
    return sorted(path.name for path in (workspace / "catalog" / "releases").glob("[!.]*"))


def test_a_sound_release_is_said_to_be_in_a_line_for_each_check(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = run(workspace, capsys, "audit", releases(workspace)[0])
    lines = text.splitlines()
    assert status == 0 and lines[-1] == "all checks passed"
    assert [line.split()[:2] for line in lines[1:-1]] == [["ok", name] for name in CHECKS]
    assert "1 tiles were committed again since" in text


def test_a_damaged_release_ends_with_status_5_and_examples(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(workspace, capsys, "audit")
    assert status == 5 and text.splitlines()[-1] == f"2 of {len(CHECKS)} checks found mismatches"
    assert "pred_set_size is not the number of bits of pred_set: 1 rows" in text
    status, text = run(workspace, capsys, "audit", "--quick", "--json")
    report = json.loads(text)
    assert status == 5 and report["ok"] is False
    assert {c["name"]: c["status"] for c in report["checks"] if c["status"] != "ok"} == {
        "files": "skipped",
        "certainty": "wrong",
    }


def test_an_unknown_release_is_an_error(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(workspace, capsys, "audit", "2020.01.0")[0] == 1
    assert run(workspace, capsys, "diff", "2020.01.0", releases(workspace)[1])[0] == 1


def test_a_diff_shows_totals_flips_and_the_most_changed(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(workspace, capsys, "diff", *releases(workspace), "--json")
    told = json.loads(text)
    assert status == 0 and (told["old"], told["new"]) == tuple(releases(workspace))
    assert sum(row["objects"] for row in told["totals"]) == told["objects"] == len(told["most_changed"]) > 0
    flips = sum(row["objects"] for row in told["flips"])
    assert flips == sum(row["objects"] for row in told["totals"] if row["kind"] == "label") > 0
    status, text = run(workspace, capsys, "diff", *releases(workspace), "--limit", "1")
    lines = text.splitlines()
    assert status == 0 and lines[0].endswith(f"{told['objects']} objects changed")
    assert lines[-1].split()[0] == str(told["most_changed"][0]["object_id"])
    assert any(line.startswith("old \\ new label") for line in lines)


def test_all_changes_can_be_written_to_a_file(
    workspace: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, text = run(workspace, capsys, "diff", *releases(workspace), "--format", "csv")
    assert status == 0 and text.startswith("object_id,ra,dec,kind,reason,")
    assert run(workspace, capsys, "diff", *releases(workspace), "--out", str(tmp_path / "c.parquet"))[0] == 0
    assert pq.read_table(tmp_path / "c.parquet").num_rows == len(text.splitlines()) - 1


def test_two_times_the_same_release_is_no_change(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = releases(workspace)[0]
    assert run(workspace, capsys, "diff", name, name) == (0, f"{name} -> {name}: 0 objects changed\n")
