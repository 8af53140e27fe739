"""`morphcat release …` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.cli.main import main
from tests.catalogs.conftest import MODEL, commit_tile


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(list(words)) == status
    captured = capsys.readouterr()
    return captured.out if status in (0, 5) else captured.err


def test_releases_are_built_listed_turned_back_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ("--workspace", str(tmp_path), "--set", "release.exports=false", "release")
    assert "morphcat survey" in said(capsys, *here, "build", "--model", MODEL, status=1)
    assert "no release yet" in said(capsys, *here, "list")
    assert "no release in" in said(capsys, *here, "current", status=1)
    commit_tile(tmp_path / "catalog", "a-tile", [1, 2, 3])
    first = json.loads(said(capsys, *here, "build", "--model", MODEL, "--json"))
    assert first["objects"] == 3 and not first["nothing_to_do"]
    assert "nothing to do" in said(capsys, *here, "build")
    commit_tile(tmp_path / "catalog", "b-tile", [4])
    assert "4 objects of 2 sky tiles" in said(capsys, *here, "build")
    listed = json.loads(said(capsys, *here, "list", "--json"))
    assert [(row["objects"], row["current"]) for row in listed] == [(3, False), (4, True)]
    assert all(row["bytes"] > 10_000 for row in listed)
    said(capsys, *here, "rollback", first["release"], "--reason", "a bad night")
    current = json.loads(said(capsys, *here, "current", "--json"))
    assert current["release"] == first["release"] and Path(current["collection"]).is_dir()
    assert "current" in said(capsys, *here, "list").splitlines()[1]
    assert "every file is as published" in said(capsys, *here, "verify")
    (tmp_path / "catalog" / "releases" / first["release"] / "README.md").write_text("other")
    assert "README.md: changed" in said(capsys, *here, "verify", first["release"], status=5)
    assert json.loads(said(capsys, *here, "verify", listed[1]["release"], "--json"))["problems"] == []
