"""A workspace that the version before made (make_workspace.py says how) is used as if this one had made it."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import catalogs
from catalogs.schema import arrow_schema
from flows.cli.main import main
from models.inference.predictor import predictor_for

ARCHIVE = Path(__file__).with_name("workspace.tar.xz")
MODEL = "cpu_tiny-9c957d89c5"
RELEASES = ["2026.12.0", "2026.12.1"]

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace as it was, times of its files included: they are part of what says that an input is the same."""
    folder = tmp_path_factory.mktemp("previous_version")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "workspace"


@pytest.fixture
def workspace(unpacked: Path, tmp_path: Path) -> Path:
    """A copy for each test."""
    return shutil.copytree(unpacked, tmp_path / "workspace")


def run(workspace: Path, capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    """What a command prints as JSON; it must succeed."""
    capsys.readouterr()
    assert main([*command, "--workspace", str(workspace), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_there_is_nothing_to_do_and_no_byte_changes(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: contents(workspace / name) for name in ("catalog", "models", "labels")}
    summary = run(workspace, capsys, "survey")
    assert summary["nothing_to_do"] and summary["release"] == RELEASES[-1]
    assert (summary["tiles"], summary["classified"], summary["quarantined"]) == (3, 12, 1)
    assert {name: contents(workspace / name) for name in before} == before


def test_releases_are_sound_and_differ_by_the_new_tile(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {release["release"] for release in run(workspace, capsys, "release", "list")} == set(RELEASES)
    for release in RELEASES:
        report = run(workspace, capsys, "audit", release)
        assert report["ok"] and report["rows"] == {"2026.12.0": 9, "2026.12.1": 12}[release]
    changes = run(workspace, capsys, "diff", *RELEASES)
    assert changes["objects"] == 3 and changes["flips"] == []
    assert len(catalogs.open(workspace / "catalog").to_pandas()) == 12


def test_labels_and_models_are_read(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (version,) = run(workspace, capsys, "labels", "log")
    assert version["author"] == "a scientist"
    assert len(run(workspace, capsys, "labels", "show")) == 2
    (model,) = run(workspace, capsys, "models", "list")
    assert model["model"] == MODEL and model["champion"]
    predictor = predictor_for(workspace / "models", MODEL, "cpu")
    assert predictor.card.model_id == MODEL


def test_the_same_inputs_give_the_same_rows_again(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiles = workspace / "catalog" / "tiles"
    before = read_rows(tiles)
    shutil.rmtree(tiles)
    summary = run(workspace, capsys, "survey")
    assert not summary["nothing_to_do"] and summary["reused"] == 0
    after = read_rows(tiles)
    of_the_run = ["run_id", "mjd_predicted"]
    for name in before.columns.difference(of_the_run):
        if before[name].dtype.kind == "f":
            np.testing.assert_allclose(after[name], before[name], rtol=0, atol=1e-5, err_msg=name)
        else:
            assert after[name].tolist() == before[name].tolist(), name
    assert (after[of_the_run] != before[of_the_run]).all(axis=None)


def read_rows(tiles: Path) -> pd.DataFrame:
    """The rows of all committed tiles, in the order of objects, with the columns of today's catalogue."""
    tables = [pq.read_table(path).replace_schema_metadata() for path in sorted(tiles.rglob("*.parquet"))]
    slugs = [name.removeprefix("p_") for name in tables[0].column_names if name.startswith("p_")]
    assert all(table.schema == arrow_schema(slugs) for table in tables)
    return pa.concat_tables(tables).sort_by("object_id").to_pandas()
