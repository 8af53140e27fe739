"""A release as LSDB reads it. LSDB takes seconds to import and runs on Dask, hence all in one slow test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catalogs.releases.build import publish
from catalogs.releases.registry import layout_of
from catalogs.tiles import commit
from tests.catalogs.conftest import MODEL, make_stamp, make_table


@pytest.mark.slow
def test_lsdb_opens_searches_and_matches_a_release(tmp_path: Path) -> None:
    from catalogs.healpix import healpix_29

    lsdb = pytest.importorskip("lsdb")
    rng = np.random.default_rng(5)
    ra, dec = 10 + rng.random(400) * 20, rng.random(400) * 20 - 10
    for tile, ids in (("a", np.arange(200)), ("b", np.arange(200, 400))):
        place = {"ra": ra[ids], "dec": dec[ids], "_healpix_29": healpix_29(ra[ids], dec[ids])}
        commit(tmp_path, make_table(tile, ids.tolist(), **place), make_stamp(tile, 200))
    info = publish(tmp_path, MODEL, max_rows=60, exports=False)
    assert info is not None and info.partitions > 6
    catalog = lsdb.open_catalog(layout_of(tmp_path, info.release).collection)
    assert len(catalog) == 400 and "label" in catalog.columns and "input_digest" not in catalog.columns
    everything = catalog.compute()
    assert sorted(everything["object_id"]) == list(range(400))
    cone = catalog.cone_search(20, 0, 3 * 3600).compute()
    x = np.cos(np.radians(dec)) * np.cos(np.radians(ra - 20))
    assert sorted(cone["object_id"]) == np.flatnonzero(np.degrees(np.arccos(x)) < 3).tolist() != []
    found = catalog.id_search(values={"object_id": 123}).compute()
    assert found["object_id"].tolist() == [123] and found["ra"].iloc[0] == ra[123]
    matched = catalog.crossmatch(catalog, radius_arcsec=1, suffixes=("_a", "_b")).compute()
    assert len(matched) == 400 and (matched["object_id_a"] == matched["object_id_b"]).all()
