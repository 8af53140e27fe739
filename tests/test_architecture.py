"""The ways that docs/architecture.md lists are those that a tile and a training batch take."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pipeline.config.inputs import ReadingSettings
from pipeline.ingest.discovery import discover
from pipeline.survey.classify import ClassifyJob, classify
from pipeline.training.train import train
from tests.conftest import Small
from tests.paths import ROOT
from tests.pipeline.makers import write_cutouts

PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("flows", "pipeline", "models", "catalogs")


def listed(heading: str) -> list[str]:
    """The functions under a heading of the page, as `module function`, in their order."""
    block = re.search(rf"### {heading}.*?```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    found = []
    for line in block[1].splitlines():
        module, names = line.split(maxsplit=1)
        found += [f"{module} {name.strip()}" for name in re.split(r"\s{2,}", names)[0].split(",")]
    return found


def entered(function: Callable[[], Any]) -> list[str]:
    """Functions of ours in the order in which they are entered for the first time, as `module function`."""
    seen: dict[str, None] = {}

    def on_event(frame: FrameType, event: str, _: Any) -> None:
        module = str(frame.f_globals.get("__name__", ""))
        if event == "call" and module.partition(".")[0] in PACKAGES:
            seen.setdefault(f"{module} {frame.f_code.co_qualname}")

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        function()
    finally:
        sys.setprofile(before)
    return list(seen)


def test_one_tile_takes_the_way_of_the_page(small: Small, tmp_path: Path) -> None:
    write_cutouts(tmp_path / "incoming" / "cutouts", 6)
    (tile,) = discover([tmp_path / "incoming"], 100).tiles
    catalog, models = str(tmp_path / "catalog"), str(small.workspace.models)
    jobs = [
        ClassifyJob(tile, models, small.card.model_id, catalog, f"run-{number}", 61000.0, "cpu", 4, ReadingSettings())
        for number in range(2)
    ]
    classify(jobs[0])  # loads the model
    for path in (tmp_path / "catalog").rglob("*.parquet"):
        path.unlink()
    way = entered(lambda: classify(jobs[1]))
    expected = listed("The functions of one tile")
    assert [name for name in way if name in expected] == expected
    assert len({name.split()[0] for name in way}) <= 29, "the way of a tile enters more modules than it did"


def test_one_training_batch_takes_the_way_of_the_page(small: Small, tmp_path: Path) -> None:
    workspace = small.elsewhere(tmp_path, f'folders.models="{tmp_path}/models"', "training.epochs=1")
    way = entered(lambda: train(workspace, small.images))
    expected = listed("The functions of one training batch")
    assert [name for name in way if name in expected] == expected


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_modules_and_files_that_documents_name_exist(document: str) -> None:
    path = ROOT / document if (ROOT / document).is_file() else ROOT / "docs" / document
    text = path.read_text()
    for name in re.findall(r"`((?:flows|pipeline|models|catalogs|tests)/[\w/]+\.py)`", text):
        assert "NAME" in name or (ROOT / name).is_file(), name
    for name in re.findall(r"`((?:flows|pipeline|models|catalogs)(?:\.\w+)+)", text):
        parts = name.split(".")
        paths = [ROOT.joinpath(*parts[:length]) for length in range(len(parts), 1, -1)]
        is_module = any(path.is_dir() or path.with_suffix(".py").is_file() for path in paths)
        assert is_module or hasattr(importlib.import_module(parts[0]), parts[1]), name
