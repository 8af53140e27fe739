"""Circles on the sky: which HEALPix ranges they touch, and `CONE(ra, dec, radius)` in a statement. Opens no data."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np

from catalogs.errors import CatalogError
from catalogs.paths import Partition

_ORDER = 29  # of the column _healpix_29
_FINEST = 27  # of the cells of a cone: 1.6 milliarcsec; cdshealpix looks two orders deeper
_CELL = 58.6  # degrees, side of a cell of order 0
_WIDEST = 90  # degrees: of wider cones cdshealpix 0.9 leaves out cells (seen from 120)
MOST_RANGES = 32  # of one cone; neighbours are merged beyond

# Degrees between two positions in degrees, by haversines: exact for small angles and at the poles.
SEPARATION = (
    "CREATE MACRO separation(ra1, dec1, ra2, dec2) AS degrees(2 * asin(sqrt(least(1.0, "
    "pow(sin(radians(dec2 - dec1) / 2), 2) + "
    "cos(radians(dec1)) * cos(radians(dec2)) * pow(sin(radians(ra2 - ra1) / 2), 2)))))"
)


@dataclass(frozen=True)
class Cone:
    """All positions within `radius` of (`ra`, `dec`), the border included; ICRS, all in degrees.

    Raises
    ------
    CatalogError : the declination is not on the sky, or the radius not above 0 and up to 180.
    """

    ra: float
    dec: float
    radius: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.ra) or not abs(self.dec) <= 90:
            raise CatalogError(f"ra {self.ra}, dec {self.dec} is not on the sky (degrees are expected)")
        if not 0 < self.radius <= 180:
            raise CatalogError(f"a radius of {self.radius} degrees: it must be above 0 and at most 180")

    def ranges(self) -> np.ndarray:
        """First and last `_healpix_29` of the cells that it touches: int64 (R, 2), sorted, apart, R ≤ 32.

        A superset: each position of the cone is in a range; a range may hold others.
        """
        if self.radius > _WIDEST:
            return np.array([[0, 12 * 4**_ORDER - 1]])
        order = math.ceil(min(max(math.log2(2 * _CELL) - math.log2(self.radius), 0), _FINEST))
        cell, depth, _ = _cdshealpix().cone_search(
            np.uint8(order),
            np.uint8(_ORDER - _FINEST),
            math.radians(self.ra % 360),
            math.radians(self.dec),
            math.radians(self.radius),
            False,
        )
        shift = 2 * (_ORDER - depth.astype(np.int64))
        first = np.sort(cell.astype(np.int64) << shift)
        last = np.sort(((cell.astype(np.int64) + 1) << shift) - 1)
        gaps = first[1:] - last[:-1] - 1
        kept = np.flatnonzero(gaps > 0)
        kept = np.sort(kept[np.argsort(gaps[kept], kind="stable")][-(MOST_RANGES - 1) :])
        return np.stack([first[[0, *(kept + 1)]], last[[*kept, -1]]], axis=1)

    def touched(self, partitions: Sequence[Partition]) -> list[Partition]:
        """Those of the partitions that it may reach into."""
        first, last = self.ranges().T
        spans = ((p, p.pixel << 2 * (_ORDER - p.order), (p.pixel + 1) << 2 * (_ORDER - p.order)) for p in partitions)
        return [p for p, begin, end in spans if ((first < end) & (last >= begin)).any()]

    def condition(self, table: str = "") -> str:
        """SQL that is true within the cone, on the columns `_healpix_29`, `ra` and `dec` of `table` (as quoted in SQL).

        Row groups are skipped by the ranges; the separation decides.
        """
        of = f"{table}." if table else ""
        ranges = self.ranges()
        among = " OR ".join(f"{of}_healpix_29 BETWEEN {first} AND {last}" for first, last in ranges)
        return (
            f"({of}_healpix_29 BETWEEN {ranges[0, 0]} AND {ranges[-1, 1]} AND ({among}) "
            f"AND {self.separation(table)} <= '{self.radius!r}'::DOUBLE)"
        )

    def separation(self, table: str = "") -> str:
        """SQL of the distance from the centre in degrees."""
        of = f"{table}." if table else ""
        return f"separation({of}ra, {of}dec, '{self.ra!r}'::DOUBLE, '{self.dec!r}'::DOUBLE)"


def _cdshealpix() -> Any:
    """The compiled part of cdshealpix by itself.

    Its Python part imports astropy.coordinates, which takes longer than everything else of a query together.
    """
    name = "cdshealpix.cdshealpix"
    if name not in sys.modules:
        package = find_spec("cdshealpix")
        spec = PathFinder.find_spec(name, package.submodule_search_locations) if package else None
        if spec is None or spec.loader is None:
            raise CatalogError("cdshealpix is not installed as morphcat needs it: install morphcat again")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


# --- in a statement -----------------------------------------------------------------------------------------------

_NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)"
_ARGUMENTS = re.compile(rf"\({_NUMBER},{_NUMBER},{_NUMBER}\)", re.IGNORECASE)


@dataclass(frozen=True)
class _SqlToken:
    """A word of SQL, where it begins and where it ends (bytes)."""

    text: str
    begin: int
    end: int


def expand_cones(sql: str) -> tuple[str, list[Cone]]:
    """Replace each `CONE(ra, dec, radius)`, or `table.CONE(…)`, by what it means in SQL; all three in degrees.

    Strings, comments and quoted names are left alone. Returns the statement and the cones in it.

    Raises
    ------
    CatalogError : the arguments are not three numbers, or no circle on the sky.
    """
    raw, tokens = sql.encode(), _tokens(sql)
    parts, cones, copied = [], [], 0
    for i, (word, after) in enumerate(pairwise(tokens)):
        if word.text.lower() != "cone" or after.text != "(":
            continue
        close = next((j for j in range(i + 1, len(tokens)) if tokens[j].text == ")"), len(tokens) - 1)
        found = _ARGUMENTS.fullmatch("".join(token.text for token in tokens[i + 1 : close + 1]))
        if found is None:
            raise CatalogError(
                "CONE wants three numbers, ra, dec and radius, all in degrees: CONE(155.08, -2.51, 0.5); "
                "for columns instead of numbers there is separation(ra, dec, ra2, dec2) < radius"
            )
        begin = i  # of the name, with the table before it
        while begin >= 2 and tokens[begin - 1].text == ".":
            begin -= 2
        table = "".join(token.text for token in tokens[begin : max(i - 1, begin)])
        cones.append(Cone(*map(float, found.groups())))
        parts += [raw[copied : tokens[begin].begin].decode(), cones[-1].condition(table)]
        copied = tokens[close].end
    return "".join(parts) + raw[copied:].decode(), cones


def is_confined(statement: Mapping[str, Any], table: str) -> bool:
    """Whether a statement reads `table` once, as its only source, and keeps nothing but rows within its CONE.

    Then partition files that the cone does not touch need not be opened. False where in doubt: the answer is the same,
    later.

    Parameters
    ----------
    statement : what DuckDB's json_serialize_sql makes of a SELECT with one CONE.
    """
    node = statement["statements"][0]["node"]
    if node.get("type") != "SELECT_NODE" or node["cte_map"]["map"] or node["sample"]:
        return False
    source, where = node["from_table"], node["where_clause"]
    if source["type"] != "BASE_TABLE" or source["table_name"].lower() != table or source["sample"] or not where:
        return False
    if "_NODE" in json.dumps([part for key, part in node.items() if key != "type"]):
        return False  # a subquery, which may read the table too
    return any(
        part.get("function_name", "").lower() == "cone"
        for part in (where["children"] if where["type"] == "CONJUNCTION_AND" else [where])
    )


def _tokens(sql: str) -> list[_SqlToken]:
    """The words of a statement, without comments."""
    raw = sql.encode()
    found = [*duckdb.tokenize(sql), (len(raw), None)]
    tokens = []
    for (begin, kind), (until, _) in pairwise(found):
        text = raw[begin:until].rstrip()
        if kind != duckdb.token_type.comment:
            tokens.append(_SqlToken(text.decode(), begin, begin + len(text)))
    return tokens
