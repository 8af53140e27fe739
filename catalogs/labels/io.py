"""Files of labels (CSV, Parquet, FITS, VOTable) → proposals: which column holds what, and which class is meant.

Class names and the rule for votes come from outside, as values.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from catalogs.errors import CatalogError
from catalogs.labels.checks import NO_OBJECT, UNDECIDED, UNKNOWN_CLASS, Proposal, Refusal

USUAL_COLUMNS: dict[str, tuple[str, ...]] = {
    "object_id": ("object_id", "targetid"),
    "ra": ("ra",),
    "dec": ("dec",),
    "label": ("label", "class", "label_id"),
    "note": ("note", "comment"),
}
"""What a column is for, and the names (in any case) under which it is looked for, the first that is there."""

_FITS, _VOTABLE = (".fits", ".fit", ".fits.gz"), (".vot", ".votable", ".xml")
# What pyarrow and astropy raise on files that are damaged or of another kind.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    csv.Error,
    ExpatError,
    pa.ArrowException,
)


@dataclass(frozen=True)
class VoteRule:
    """Vote fractions → a class. `columns` are the names it can use; `decide` gets those that a row has.

    `decide` returns a slug and what it rests on, or an empty slug and why nothing is decided.
    """

    columns: frozenset[str]
    decide: Callable[[Mapping[str, float]], tuple[str, str]]


def read_proposals(
    path: Path,
    classes: Sequence[tuple[str, str]],
    *,
    columns: Mapping[str, str] | None = None,
    votes: VoteRule | None = None,
) -> tuple[list[Proposal], list[Refusal]]:
    """Rows of a file as proposals, and the rows that cannot be understood.

    Parameters
    ----------
    classes : slug and name of each class, by number.
    columns : what a column is for → its name, where that is none of `USUAL_COLUMNS`.
    votes : take labels from vote fractions by this rule instead of from a column.

    Raises
    ------
    CatalogError : the file cannot be read, or columns are missing.
    """
    used: dict[str, str] = {}

    def choose(names: Sequence[str]) -> list[str]:
        used.update(_columns(path, names, columns or {}, votes))
        wanted = [*used.values(), *(n for n in names if votes and n.strip() in votes.columns)]
        if twice := [name for name in wanted if names.count(name) > 1]:
            raise CatalogError(f"{path}: there are two columns {twice[0]!r}; rename one")
        return list(dict.fromkeys(wanted))

    table = read_table(path, choose)
    said = {purpose: table[name].to_pylist() for purpose, name in used.items()}
    shares = [name for name in table.column_names if votes and name.strip() in votes.columns]
    fractions = {name.strip(): table[name].to_pylist() for name in shares}
    proposals: list[Proposal] = []
    refused: list[Refusal] = []
    for i in range(table.num_rows):
        row = {purpose: values[i] for purpose, values in said.items()}
        if votes:
            given = {name: number for name, values in fractions.items() if (number := _number(values[i])) is not None}
            row["label"], row["note"] = votes.decide(given)
        one = _proposal(i + 1, row, classes, votes is not None)
        (proposals if isinstance(one, Proposal) else refused).append(one)  # type: ignore[arg-type]
    return proposals, refused


def read_table(path: Path, choose: Callable[[Sequence[str]], Sequence[str]]) -> pa.Table:
    """The columns of a table file that `choose` picks from the names of all of them; the format goes by its name.

    Raises
    ------
    CatalogError : the file is not there, of no known format, or cannot be read.
    """
    name = path.name.lower()
    if not path.is_file():
        raise CatalogError(f"{path}: no such file; give a table of labels")
    try:
        if name.endswith(".csv"):
            return _read_csv(path, choose)
        if name.endswith((".parquet", ".pq")):
            file = pq.ParquetFile(path)
            return file.read(columns=list(choose(file.schema_arrow.names)))
        if name.endswith(_FITS + _VOTABLE):
            return _read_astronomical(path, choose, name.endswith(_FITS))
    except _UNREADABLE as error:
        raise CatalogError(f"{path} cannot be read as a table ({type(error).__name__}: {error})") from error
    raise CatalogError(f"{path}: expected a name that ends in .csv, .parquet, {', '.join(_FITS + _VOTABLE)}")


def _read_csv(path: Path, choose: Callable[[Sequence[str]], Sequence[str]]) -> pa.Table:
    with path.open(newline="", encoding="utf-8-sig") as handle:
        names = next(csv.reader(handle), [])
    return pa_csv.read_csv(
        path,
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(include_columns=list(choose(names)), strings_can_be_null=True),
    )


def _read_astronomical(path: Path, choose: Callable[[Sequence[str]], Sequence[str]], fits: bool) -> pa.Table:
    if fits:
        from astropy.table import Table  # astropy takes a second that other formats need not wait for

        table = Table.read(path, format="fits", unit_parse_strict="silent")
    else:
        from astropy.io.votable import parse

        table = parse(path, verify="ignore").get_first_table().to_table(use_names_over_ids=True)
    plain = [name for name in table.colnames if table[name].ndim == 1]
    return pa.table({name: pa.array([_text(v) for v in table[name].tolist()]) for name in choose(plain)})


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else value


def _columns(path: Path, names: Sequence[str], given: Mapping[str, str], votes: VoteRule | None) -> dict[str, str]:
    """What each column that is used is for → its name in the file. Raises CatalogError when one is missing."""
    if unknown := set(given) - set(USUAL_COLUMNS):
        raise CatalogError(f"--column {unknown.pop()}=…: expected one of {', '.join(USUAL_COLUMNS)}")
    lower = {name.strip().lower(): name for name in reversed(names)}
    used: dict[str, str] = {}
    for purpose, usual in USUAL_COLUMNS.items():
        asked = given.get(purpose)
        if asked is not None and asked not in names:
            raise CatalogError(f"{path}: no column {asked!r}; found {_some(names)}")
        hit = asked or next((lower[name] for name in usual if name in lower), None)
        if hit is not None:
            used[purpose] = hit
    if votes:
        used.pop("label", None)
        if votes.columns.isdisjoint(name.strip() for name in names):
            raise CatalogError(
                f"{path}: no column of vote fractions, such as {min(votes.columns)}; found {_some(names)}"
            )
    elif "label" not in used:
        raise CatalogError(f"{path}: no column of labels; name it with --column label=NAME; found {_some(names)}")
    if "object_id" not in used and not {"ra", "dec"} <= set(used):
        raise CatalogError(f"{path}: neither object_id nor ra and dec; name them with --column; found {_some(names)}")
    return used


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (" …" if len(names) > 12 else "")


def _proposal(row: int, said: Mapping[str, Any], classes: Sequence[tuple[str, str]], voted: bool) -> Proposal | Refusal:
    """What a row proposes, or why it proposes nothing."""
    ra, dec = _number(said.get("ra")), _number(said.get("dec"))
    given = said.get("object_id")
    object_id = _whole(given)
    named = _shown(given) if given is not None else f"{said.get('ra', '')} {said.get('dec', '')}".strip()
    label = _shown(said["label"])
    if voted and not label:
        return Refusal(row, named, "", UNDECIDED, said["note"])
    number = class_of(said["label"], classes)
    if number is None:
        return Refusal(row, named, label, UNKNOWN_CLASS, _nearest(label, classes))
    if given is not None and (object_id is None or object_id < 0):
        return Refusal(row, named, label, NO_OBJECT, f"object_id {named!r} is no whole number of 63 bits")
    if object_id is None and (ra is None or dec is None or not (-360 <= ra <= 360 and -90 <= dec <= 90)):
        return Refusal(row, named, label, NO_OBJECT, "neither an object_id nor a position in degrees")
    slug = classes[number][0]
    place = (-1, ra or 0.0, dec or 0.0) if object_id is None else (object_id, math.nan, math.nan)
    return Proposal(row, *place, slug, number, _shown(said.get("note")))


def class_of(value: Any, classes: Sequence[tuple[str, str]]) -> int | None:
    """The number of the class that a slug, a name (in any case) or a number means; None when it is none."""
    number = _whole(value)
    if number is not None:
        return number if 0 <= number < len(classes) else None
    wanted = _shown(value).casefold()
    return next((i for i, pair in enumerate(classes) if wanted in (text.casefold() for text in pair)), None)


def _nearest(label: str, classes: Sequence[tuple[str, str]]) -> str:
    slugs = [slug for slug, _ in classes]
    if not label:
        return "no label"
    near = difflib.get_close_matches(label.lower(), slugs, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(slugs)}, their names, or 0 to {len(slugs) - 1}"
    return f"{label!r} is no class ({hint})"


def _shown(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    """A whole number, exactly: a float of more than 53 bits may stand for another one than was meant."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else None
    text = _shown(value)
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        return None
    return int(text) if int(digits) < 2**63 else None
