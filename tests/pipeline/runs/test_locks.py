"""One at a time, and a killed process leaves nothing locked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runs.locks import AlreadyRunning, exclusive, holder, survey_lock

_HOLD = """
import sys, time
from pathlib import Path
from pipeline.runs.locks import exclusive, survey_lock
with exclusive(survey_lock(Path(sys.argv[1])), "other-run", "survey"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_survey_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "held\n"
        now = holder(survey_lock(tmp_path))
        assert now is not None and (now.run_id, now.pid) == ("other-run", other.pid)
        with (
            pytest.raises(AlreadyRunning, match=f"other-run, process {other.pid}"),
            exclusive(survey_lock(tmp_path), "mine", "survey"),
        ):
            raise AssertionError("both hold the lock")
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    assert holder(survey_lock(tmp_path)) is None
    with exclusive(survey_lock(tmp_path), "mine", "survey"):
        now = holder(survey_lock(tmp_path))
        assert now is not None and (now.run_id, now.pid) == ("mine", os.getpid())


def test_a_survey_waits_for_one_that_ends_in_time(tmp_path: Path) -> None:
    code = _HOLD.replace("sleep(60)", "sleep(1.5)")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with exclusive(survey_lock(tmp_path), "mine", "survey", wait=30):
            pass


def test_an_error_inside_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(survey_lock(tmp_path), "mine", "survey"):
        raise ZeroDivisionError
    assert holder(survey_lock(tmp_path)) is None


def test_nobody_holds_what_is_not_there(tmp_path: Path) -> None:
    assert holder(survey_lock(tmp_path / "nothing")) is None
