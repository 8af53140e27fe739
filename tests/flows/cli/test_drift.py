"""`morphcat drift`, and how a survey says what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.cli.main import main
from flows.cli.survey import _with_exit_status
from tests.pipeline.skies import night, release

CELL = 13


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    nights = [night("run-0", [CELL], 1), night("run-1", [CELL], 2, noisy=[CELL])]
    release(tmp_path / "catalog", 0, nights[:1])
    release(tmp_path / "catalog", 1, nights)
    return tmp_path


def test_the_report_is_printed_and_nothing_is_written(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drift", "--workspace", str(workspace)]) == 0
    text = capsys.readouterr().out
    assert "# Drift of release 2026.11.1" in text and "high_ood" in text.split("**Alarms:**")[1]
    command = ["drift", "2026.11.1", "--workspace", str(workspace), "--json"]
    assert main([*command, "--set", "drift.min_objects=400"]) == 0
    assert json.loads(capsys.readouterr().out)["alarms"] == []
    assert main(["drift", "2026.11.7", "--workspace", str(workspace)]) == 1
    assert "no release '2026.11.7'" in capsys.readouterr().err
    assert not (workspace / "reports").exists()


def test_alarms_are_said_and_do_not_change_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    said = [f"around ra {i}.0, dec +1.0: high_ood 1.0% → 9.0%" for i in range(7)]
    assert _with_exit_status({"alarm": "", "drift": said})[1] == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"morphcat: drift: {said[0]}" and len(lines) == 6 and "and 2 more" in lines[-1]
