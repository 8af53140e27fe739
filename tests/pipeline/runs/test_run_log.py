"""The log of a run: every tile once, what workers say, no secrets, nothing new at the terminal, never in the way."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.workspace import Workspace, open_workspace
from pipeline.execution.executor import WorkerSettings, run_tasks
from pipeline.runs.run_log import PACKAGES, log_only, log_path, log_result, logging_to
from tests.conftest import Small
from tests.pipeline.makers import write_cutouts
from tests.pipeline.survey_driver import run
from tests.pipeline.talkers import Talk, talk

INLINE = WorkerSettings(threads=1)
log = logging.getLogger("pipeline.tests.test_logs")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(tmp_path)


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    before = [(log.level, log.propagate, list(log.handlers)) for log in map(logging.getLogger, PACKAGES)]
    yield
    assert [(log.level, log.propagate, list(log.handlers)) for log in map(logging.getLogger, PACKAGES)] == before


@pytest.mark.parametrize("kind", ["inline", pytest.param("local", marks=pytest.mark.slow)])
def test_a_survey_logs_each_tile_once_and_what_was_said_of_it(small: Small, tmp_path: Path, kind: str) -> None:
    place = small.elsewhere(
        tmp_path, "survey.rows=4", f"workers.kind={kind}", "workers.count=1", "workers.retries=0", "survey.alarm=0"
    )
    write_cutouts(place.incoming / "C", 9)
    (place.incoming / "bad.h5").write_bytes(b"no HDF5")
    total = run(place)
    path = log_path(place, "survey", total.run_id)
    lines = lines_of(path)
    ends = [line for line in lines if "outcome" in line and line["tile_id"]]
    assert len(ends) == total.tiles == 4 and len({line["tile_id"] for line in ends}) == 4
    objects = {line["tile_id"].rsplit("-", 2)[0] + line["tile_id"][-6:]: line["objects"] for line in ends}
    assert objects == {"incoming_C-00000": 4, "incoming_C-00001": 4, "incoming_C-00002": 1, "incoming_bad.h5-00000": 1}
    assert all(line["outcome"] == "done" and line["seconds"] > 0 for line in ends)
    assert {line["run_id"] for line in lines} == {total.run_id}
    (said,) = (line for line in lines if line["logger"] == "pipeline.survey.tile_result")
    assert said["tile_id"].startswith("incoming_bad.h5") and "unreadable_file" in said["message"]
    assert (said["pid"] == os.getpid()) == (kind == "inline")
    assert {line["worker"].rsplit(":")[-1] for line in ends} == {str(said["pid"])}
    assert lines[0]["message"].startswith(f"survey {total.run_id} begins: python 3.")
    assert lines[-1]["message"] == f"survey {total.run_id} ends"
    assert [line["level"] for line in lines if line["message"] == total.alarm] == ["ERROR"]
    assert run(place).nothing_to_do and lines_of(path) == lines


def test_a_failed_tile_has_its_traceback_in_the_log(small: Small, tmp_path: Path) -> None:
    place = small.elsewhere(tmp_path, "workers.retries=0")
    write_cutouts(place.incoming / "C", 2)
    run(place)
    (tile,) = [p for p in (place.catalog / "tiles").rglob("*.parquet") if not p.name.startswith(".")]
    tile.unlink()
    (tile / "in the way").mkdir(parents=True)
    total = run(place)
    (end,) = (line for line in lines_of(log_path(place, "survey", total.run_id)) if line.get("outcome"))
    assert (end["outcome"], end["level"], end["objects"], end["tile_id"]) == ("failed", "ERROR", None, tile.stem)
    assert "Traceback" in end["exception"] and "IsADirectoryError" in end["exception"]


def test_what_units_say_is_bounded_clean_and_not_doubled(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [Talk("short"), Talk("long", lines=200), Talk("bad", fails=True)]
    with logging_to(workspace, "survey", "r1") as run_log:
        for outcome in run_tasks(talk, jobs, INLINE):
            log_result(outcome, tile=outcome.name != "long")
    text = run_log.path.read_text()
    assert "pa/ss" not in text and "opensesame" not in text and "postgresql://***@db/x" in text
    lines = lines_of(run_log.path)
    assert Counter(line["unit"] for line in lines) == {None: 2, "short": 3, "long": 50 + 1 + 1, "bad": 3}
    assert {line["unit"]: line["tile_id"] for line in lines} == {
        None: None,
        "short": "short",
        "long": None,
        "bad": "bad",
    }
    messages = [line["message"] for line in lines if line["unit"] == "long"]
    assert messages[0] == "151 earlier lines of this unit were not kept" and messages[1] == "long says 151"
    assert messages[-1] == "long done"
    shown = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline")]
    assert len(shown) == 3 and all("opens postgresql" in message for message in shown)  # the warnings, as ever


def test_a_line_holds_what_a_machine_and_a_person_ask(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError), logging_to(workspace, "train", "r2") as run_log:
        log.info("half a pair \udc80, %d", "no number")
        log_only(logging.ERROR, "told in another way")
        try:
            raise ValueError("x" * 10_000 + "the end")
        except ValueError:
            log.warning("caught", exc_info=True)
        raise KeyError("ends it")
    first, *said, last = lines_of(run_log.path)
    assert [line["message"] for line in said] == [
        "half a pair \udc80, %d ('no number',)",
        "told in another way",
        "caught",
    ]
    assert [line["level"] for line in said] == ["INFO", "ERROR", "WARNING"]
    assert said[2]["exception"].endswith("the end\n") and len(said[2]["exception"]) == 4000
    assert last["message"] == "train r2 ends with an error" and "KeyError: 'ends it'" in last["exception"]
    assert first["utc"].endswith("+00:00") and (first["pid"], first["run_id"]) == (os.getpid(), "r2")
    keys = ["utc", "level", "logger", "message", "exception", "host", "pid", "run_id", "unit", "tile_id"]
    assert list(first) == keys
    assert [record.getMessage() for record in caplog.records] == ["caught"]
    log.warning("after the run")
    assert len(lines_of(run_log.path)) == 5


def test_an_inner_run_has_its_own_log(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    with logging_to(workspace, "retrain", "outer") as outer:
        log.info("one")
        with logging_to(workspace, "survey", "inner") as inner:
            log.warning("two")
        log.info("three")
    assert [line["message"] for line in lines_of(outer.path)[1:-1]] == ["one", "three"]
    assert [line["message"] for line in lines_of(inner.path)[1:-1]] == ["two"]
    assert [record.getMessage() for record in caplog.records] == ["two"]


def test_with_debug_the_terminal_shows_what_it_did(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "pipeline"), logging_to(workspace, "survey", "r3") as run_log:
        log.debug("fine")
        log.info("plain")
    assert [record.getMessage() for record in caplog.records] == ["fine", "plain"]
    assert [line["message"] for line in lines_of(run_log.path)[1:-1]] == ["plain"]


def test_a_log_that_cannot_be_written_stops_nothing(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    """A file stands in the place of the folder; later it is gone, and the rest is written."""
    workspace.reports.mkdir()
    (workspace.reports / "logs").write_text("in the way")
    with logging_to(workspace, "survey", "r4") as run_log:
        log.info("lost")
        (workspace.reports / "logs").unlink()
        log.info("kept")
    assert [line["message"] for line in lines_of(run_log.path)] == ["kept", "survey r4 ends"]
    assert [r.getMessage() for r in caplog.records] == [
        f"2 lines could not be written to the log {run_log.path} (File exists)"
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_costs_lines_and_not_the_run(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    path = log_path(workspace, "survey", "r5")
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/full")
    with logging_to(workspace, "survey", "r5"):
        log.info("lost")
    (record,) = caplog.records
    assert record.getMessage().startswith("3 lines could not be written") and "No space left" in record.getMessage()
    shutil.rmtree(path.parent)
