"""Cones hold exactly the positions within their radius, wherever on the sky they lie, and however they are written."""

from __future__ import annotations

import json

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from catalogs.errors import CatalogError
from catalogs.healpix import healpix_29
from catalogs.paths import Partition
from catalogs.query.cone_search import MOST_RANGES, SEPARATION, Cone, expand_cones, is_confined


def angles(ra: np.ndarray, dec: np.ndarray, ra0: float, dec0: float) -> np.ndarray:
    """Degrees to one position, by the chord between unit vectors: another way than that of the code."""

    def vector(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        lon, lat = np.radians(lon), np.radians(lat)
        return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)

    chord = np.linalg.norm(vector(ra, dec) - vector(np.array(ra0), np.array(dec0)), axis=-1)
    return np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1)))


def around(ra: float, dec: float, radius: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions up to twice the radius away, in degrees; float64 (count,) each."""
    rng = np.random.default_rng(seed)
    distance = np.radians(np.minimum(radius * rng.uniform(0, 2, count), 180))
    bearing = rng.uniform(0, 2 * np.pi, count)
    lat = np.radians(dec)
    sine = np.sin(lat) * np.cos(distance) + np.cos(lat) * np.sin(distance) * np.cos(bearing)
    there = np.arcsin(np.clip(sine, -1, 1))
    east = np.arctan2(np.sin(bearing) * np.sin(distance) * np.cos(lat), np.cos(distance) - np.sin(lat) * np.sin(there))
    return (ra + np.degrees(east)) % 360, np.degrees(there)


@settings(max_examples=40, deadline=None)
@given(
    ra=st.one_of(st.sampled_from([0.0, 45.0, 360.0, 359.99999]), st.floats(-360, 720)),
    dec=st.one_of(st.sampled_from([90.0, -90.0, 89.9999, 0.0, 41.8103148958]), st.floats(-90, 90)),
    log_radius=st.floats(-6, np.log10(180)),
)
@example(ra=45.0, dec=-35.735791440330225, log_radius=2.173644533)
def test_no_position_of_a_cone_is_outside_its_ranges(ra: float, dec: float, log_radius: float) -> None:
    cone = Cone(ra, dec, min(10**log_radius, 180))
    lon, lat = around(ra, dec, cone.radius, 300, seed=1)
    within = angles(lon, lat, ra, dec) <= cone.radius
    ranges = cone.ranges()
    index = healpix_29(lon[within], lat[within])
    covered = ((index[:, None] >= ranges[:, 0]) & (index[:, None] <= ranges[:, 1])).any(axis=1)
    assert covered.all()
    assert len(ranges) <= MOST_RANGES
    assert (ranges[:, 0] <= ranges[:, 1]).all() and (ranges[1:, 0] > ranges[:-1, 1]).all()


def test_the_smallest_circle_has_its_centre() -> None:
    ranges = Cone(10.0, 20.0, 5e-324).ranges()
    centre = healpix_29(np.array([10.0]), np.array([20.0]))
    assert ((ranges[:, 0] <= centre) & (centre <= ranges[:, 1])).any()


def test_ranges_hold_little_more_than_the_cone() -> None:
    cone = Cone(155.0, -2.5, 0.5)
    share = (np.diff(cone.ranges(), axis=1) + 1).sum() / (12 * 4**29)
    assert share < 6 * (1 - np.cos(np.radians(0.5))) / 2


@pytest.mark.parametrize(
    ("ra", "dec", "radius"),
    [(0, 90, 1), (120, -90, 0.01), (0, 0, 2), (359.9999, 10, 0.001), (200, 30, 1 / 3600), (10, -89.99, 0.02)],
)
def test_the_condition_is_exact(ra: float, dec: float, radius: float) -> None:
    lon, lat = around(ra, dec, radius, 2000, seed=2)
    rows = pa.table({"_healpix_29": healpix_29(lon, lat), "ra": lon, "dec": lat})
    with duckdb.connect() as connection:
        connection.execute(SEPARATION)
        connection.register("rows", rows)
        found = connection.sql(f"SELECT {Cone(ra, dec, radius).condition('m')} AS within FROM rows m").fetchnumpy()
    within = found["within"]
    truth = angles(lon, lat, ra, dec)
    sure = np.abs(truth - radius) > 1e-12 + 1e-9 * radius
    assert (within == (truth <= radius))[sure].all()
    assert 0 < within.sum() < len(within)


def test_touched_leaves_are_those_with_rows_of_the_cone() -> None:
    cone = Cone(0.0, 0.0, 3.0)  # where four base pixels meet, nearly
    partitions = [Partition(2, pixel, 1) for pixel in range(12 * 16)]
    lon, lat = around(0, 0, 1.5, 3000, seed=3)
    needed = set((healpix_29(lon, lat) >> 54).tolist())
    touched = {p.pixel for p in cone.touched(partitions)}
    assert needed <= touched and len(touched) <= len(needed) + 4
    assert cone.touched([Partition(0, 0, 1), Partition(0, 1, 1)]) == [
        p for p in (Partition(0, 0, 1), Partition(0, 1, 1)) if p.pixel in {k >> 4 for k in touched}
    ]


@pytest.mark.parametrize(
    ("ra", "dec", "radius"),
    [(0, 91, 1), (0, float("nan"), 1), (float("inf"), 0, 1), (0, 0, 0), (0, 0, -1), (0, 0, 181), (0, 0, float("nan"))],
)
def test_what_is_no_cone_is_refused(ra: float, dec: float, radius: float) -> None:
    with pytest.raises(CatalogError):
        Cone(ra, dec, radius)


# --- in a statement -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "cone", "table"),
    [
        ("CONE(10, -2.5, 0.5)", Cone(10.0, -2.5, 0.5), ""),
        ("cone ( +10.0,-2.5\n, .5 )", Cone(10.0, -2.5, 0.5), ""),
        ("Cone/* of */(1e1, /* dec ) */ - 2.5, 5e-1 -- radius\n)", Cone(10.0, -2.5, 0.5), ""),
        ("m.CONE(10,-2.5,0.5)", Cone(10.0, -2.5, 0.5), "m"),
        ('"é m" . CONE(10,-2.5,0.5)', Cone(10.0, -2.5, 0.5), '"é m"'),
        ("memory.main.morphology.CONE(10,-2.5,0.5)", Cone(10.0, -2.5, 0.5), "memory.main.morphology"),
    ],
)
def test_a_call_is_replaced_however_it_is_written(call: str, cone: Cone, table: str) -> None:
    before, after = "SELECT 'é' FROM (SELECT * FROM morphology WHERE NOT (", ")) WHERE x = 1"
    assert expand_cones(before + call + after) == (before + cone.condition(table) + after, [cone])


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'CONE(1, 2, 3)', E'\\' cone(1,2,3)', $$ CONE(1,2,3) $$, $q$ $$ CONE(1,2,3) $q$",
        "SELECT 1 -- CONE(1, 2, 3)",
        "SELECT 1 /* CONE(1, 2, 3) */",
        'SELECT "CONE"(1, 2, 3), "CONE(1, 2, 3)"',
        "SELECT cone, myCONE(1, 2, 3), cone_x(1) FROM t AS cone",
        "SELECT 'it''s CONE(1,2,3)'",
        "",
    ],
)
def test_what_is_no_call_is_left_alone(sql: str) -> None:
    assert expand_cones(sql) == (sql, [])


@pytest.mark.parametrize(
    "call", ["CONE()", "CONE(ra, dec, 1)", "CONE(1, 2)", "CONE(1, 2, (3))", "CONE(1, 2, 3", "CONE("]
)
def test_other_arguments_are_told_apart(call: str) -> None:
    with pytest.raises(CatalogError, match="three numbers"):
        expand_cones(f"SELECT * FROM morphology WHERE {call}")


@pytest.mark.parametrize(
    ("sql", "confined"),
    [
        ("SELECT * FROM morphology WHERE CONE(1,2,3)", True),
        (
            "SELECT count(*) FROM Morphology m WHERE is_reliable AND m.CONE(1,2,3) AND ra > 3 GROUP BY label LIMIT 3",
            True,
        ),
        ("FROM morphology WHERE CONE(1,2,3)", True),
        ("SELECT * FROM morphology WHERE CONE(1,2,3) OR ra > 3", False),
        ("SELECT * FROM morphology WHERE NOT CONE(1,2,3)", False),
        ("SELECT * FROM morphology WHERE is_reliable BETWEEN false AND CONE(1,2,3)", False),
        ("SELECT *, CONE(1,2,3) FROM morphology", False),
        ("SELECT *, CONE(1,2,3) FROM morphology WHERE ra > 3", False),
        ("SELECT * FROM tiles WHERE CONE(1,2,3)", False),
        ("SELECT * FROM morphology, tiles WHERE CONE(1,2,3)", False),
        ("SELECT (SELECT count(*) FROM morphology) FROM morphology WHERE CONE(1,2,3)", False),
        ("WITH morphology AS (FROM tiles) SELECT * FROM morphology WHERE CONE(1,2,3)", False),
        ("SELECT * FROM morphology WHERE CONE(1,2,3) UNION ALL FROM morphology", False),
        ("SELECT * FROM morphology TABLESAMPLE 5 ROWS WHERE CONE(1,2,3)", False),
        ("SUMMARIZE SELECT * FROM morphology WHERE CONE(1,2,3)", False),
    ],
)
def test_leaves_are_left_out_only_where_the_cone_decides_alone(sql: str, confined: bool) -> None:
    ((text,),) = duckdb.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()
    assert is_confined(json.loads(text), "morphology") is confined
