"""`query`, `cone` and `decode` as typed: the same rows in every format, and errors in one line."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from flows.cli.coordinates import position_of, radius_of
from flows.cli.main import main
from tests.catalogs.conftest import make_table
from tests.catalogs.small_release import write_release


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("commands")
    write_release(root / "catalog", make_table("é-tile", range(1, 361)))
    return root


class Typed:
    """Types commands into one workspace; gives what came out."""

    def __init__(self, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.workspace, self.capsys = workspace, capsys

    def __call__(self, *words: object, status: int = 0) -> str:
        got = main(["--workspace", str(self.workspace), *map(str, words)])
        out, err = self.capsys.readouterr()
        assert got == status, err
        return out if status == 0 else err


@pytest.fixture
def typed(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    return Typed(workspace, capsys)


SQL = """
    SELECT object_id, tile_id, ra, confidence, is_reliable, nullif(label, 'spiral') AS other,
           sum(label_id) OVER () AS s, CASE WHEN object_id > 2 THEN n_views END AS views
    FROM morphology WHERE object_id < 5 ORDER BY object_id"""


def test_every_format_holds_the_same_rows(typed: Typed, tmp_path: Path) -> None:
    truth = json.loads(typed("query", SQL, "--json"))
    assert [row["object_id"] for row in truth] == [1, 2, 3, 4] and None in [row["other"] for row in truth]
    for ending in ("csv", "json", "parquet", "fits", "vot"):
        assert typed("query", SQL, "--out", tmp_path / f"x.{ending}") == ""
    assert json.loads((tmp_path / "x.json").read_text()) == truth
    rows = list(csv.DictReader((tmp_path / "x.csv").open(encoding="utf-8")))
    assert [row["tile_id"] for row in rows] == ["é-tile"] * 4
    parquet = pq.read_table(tmp_path / "x.parquet").to_pylist()
    fits, votable = Table.read(tmp_path / "x.fits"), Table.read(tmp_path / "x.vot", format="votable")
    for table in (parquet, fits, votable):
        assert [row["object_id"] for row in table] == [1, 2, 3, 4]
        assert [float(row["ra"]) for row in table] == [row["ra"] for row in truth]
        assert [bool(row["is_reliable"]) for row in table] == [row["is_reliable"] for row in truth]
        assert [int(row["s"]) for row in table] == [row["s"] for row in truth]
        assert [float(row["confidence"]) for row in table] == pytest.approx([row["confidence"] for row in truth])
    assert [str(fits["ra"].unit), str(votable["ra"].unit)] == ["deg", "deg"]
    assert votable["ra"].meta["ucd"] == "pos.eq.ra;meta.main" and "ICRS" in votable["ra"].description
    assert votable["views"].mask.tolist() == fits["views"].mask.tolist() == [True, True, False, False]
    assert votable["tile_id"][0] == "é-tile"
    assert b'datatype="bit"' not in (tmp_path / "x.vot").read_bytes()  # TOPCAT cannot read such columns


def test_an_empty_answer_is_a_file_too(typed: Typed, tmp_path: Path) -> None:
    for ending in ("csv", "parquet", "fits", "vot"):
        typed("cone", 1, 1, "1s", "--out", tmp_path / f"x.{ending}")
    assert len(Table.read(tmp_path / "x.fits")) == len(pd.read_parquet(tmp_path / "x.parquet")) == 0
    assert "object_id" in Table.read(tmp_path / "x.vot", format="votable").colnames


@pytest.mark.parametrize(
    "words",
    [
        ("37", "-47"),
        ("37 -47",),
        ("37,-47",),
        ("2:28:00", "-47:00:00"),
        ("2:28:00 -47:00:00",),
        ("2h28m00s", "-47d00m00s"),
        ("37d", "-47d"),
        ("02 28 00 -47 00 00",),
        ("2", "28", "0", "-47", "0", "0"),
    ],
)
def test_positions_may_be_degrees_or_sexagesimal(words: tuple[str, ...]) -> None:
    assert position_of(words) == pytest.approx((37, -47), abs=1e-12)


@pytest.mark.parametrize("text", ["15", "15d", "15 deg", "900m", "900arcmin", "54000s", "5.4e4 arcsec", "900'", "15°"])
def test_a_radius_may_have_a_unit(text: str) -> None:
    assert radius_of(text) == pytest.approx(15)


def test_a_cone_is_typed_as_the_sky_is_written(typed: Typed) -> None:
    rows = json.loads(typed("cone", "2:28:00", "-47:00:00", "900m", "--columns", "object_id, ra", "--json"))
    assert list(rows[0]) == ["object_id", "ra", "distance"]
    assert rows[0]["object_id"] == 1 and rows[0]["distance"] < 1e-6
    distances = [row["distance"] for row in rows]
    assert distances == sorted(distances) and distances[-1] <= 15 * 3600
    within = "SELECT count(*) AS n FROM morphology WHERE separation(ra, dec, 37, -47) <= 15"
    assert [{"n": len(rows)}] == json.loads(typed("query", within, "--json"))
    assert len(typed("cone", 37, "-47", 15, "--limit", 3, "--format", "csv").splitlines()) == 4


def test_decode_tells_flags_and_sets_in_words(typed: Typed) -> None:
    out = typed("decode", "0x201", "--pred-set", 5)
    assert "missing_band" in out and "resampled" in out and "nan_pixels" not in out
    assert "prediction set: round, edge_on" in out
    assert list(json.loads(typed("decode", 1, "--json"))["quality_flags"]) == ["missing_band"]
    assert "no quality flag" in typed("decode", 0)
    assert json.loads(typed("decode", "--pred-set", 0, "--json")) == {"pred_set": []}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cone", "37", "10m"], "is no position"),
        (["cone", "37", "x", "10m"], "is no position"),
        (["cone", "-47", "137", "10m"], "declination of 137"),
        (["cone", "37", "nan", "10m"], "not on the sky"),
        (["cone", "37", "-47", "10 parsec"], "is no radius"),
        (["cone", "37", "-47", "1.2.3"], "is no radius"),
        (["cone", "37", "-47", "0"], "radius of 0"),
        (["cone", "37", "-47", "10m", "--columns", "lable"], "did you mean 'label'"),
        (["query", "SELECT 1", "--out", "{tmp}/x.what"], "--format"),
        (["query", "SELECT 1", "--out", "{catalog}/x.csv"], "lies in the catalogue"),
        (["query", "SELECT * FROM morphology WHERE CONE(ra, dec, 1)"], "three numbers"),
        (["decode"], "decode what"),
        (["decode", "99999999"], "no value of quality_flags"),
        (["decode", "--pred-set", "99"], "no set of the 3 classes"),
    ],
)
def test_errors_are_told_in_words(typed: Typed, tmp_path: Path, words: list[str], told: str) -> None:
    catalog = typed.workspace / "catalog"
    err = typed(*[word.format(tmp=tmp_path, catalog=catalog) for word in words], status=1)
    assert told in err and "bug?" not in err
    assert list(tmp_path.iterdir()) == [] and not (catalog / "x.csv").exists()


def test_nothing_heavy_is_imported_and_binary_answers_go_through_a_pipe(workspace: Path) -> None:
    code = (
        "import sys; from flows.cli.main import main; main(sys.argv[1:]); "
        "heavy = {'astropy', 'torch', 'dask', 'distributed', 'prefect', 'hats', 'lsdb', 'pandas', 'matplotlib'}; "
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    words = ["--workspace", str(workspace), "cone", "37", "-47", "20", "--format", "parquet"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=True)
    assert done.stderr.strip() == b""
    assert pq.read_table(io.BytesIO(done.stdout))["object_id"][0].as_py() == 1
