"""A process that takes too long ends itself, whatever it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.execution.timeouts import process_ends_after
from tests.paths import ROOT

_HOLDS_THE_INTERPRETER = "re.match('(a+)+$', 'a' * 60 + 'b')"  # for hours, in C, without letting another thread run


def ran(code: str) -> subprocess.CompletedProcess[str]:
    imports = "import re, sys, threading, time\nfrom pipeline.execution.timeouts import process_ends_after\n"
    return subprocess.run(
        [sys.executable, "-c", imports + code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("code", ["time.sleep(60)", _HOLDS_THE_INTERPRETER])
def test_a_block_that_takes_too_long_ends_the_process(code: str) -> None:
    ended = ran(f"with process_ends_after(0.3):\n    {code}\nprint('over')")
    assert ended.returncode == 1 and ended.stdout == ""
    assert "Timeout" in ended.stderr and "File" in ended.stderr  # where it was


def test_blocks_that_end_in_time_leave_nothing_behind() -> None:
    """Also beside a block of another thread, which keeps its own end."""
    quick = "with process_ends_after(0.2):\n    pass\ntime.sleep(0.4)\nprint('alive', flush=True)\n"
    assert ran(quick).stdout == "alive\n"
    other = "def slow():\n    with process_ends_after(1):\n        time.sleep(60)\n"
    ended = ran(other + "threading.Thread(target=slow).start()\n" + quick)
    assert ended.returncode == 1 and ended.stdout == "alive\n"


def test_no_limit_and_errors_within(tmp_path: Path) -> None:
    with process_ends_after(0):
        pass
    with pytest.raises(ZeroDivisionError), process_ends_after(60):
        raise ZeroDivisionError
