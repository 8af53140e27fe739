"""The catalogue from Python: every reader sees the same rows of the release that was opened."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import catalogs
from catalogs.errors import CatalogError
from catalogs.paths import ReleaseLayout
from catalogs.query.catalog import Catalogue, describe_flags
from catalogs.schema import QualityFlag, arrow_schema
from tests.catalogs.conftest import SLUGS, make_table
from tests.catalogs.small_release import write_release

TABLE = make_table("a-tile", range(1, 361), unclassified=[12])


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> ReleaseLayout:
    return write_release(tmp_path_factory.mktemp("reading"), TABLE)


@pytest.fixture(scope="module")
def cat(layout: ReleaseLayout) -> Catalogue:
    return catalogs.open(layout.root.parents[1])


def test_an_open_catalogue_stays_at_its_release(tmp_path: Path) -> None:
    write_release(tmp_path, make_table("t", range(1, 4)), "2026.11.0")
    cat = catalogs.open(str(tmp_path))
    write_release(tmp_path, make_table("t", range(1, 10)), "2026.11.1")
    assert (cat.release, cat.info.objects) == ("2026.11.0", 3)
    assert len(cat.to_pandas()) == len(cat.sql("FROM morphology")) == len(cat.cone(0, 0, 180)) == 3
    with pytest.raises(CatalogError, match="no object 9"):
        cat.find(9)
    assert catalogs.open(tmp_path).find(9)["object_id"] == 9
    assert catalogs.open(tmp_path, "2026.11.0").release == "2026.11.0"


def test_there_must_be_a_release(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no release in"):
        catalogs.open(tmp_path)


def test_columns_are_those_of_the_files(cat: Catalogue) -> None:
    assert [c.name for c in cat.columns] == arrow_schema(SLUGS).names == list(cat.to_pandas().columns)
    assert next(c.unit for c in cat.columns if c.name == "ra") == "deg"


@pytest.mark.slow
def test_pandas_dask_and_sql_see_the_same_rows(cat: Catalogue) -> None:
    names = ["object_id", "ra", "label", "confidence", "is_reliable"]
    frame = cat.to_pandas(names)
    assert frame["object_id"].tolist() == TABLE.sort_by("_healpix_29")["object_id"].to_pylist()
    assert cat.sql(f"SELECT {', '.join(names)} FROM morphology ORDER BY _healpix_29").equals(frame)
    sure = cat.to_pandas(["object_id"], filters=[("confidence", ">", 0.6)])
    assert sorted(sure["object_id"]) == sorted(frame["object_id"][frame["confidence"] > np.float32(0.6)])
    dask = cat.to_dask(names)
    assert list(dask.columns) == names
    assert dask.compute(scheduler="sync")["object_id"].tolist() == frame["object_id"].tolist()


def test_a_cone_is_sorted_by_distance_in_arcsec(cat: Catalogue) -> None:
    near = cat.cone(37.0, -46.9, 15, columns=["object_id", "ra", "dec"])
    assert list(near.columns) == ["object_id", "ra", "dec", "distance"]
    assert near["object_id"][0] == 1 and near["distance"][0] == pytest.approx(360, rel=1e-9)
    assert near["distance"].is_monotonic_increasing and len(near) > 1 and near["distance"].iloc[-1] <= 15 * 3600
    assert len(near) == cat.sql("SELECT count(*) AS n FROM morphology WHERE CONE(37, -46.9, 15)")["n"][0]
    assert len(cat.cone(37.0, -46.9, 1e-5)) == 0


def test_find_gives_the_row_of_one_object(cat: Catalogue) -> None:
    for row in TABLE.slice(10, 3).to_pylist():
        found = cat.find(row["object_id"])
        assert {name: found[name] for name in ("_healpix_29", "label", "ra")} == {
            name: row[name] for name in ("_healpix_29", "label", "ra")
        }
    for stranger in (0, 100_000, -1):
        with pytest.raises(CatalogError, match="no object"):
            cat.find(stranger)


def test_an_unknown_column_is_told_with_the_nearest(cat: Catalogue) -> None:
    for ask in (cat.to_pandas, cat.to_dask, lambda columns: cat.cone(0, 0, 1, columns)):
        with pytest.raises(CatalogError, match=r"no column 'confidense'.*'confidence'"):
            ask(["object_id", "confidense"])


def test_flags_and_sets_in_words(cat: Catalogue) -> None:
    assert cat.decode(0) == []
    assert cat.decode(QualityFlag.RESAMPLED | QualityFlag.MISSING_BAND) == ["missing_band", "resampled"]
    assert [name for name, _ in describe_flags(sum(QualityFlag))] == [f.name.lower() for f in QualityFlag if f.name]
    assert (cat.decode_set(0), cat.decode_set(5)) == ([], ["round", "edge_on"])
    for bad in (-1, 1 << 30):
        with pytest.raises(CatalogError):
            cat.decode(bad)
        with pytest.raises(CatalogError):
            cat.decode_set(bad)


def test_a_reader_that_is_missing_is_named_with_its_extra(cat: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lsdb", None)  # as where it is not installed
    with pytest.raises(CatalogError, match=r"pip install 'morphcat\[lsdb\]'"):
        cat.lsdb()
