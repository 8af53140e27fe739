"""The commands of the README work as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from flows.cli.main import main
from tests.paths import ROOT

README = ROOT / "README.md"


def commands() -> list[list[str]]:
    block = re.search(r"<!-- commands:.*?-->\s*```console\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    return [shlex.split(line[2:]) for line in block[1].splitlines() if line.startswith("$ ")]


def test_the_commands_of_the_readme(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    typed = commands()
    assert len(typed) >= 7
    printed = {}
    for words in typed:
        assert words[0] == "morphcat"
        assert main(words[1:]) == 0, words
        printed[words[3]] = capsys.readouterr().out
    assert "16 = 16 classified" in printed["survey"]
    assert "label" in printed["query"]
    release = (tmp_path / "W" / "catalog" / "CURRENT").read_text().strip()
    assert (tmp_path / "W" / "catalog" / "releases" / release / "export" / "morphology.parquet").is_file()


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"make ([a-z-]+)", README.read_text()))
    makefile = (README.parent / "Makefile").read_text()
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
