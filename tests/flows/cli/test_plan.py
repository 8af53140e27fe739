"""`morphcat plan`: a forecast that starts no server, and without a trial loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli.main import main
from flows.cli.plan import _span
from pipeline.survey.estimate import Interval
from tests.conftest import SMALL_TRAINING, Small
from tests.paths import ROOT
from tests.pipeline.makers import write_cutouts


def test_the_command_needs_no_prefect_and_counts_without_torch(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = small.elsewhere(tmp_path / "W")
    write_cutouts(workspace.incoming / "C", 3)
    settings = [*SMALL_TRAINING, f'folders.models="{small.workspace.models}"']
    words = ["--workspace", str(workspace.root), *(word for s in settings for word in ("--set", s)), "plan"]
    code = (
        "import sys; from flows.cli.main import main; status = main(sys.argv[1:]); "
        "assert not {'prefect', 'distributed', 'torch'} & set(sys.modules); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, *words, "--seconds", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["sky tiles 1: 1 to do, 0 done, 0 still arriving", "to do: 1 cutouts"]
    assert lines[2].startswith("stamps to classify: 3; to read: ") and len(lines) == 3
    assert main([*words, "--seconds", "0.1"]) == 0
    tried, forecast, disk = capsys.readouterr().out.splitlines()[3:]
    assert tried.startswith("tried on this machine: 3 stamps of 1 sky tiles, ")
    assert forecast.startswith("forecast from these 3 stamps: ") and forecast.endswith("with 1 worker")
    assert disk.startswith("disk: ")
    assert main([*words, "--seconds", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stamps"] == 3
    with pytest.raises(SystemExit):
        main([*words, "--seconds", "-1"])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ((7200.0, 3600.0, 432_000.0), "2 hours (1 to 120)"),
        ((100.0, 99.6, 119.0), "100 s (100 to 119)"),
        ((119.9, 60.0, 240.0), "120 s (60 to 240)"),
        ((150.0, 90.0, 600.0), "2.5 minutes (1.5 to 10)"),
    ],
)
def test_times_are_told_in_a_unit_that_suits_them(seconds: tuple[float, float, float], words: str) -> None:
    assert _span(Interval(*seconds)) == words
