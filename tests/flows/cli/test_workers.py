"""`morphcat workers`: the workers of the settings are started, asked and ended; the job script is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.cli.main import main

LOCAL = ("--set", "workers.kind=local", "--set", "workers.count=1", "--set", "workers.threads=1")


@pytest.mark.slow
def test_workers_that_can_do_a_survey(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--workspace", str(tmp_path), "workers", "check", *LOCAL, "--set", "workers.device=cpu"]) == 0
    header, row, *_, last = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["worker", "host", "process"] and row.startswith("tls://127.0.0.1:")
    assert row.split()[-1] == "ok" and last == "ok: every worker can do a survey"
    assert list((tmp_path / "catalog").iterdir()) == []


def test_without_a_cluster_there_is_nobody_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--workspace", str(tmp_path / "W"), "workers", "check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "workers": []}
    assert not (tmp_path / "W").exists()


@pytest.mark.slow
def test_workers_without_the_gpu_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ["--workspace", str(tmp_path), "workers", "check", *LOCAL, "--set", "workers.device=cuda"]
    assert main([*words, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    (worker,) = told["workers"]
    assert not told["ok"] and worker["condition"]["versions"]["torch"]
    assert "no usable GPU there" in worker["problems"][0] and "workers.device=cpu" in worker["problems"][0]
    assert main(words) == 1
    assert "cannot do this run" in capsys.readouterr().out


def test_the_script_of_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("dask_jobqueue")
    assert main(["--workspace", str(tmp_path), "workers", "script", "--set", "workers.slurm_queue=sky"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("#!") and "#SBATCH -p sky" in out and "distributed.cli.dask_worker" in out
