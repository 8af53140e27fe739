"""The command line as its users type it: real flows on a real Prefect server, answers read back from what it prints."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from pathlib import Path

import httpx
import pandas as pd
import pyarrow.parquet as pq
import pytest

from flows.cli.main import main
from tests.flows.conftest import make_workspace


class Typed:
    """Types commands into one workspace; keeps what came out."""

    def __init__(self, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.workspace, self.capsys = workspace, capsys

    def __call__(self, *words: object, status: int = 0) -> tuple[str, str]:
        got = main(["--workspace", str(self.workspace), *map(str, words)])
        out, err = self.capsys.readouterr()
        assert got == status, err
        return out, err

    def json(self, *words: object) -> dict:
        return json.loads(self(*words, "--json")[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Path:
    """A workspace with a simulated sky and a small model; tests copy nothing, they only add to it."""
    return make_workspace(tmp_path_factory.mktemp("cli") / "W", tiles=3, galaxies=5, epochs=2)


@pytest.fixture
def typed(trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    monkeypatch.setenv("PREFECT_HOME", os.environ.get("PREFECT_HOME", str(trained / ".prefect")))
    return Typed(trained, capsys)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_survey_counts_every_object_and_running_again_changes_nothing(typed: Typed) -> None:
    first = typed.json("survey")
    assert first["tiles"] == 3
    assert first["objects"] == first["classified"] + first["unclassified"] + first["quarantined"] == 15
    assert first["simulated_objects"] == 15
    before = contents(typed.workspace / "catalog")
    again = typed.json("survey")
    assert again["skipped_tiles"] == 3
    assert again["release"] == first["release"]
    assert contents(typed.workspace / "catalog") == before
    assert "nothing to do" in typed("survey")[0]


def test_query_formats_agree_with_the_parquet_file(typed: Typed) -> None:
    summary = typed.json("survey")
    sql = "SELECT object_id, ra, label, confidence, is_reliable FROM morphology ORDER BY object_id"
    rows = json.loads(typed("query", sql, "--format", "json")[0])
    table = list(csv.DictReader(io.StringIO(typed("query", sql, "--format", "csv")[0])))
    path = typed.workspace / "catalog" / "releases" / summary["release"] / "export" / "morphology.parquet"
    frame = pd.read_parquet(path).sort_values("object_id")
    assert [r["object_id"] for r in rows] == frame["object_id"].tolist() == [int(r["object_id"]) for r in table]
    assert [r["confidence"] for r in rows] == pytest.approx(frame["confidence"].tolist(), abs=1e-6)
    assert [float(r["ra"]) for r in table] == frame["ra"].tolist()
    shown = typed("query", "SELECT count(*) AS galaxies FROM morphology")[0].split()
    assert shown == ["galaxies", "15"]


def test_a_corrupt_file_is_quarantined_and_costs_nothing_else(typed: Typed, tmp_path: Path) -> None:
    folder = tmp_path / "night" / "cutouts"
    folder.mkdir(parents=True)
    for path in sorted((typed.workspace / "incoming" / "sim-tile-0000").iterdir()):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.fits").write_bytes(b"SIMPLE  =                    T" + b" " * 100)
    summary = typed.json("survey", "--tiles", folder)
    assert (summary["objects"], summary["classified"], summary["quarantined"]) == (6, 5, 1)
    assert summary["reasons"] == {"unreadable_file": 1}
    entry = typed.json("query", "SELECT file, reason FROM quarantine")
    assert entry == [{"file": str(folder / "broken.fits"), "reason": "unreadable_file"}]


@pytest.mark.slow
def test_inline_equals_cluster(typed: Typed, tmp_path: Path) -> None:
    typed("survey")
    other = Typed(tmp_path / "W2", typed.capsys)
    other.workspace.mkdir()
    (other.workspace / "models").symlink_to(typed.workspace / "models")
    local = ["--set", "workers.kind=local", "--set", "workers.count=2"]
    summary = other.json("survey", "--tiles", typed.workspace / "incoming", *local)
    assert (summary["tiles"], summary["classified"], summary["failed"]) == (3, 15, {})
    names = "object_id, label, quality_flags, is_reliable, input_digest"
    sql = f"SELECT {names} FROM morphology WHERE source_name LIKE 'incoming/%' ORDER BY object_id"
    assert other.json("query", sql) == typed.json("query", sql)
    sql = "SELECT COLUMNS('p_.*') FROM morphology WHERE source_name LIKE 'incoming/%' ORDER BY object_id"
    for here, there in zip(other.json("query", sql), typed.json("query", sql), strict=True):
        assert list(here.values()) == pytest.approx(list(there.values()), abs=2e-4)


def test_train_again_is_a_no_op_and_names_the_same_model(typed: Typed) -> None:
    settings = ["--set", "training.epochs=2", "--set", "training.image_size=32"]
    before = contents(typed.workspace / "models")
    card = typed.json("train", "--variant", "cpu_tiny", *settings)
    assert contents(typed.workspace / "models") == before
    listed = typed.json("models")
    assert [m["model"] for m in listed if m["champion"]] == [card["model_id"]]
    assert listed[0]["simulated"] is True


def test_benchmark_reports_the_test_split(typed: Typed) -> None:
    result = typed.json("benchmark")
    card = json.loads((typed.workspace / "models" / result["model"] / "card.json").read_text())
    assert result["n"] == card["data"]["counts"]["test"] == sum(map(sum, result["confusion"]))
    assert result["accuracy"] == pytest.approx(card["test"]["accuracy"])
    report = (typed.workspace / "reports" / f"benchmark-{result['model']}.md").read_text()
    assert "**simulated**" in report


def test_options_may_stand_before_or_after_the_command(
    typed: Typed, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["config", "--set", "workers.count=7", "--workspace", str(tmp_path), "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert main(["--json", "--set", "workers.count=7", "--workspace", str(tmp_path), "config"]) == 0
    assert json.loads(capsys.readouterr().out) == after
    assert after["workers"]["count"] == 7


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["survey", "--tiles", "{tmp}/none"], "no such folder"),
        (["survey", "--tiles", "{tmp}"], "no sky tiles in"),
        (["survey", "--model", "cpu_tony"], "no model 'cpu_tony'"),
        (["survey", "--set", "workers.numbr=2"], "unknown setting 'workers.numbr'"),
        (["survey", "--set", "workers.count=none"], "workers.count"),
        (["train", "--variant", "astroformer_9"], "unknown network 'astroformer_9'"),
        (["train", "--galaxy10", "{tmp}/none.h5"], "no such file"),
        (["train", "--images", "{tmp}"], "go together"),
        (["query", "SELECT nothing FROM morphology"], "nothing"),
        (["query", "SELECT 1", "--release", "1999.01.0"], "no release '1999.01.0'"),
        (["query", "SELECT * FROM read_text('/etc/hostname')"], "morphcat: "),
    ],
)
def test_errors_are_told_in_one_line_without_a_traceback(
    typed: Typed, tmp_path: Path, words: list[str], told: str
) -> None:
    out, err = typed(*[w.format(tmp=tmp_path) for w in words], status=1)
    assert out == ""
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some space and run again"),
        (httpx.ConnectError("[Errno 111] Connection refused"), "start the server"),
        (RuntimeError("Failed to reach API at http://127.0.0.1:1/api/"), "start the server"),
    ],
)
def test_a_full_disk_and_a_lost_server_are_no_bugs(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("flows.cli.settings.to_toml", fails)
    _, err = typed("config", status=1)
    assert told in err and "a bug?" not in err


def test_an_empty_workspace_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prefect_server: None
) -> None:
    empty = Typed(tmp_path / "new", capsys)
    assert "train" in empty("survey", status=1)[1]
    assert "survey" in empty("query", "SELECT 1", status=1)[1]
    assert empty.json("models") == []
    assert not empty.workspace.exists()


def test_a_workspace_that_is_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prefect_server: None
) -> None:
    (tmp_path / "file").write_text("")
    for command in (["simulate"], ["train"], ["config", "--write"]):
        assert "--workspace" in Typed(tmp_path / "file", capsys)(*command, status=1)[1]


def test_config_writes_a_file_that_reads_back_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Typed(tmp_path / "W", capsys)
    before = place.json("config", "--set", "training.epochs=3")
    place("config", "--write", "--set", "training.epochs=3")
    assert place.json("config") == before
    assert "is there already" in place("config", "--write", status=1)[1]


def test_every_release_file_has_the_schema_of_the_contract(typed: Typed) -> None:
    from catalogs.schema import arrow_schema
    from pipeline.core.classes import CLASS_SLUGS

    summary = typed.json("survey")
    path = typed.workspace / "catalog" / "releases" / summary["release"] / "export" / "morphology.parquet"
    assert pq.read_schema(path).remove_metadata() == arrow_schema(CLASS_SLUGS)


def test_the_demo_tells_what_it_did(
    tmp_path: Path, prefect_server: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    size = ["--tiles", 2, "--galaxies", 4, "--benchmark", 60, "--bricks", "none"]
    out, _ = Typed(tmp_path / "W", capsys)("demo", *size, "--set", "training.epochs=1")
    assert "Test accuracy" in out
    assert "held-out images (simulated)" in out
    assert "objects 8 = 8 classified + 0 without label + 0 quarantined" in out
    assert out.count("morphcat --workspace") == 3  # queries to copy
    right = re.search(r"Truth of the simulated tiles: (\d+) of (\d+) labels are right", out)
    assert right is not None and 0 <= int(right[1]) <= int(right[2]) == 8
    table = next(line.split()[-1] for line in out.splitlines() if line.strip().startswith("catalogue"))
    assert len(pd.read_parquet(f"{table}/morphology/dataset")) == 8
