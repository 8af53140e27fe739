"""What a release says to its readers is true: its numbers, its formula, its lines of code; and docs/catalogue.md."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from catalogs.citation import citation
from catalogs.healpix import healpix_29
from catalogs.paths import ReleaseLayout
from catalogs.releases.build import publish
from catalogs.releases.readme import documentation, readme
from catalogs.releases.registry import ReleaseInfo, layout_of
from catalogs.schema import FLAG_MEANINGS, UNRELIABLE, QualityFlag, arrow_schema, is_reliable
from catalogs.tiles import commit
from pipeline.core.classes import CLASS_SLUGS
from tests.catalogs.conftest import MODEL, SLUGS, make_stamp, make_table
from tests.paths import ROOT

INFO = {"release": "2026.11.0", "model_id": "tiny-0001", "objects": "1234", "simulated_objects": "0"}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReleaseLayout, ReleaseInfo]:
    """A real release of objects around (150, 2.2) degrees, every second one simulated."""
    catalog = tmp_path_factory.mktemp("readme")
    ra, dec = 150 + np.arange(40) / 200, np.full(40, 2.2)
    table = make_table(
        "a-tile",
        range(40),
        unclassified=[3],
        ra=ra,
        dec=dec,
        _healpix_29=healpix_29(ra, dec),
        survey_layer=["simulated", "ls-dr10-grz"] * 20,
    )
    commit(catalog, table, make_stamp("a-tile", 39, 1, quarantined=2))
    info = publish(catalog, MODEL)
    assert info is not None
    return layout_of(catalog, info.release), info


def snippet(layout: ReleaseLayout, importing: str) -> str:
    """The lines of the README that import something."""
    blocks = re.findall(r"```python\n(.*?)```", (layout.root / "README.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if f"import {importing}" in block)
    return code


Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(released: tuple[ReleaseLayout, ReleaseInfo], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs lines of the README in the folder of the release; the variables they leave."""
    layout, _ = released
    monkeypatch.chdir(layout.root)

    def lines(importing: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        exec(snippet(layout, importing), names)
        return names

    return lines


def test_the_page_in_the_docs_is_what_the_code_makes() -> None:
    page = ROOT / "docs" / "catalogue.md"
    command = f"python -m catalogs.releases.readme {' '.join(CLASS_SLUGS)} > docs/catalogue.md"
    assert page.read_text() == documentation(CLASS_SLUGS), f"make it again: {command}"


def test_the_command_prints_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["readme", *SLUGS])
    monkeypatch.delitem(sys.modules, "catalogs.releases.readme")
    runpy.run_module("catalogs.releases.readme", run_name="__main__")
    assert capsys.readouterr().out == documentation(SLUGS)


@pytest.mark.parametrize("make", [documentation, lambda slugs: readme(INFO, slugs)], ids=["page", "readme"])
def test_every_column_class_and_flag_has_a_row(make: Callable[[list[str]], str]) -> None:
    text = make(SLUGS)
    columns = text.split("## Columns")[1].split("## Classes")[0]
    assert re.findall(r"^\| (\w+) \|", columns, re.MULTILINE) == ["column", *arrow_schema(SLUGS).names]
    for number, slug in enumerate(SLUGS):
        assert f"| {number} | {slug} | {2**number} |" in text
    for flag, meaning in FLAG_MEANINGS.items():
        spoils = "yes" if flag & UNRELIABLE else ""
        assert f"| {flag.bit_length() - 1} | {flag.name.lower()} | {spoils} | {meaning} |" in text


def test_the_formula_of_the_recommended_cut_is_the_one_in_use() -> None:
    flags = np.array([0, *QualityFlag], dtype=np.int32).repeat(3)
    confidence = np.tile(np.array([0.5999, 0.6, 0.9], dtype=np.float32), len(flags) // 3)
    rows = {"quality_flags": flags, "confidence": confidence, "is_reliable": is_reliable(confidence, flags)}
    assert 0 < rows["is_reliable"].sum() < len(flags)
    (formula,) = re.findall(r"`(confidence >= .*?)`", documentation(SLUGS))
    found = duckdb.sql(f"SELECT bool_and(is_reliable = ({formula})) FROM rows").fetchall()
    assert found == [(True,)]


def test_the_totals_add_up_to_the_inputs(released: tuple[ReleaseLayout, ReleaseInfo]) -> None:
    layout, info = released
    text = (layout.root / "README.md").read_text()
    counted = text.split("## Open it")[0]
    totals = {words: int(number) for words, number in re.findall(r"^\| ([a-z][^|]*) \| (\d+) \|$", counted, re.M)}
    assert totals["of these with a label"] == 39 and totals["of these without a label, a flag says so"] == 1
    assert sum(n for words, n in totals.items() if words.startswith("inputs")) + totals["objects, a row each"] == 42
    assert f"# Morphology catalogue {info.release}" in text and info.model_id in text
    assert "20 of 40 objects are simulated" in text


def test_every_file_that_is_named_is_there(released: tuple[ReleaseLayout, ReleaseInfo]) -> None:
    layout, _ = released
    table = (layout.root / "README.md").read_text().split("## Files")[1]
    cells = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(cells) > 8
    for cell in cells:
        first, *others = cell.split(", ")  # `a/x.parquet, y.parquet` and `a/x.parquet, .fits`
        base = Path(first)
        names = [base, *(base.with_suffix(o) if o.startswith(".") else base.with_name(o) for o in others)]
        for name in names:
            assert list(layout.root.glob(re.sub(r"=[KDN]\b", "=*", str(name)))), name


def test_duckdb_opens_it_with_the_lines_given(run: Run, released: tuple[ReleaseLayout, ReleaseInfo]) -> None:
    rows = pd.read_parquet(released[0].export / "morphology.parquet")
    reliable = rows[rows.is_reliable].label.value_counts()
    assert run("duckdb")["counts"].set_index("label").n.to_dict() == reliable.to_dict() != {}


def test_pandas_opens_it_with_the_lines_given(run: Run) -> None:
    names = run("pandas")
    assert len(names["galaxies"]) == 40 and list(names["galaxies"]) == ["object_id", "ra", "dec", "label", "confidence"]


@pytest.mark.filterwarnings("ignore:No table..len")
def test_astropy_opens_it_with_the_lines_given(run: Run) -> None:
    galaxies = run("Table")["galaxies"]
    assert len(galaxies) == 40 and str(galaxies["ra"].unit) == "deg" and galaxies["confidence"].meta["ucd"]


@pytest.mark.slow  # lsdb takes seconds to import
def test_lsdb_opens_it_with_the_lines_given(released: tuple[ReleaseLayout, ReleaseInfo]) -> None:
    layout, _ = released
    code = f"{snippet(layout, 'lsdb')}\nprint(len(nearby))"
    done = subprocess.run([sys.executable, "-c", code], cwd=layout.root, capture_output=True, text=True)
    assert done.stdout.strip() == "40", done.stderr


def test_a_citation_names_the_release_the_model_and_the_papers() -> None:
    text = citation(INFO)
    for words in ("2026.11.0", "tiny-0001", "Dey", "Walmsley", "Leung", "Dagli", "Galaxy Zoo", "acknowledgement"):
        assert words in text
    assert "WARNING" not in text


def test_a_citation_warns_of_simulated_objects() -> None:
    assert "WARNING: 7 of 1234 objects are simulated" in citation({**INFO, "simulated_objects": "7"})
