"""Quarantine as its users work with it: an alarm, a table, another try; and the table of all inputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flows.cli.main import main
from tests.conftest import SMALL_TRAINING, Small
from tests.pipeline.makers import write_cutouts


class Typed:
    """Types commands into one workspace that uses a small model; keeps what came out."""

    def __init__(self, root: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys
        settings = [*SMALL_TRAINING, f'folders.models="{models}"', "survey.alarm=0.2"]
        self.common = ["--workspace", str(root), *(word for s in settings for word in ("--set", s))]

    def __call__(self, *words: str, status: int = 0) -> tuple[str, str]:
        got = main([*self.common, *words])
        out, err = self.capsys.readouterr()
        assert got == status, err
        return out, err


@pytest.fixture
def typed(
    small: Small,
    tmp_path: Path,
    prefect_server: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Typed:
    monkeypatch.setenv("PREFECT_HOME", os.environ.get("PREFECT_HOME", str(tmp_path / ".prefect")))
    return Typed(tmp_path / "W", small.workspace.models, capsys)


def test_from_the_alarm_to_the_file_that_came_good(typed: Typed) -> None:
    folder = write_cutouts(typed.root / "incoming" / "C", 3)
    whole = (folder / "g001.fits").read_bytes()
    (folder / "g001.fits").write_bytes(b"")
    out, err = typed("survey", status=4)
    assert "1 of 3 inputs (33%) are in quarantine" in err and "quarantine list" in err
    assert "objects 3 = 2 classified + 0 without label + 1 quarantined + 0 out of footprint + 0 duplicates" in out
    assert (typed.root / "catalog" / "CURRENT").exists()

    out, _ = typed("quarantine", "list")
    assert "incoming/C/g001.fits" in out and out.splitlines()[-1] == "empty_file: 1"
    (entry,) = json.loads(typed("quarantine", "list", "--reason", "empty_file", "--json")[0])
    assert (entry["reason"], entry["attempts"], entry["file"]) == ("empty_file", 1, str(folder / "g001.fits"))
    assert json.loads(typed("quarantine", "list", "--reason", "no_wcs", "--json")[0]) == []
    told = {row["file"]: row["outcome"] for row in json.loads(typed("inputs", "--json")[0])}
    assert told["C/g001.fits"] == "quarantined: empty_file" and len(told) == 3

    out, _ = typed("quarantine", "retry", status=4)
    assert "tried again: 1 inputs in quarantine; 0 came good, 1 are still there, 0 are gone" in out
    (entry,) = json.loads(typed("quarantine", "list", "--json")[0])
    assert entry["attempts"] == 2 and entry["first_seen"] <= entry["last_seen"]
    (folder / "g001.fits").write_bytes(whole)
    result = json.loads(typed("quarantine", "retry", "--reason", "empty_file", "--json")[0])
    assert (result["tried"], result["good"], result["still"]) == (1, 1, 0)
    assert result["survey"]["classified"] == 3 and result["survey"]["reused"] == 2
    assert "nothing in quarantine" in typed("quarantine", "list")[0]
    assert "nothing to try again" in typed("quarantine", "retry")[0]


def test_there_need_not_be_anything_yet(typed: Typed) -> None:
    assert "nothing in quarantine" in typed("quarantine", "list")[0]
    assert "unknown reason no_wsc" in typed("quarantine", "retry", "--reason", "no_wsc", status=1)[1]
    assert "no such folder" in typed("inputs", status=1)[1]
    (typed.root / "incoming").mkdir(parents=True)
    (typed.root / "incoming" / "notes.txt").write_text("x")
    (row,) = json.loads(typed("inputs", "--json")[0])
    assert row == {"file": "notes.txt", "tile": "", "kind": "", "outcome": "passed over: no input by its name"}
