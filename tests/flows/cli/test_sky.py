"""`morphcat simulate --bricks`: a block of survey bricks beside, or instead of, the simulated tiles."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from flows.cli.main import main
from flows.cli.sky import columns_and_rows


@pytest.mark.parametrize(("text", "expected"), [("2x1", (2, 1)), ("10x3", (10, 3))])
def test_blocks_are_asked_for_as_columns_by_rows(text: str, expected: tuple[int, int]) -> None:
    assert columns_and_rows(text) == expected


@pytest.mark.parametrize("text", ["2", "0x1", "2x", "-1x2", "2x1x1", "2X1", "", "100x1"])
def test_other_blocks_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="such as 2x1"):
        columns_and_rows(text)


def test_more_galaxies_than_a_brick_holds_are_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["--workspace", str(tmp_path), "simulate", "--tiles", "0", "--bricks", "1x1", "--galaxies", "9999"])
    assert status != 0
    assert "9999 galaxies have no room" in capsys.readouterr().err
    assert not (tmp_path / "incoming" / "simulated-bricks").exists()


@pytest.mark.slow
def test_a_brick_is_written_below_incoming_with_its_truth_outside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["simulate", "--tiles", "0", "--bricks", "1x1", "--galaxies", "5", "--json"]
    assert main(["--workspace", str(tmp_path), *options]) == 0
    made = json.loads(capsys.readouterr().out)
    assert Path(made["bricks"]) == tmp_path / "incoming" / "simulated-bricks"
    assert len(list(Path(made["bricks"]).glob("coadd/149/1498p000/*.fits.fz"))) == 13
    assert Path(made["truth_of_bricks"]).read_text().count("\n") == 1 + 5
    assert made["galaxies_on_bricks"] == 5 and made["simulated"] is True
