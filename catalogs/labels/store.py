"""The labels store: versions of what people said of objects, appended and never changed.

    labels/
      0001-3fa2b1c49d7e.parquet    a version: its number and a digest of its content and of the version before it
      HEAD                         one line: the newest version; replaced last

A version adds labels, or takes an earlier version back. The label in force of an object is that of the newest version
that is not taken back. Files that HEAD does not lead to are left from a call that was killed, and count for nothing.
Knows no class names: they come as values.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from catalogs.atomic import atomic_write
from catalogs.errors import CatalogError

if TYPE_CHECKING:
    from catalogs.labels.checks import ResolvedLabel  # which needs scipy and DuckDB; reading labels does not

LABEL_SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("object_id", pa.int64()),
            ("label", pa.string()),
            ("label_id", pa.int16()),
            ("ra", pa.float64()),
            ("dec", pa.float64()),
            ("author", pa.string()),
            ("source", pa.string()),
            ("time", pa.string()),
            ("version", pa.string()),
            ("note", pa.string()),
            ("previous", pa.string()),
        )
    ]
)
"""Columns of a version: ra and dec in degrees (ICRS) as they were when the label was given; time ISO 8601, UTC;
`previous` is the label that was in force before, empty if there was none."""

_HEAD = "HEAD"
_PUT_BACK = "put the file back from a copy; versions before it can be read once HEAD names one of them"
_KEY = b"morphcat.labels"


class LabelVersion(BaseModel):
    """What a version says of itself. `reverts` names the version that it takes back; one that adds labels has none.

    Of its `labels`, `new` are of objects without a label, `revised` differ from the label before, and the rest
    confirm it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    number: int
    parent: str
    time: str
    author: str
    source: str
    note: str
    reverts: str
    labels: int
    new: int
    revised: int


@dataclass(frozen=True)
class AddResult:
    """What became of labels that were offered; `unchanged` said what the same author had said before."""

    version: LabelVersion | None
    unchanged: int


def versions(folder: Path) -> list[LabelVersion]:
    """Every version, the oldest first; empty before the first.

    Raises
    ------
    CatalogError : a version is missing or its file is not what it was.
    """
    return [version for version, _ in _chain(folder)]


def in_force(folder: Path, version: str | None = None) -> pa.Table:
    """The labels in force, one row an object, sorted by object id, with the columns of `LABEL_SCHEMA`.

    `version` (a name, the beginning of one, or a number) asks for what was in force when that one was the newest.

    Raises
    ------
    CatalogError : no such version, or the store is damaged.
    """
    chain = _chain(folder)
    if version is not None:
        chain = chain[: find(folder, version, [v for v, _ in chain]).number]
    return _in_force(chain)


def taken_back(history: Sequence[LabelVersion]) -> set[str]:
    """Names of versions that do not count, because a later one that counts takes them back."""
    gone: set[str] = set()
    for version in reversed(history):
        if version.reverts and version.name not in gone:
            gone.add(version.reverts)
    return gone


def digest(labels: pa.Table) -> str:
    """Sixteen hexadecimal digits over which object has which label, whatever the order of the rows."""
    pairs = sorted(zip(labels["object_id"].to_pylist(), labels["label"].to_pylist(), strict=True))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]


def find(folder: Path, name: str, history: Sequence[LabelVersion] | None = None) -> LabelVersion:
    """The version of a name, of the beginning of one, or of a number. Raises CatalogError when there is none."""
    known = versions(folder) if history is None else history
    number = int(name) if name.isascii() and name.isdigit() and len(name) <= 9 else -1
    # A bare number is one: the name of version 12 begins with 0012, and so does 00123 with that of none.
    hits = [v for v in known if v.number == number] or [v for v in known if name and v.name.startswith(name)]
    if len(hits) != 1:
        there = ", ".join(v.name for v in known[-5:]) or "none"
        raise CatalogError(f"no version {name!r} of the labels in {folder} (the newest: {there}); see `labels log`")
    return hits[0]


def add(folder: Path, labels: Sequence[ResolvedLabel], *, author: str, source: str = "", note: str = "") -> AddResult:
    """Append a version with these labels, of at most one row an object; nothing where all is said already.

    Raises
    ------
    CatalogError : no author, or the store is damaged.
    """
    if not author.strip():
        raise CatalogError("labels need an author: say who gave them with --author NAME")
    with _locked(folder):
        chain = _chain(folder)
        now = _in_force(chain)
        said = dict(
            zip(
                now["object_id"].to_pylist(),
                zip(now["label"].to_pylist(), now["author"].to_pylist(), strict=True),
                strict=True,
            )
        )
        fresh = [one for one in labels if said.get(one.object_id) != (one.label, author)]
        if not fresh:
            return AddResult(None, len(labels))
        rows = [_row(one, said.get(one.object_id, ("", ""))[0]) for one in fresh]
        version = _append(folder, chain, rows, author=author, source=source, note=note)
        return AddResult(version, len(labels) - len(fresh))


def revert(folder: Path, name: str, *, author: str, note: str = "") -> LabelVersion:
    """Append a version that takes another one back; taking that back again brings the labels back.

    Raises
    ------
    CatalogError : no such version, it is taken back already, no author, or the store is damaged.
    """
    if not author.strip():
        raise CatalogError("say who takes labels back with --author NAME")
    with _locked(folder):
        chain = _chain(folder)
        history = [version for version, _ in chain]
        wanted = find(folder, name, history)
        if wanted.name in taken_back(history):
            raise CatalogError(f"version {wanted.name} is taken back already; see `morphcat labels log`")
        return _append(folder, chain, [], author=author, note=note, reverts=wanted.name)


def _in_force(chain: Sequence[tuple[LabelVersion, pa.Table]]) -> pa.Table:
    gone = taken_back([version for version, _ in chain])
    tables = [table for version, table in chain if version.name not in gone]
    everything = pa.concat_tables([LABEL_SCHEMA.empty_table(), *tables])
    later = everything["object_id"].to_pandas().duplicated(keep="last").to_numpy()
    return everything.filter(pa.array(~later)).sort_by("object_id")


def _row(one: ResolvedLabel, previous: str) -> dict[str, Any]:
    return {
        "object_id": one.object_id,
        "label": one.label,
        "label_id": one.label_id,
        "ra": one.ra,
        "dec": one.dec,
        "note": one.note,
        "previous": previous,
    }


def _append(
    folder: Path,
    chain: Sequence[tuple[LabelVersion, pa.Table]],
    rows: list[dict[str, Any]],
    *,
    author: str,
    source: str = "",
    note: str = "",
    reverts: str = "",
) -> LabelVersion:
    """Write a version behind the chain, then HEAD."""
    rows = sorted(rows, key=lambda row: row["object_id"])
    time = datetime.now(UTC).isoformat(timespec="seconds")
    head = {
        "number": len(chain) + 1,
        "parent": chain[-1][0].name if chain else "",
        "time": time,
        "author": author,
        "source": source,
        "note": note,
        "reverts": reverts,
        "labels": len(rows),
        "new": sum(not row["previous"] for row in rows),
        "revised": sum(row["previous"] not in ("", row["label"]) for row in rows),
    }
    rows = [{**row, "author": author, "source": source, "time": time, "version": ""} for row in rows]
    table = pa.Table.from_pylist(rows, schema=LABEL_SCHEMA)
    name = _name(head, table)
    table = table.set_column(8, LABEL_SCHEMA.field("version"), [pa.array([name] * len(rows), pa.string())])
    version = LabelVersion.model_validate({**head, "name": name})
    with atomic_write(folder / f"{name}.parquet") as beside:
        stamped = table.replace_schema_metadata({_KEY: version.model_dump_json().encode()})
        pq.write_table(stamped, beside, compression="zstd")
    with atomic_write(folder / _HEAD) as beside:
        beside.write_text(name + "\n")
    return version


def _name(head: dict[str, Any], table: pa.Table) -> str:
    """Number and digest of a version, over everything in it but its own name."""
    content = {name: table[name].to_pylist() for name in LABEL_SCHEMA.names if name != "version"}
    text = json.dumps([head, content], sort_keys=True)
    return f"{head['number']:04d}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _chain(folder: Path) -> list[tuple[LabelVersion, pa.Table]]:
    """Versions with their rows from the first to the one that HEAD names."""
    pointer = folder / _HEAD
    name = pointer.read_text().strip() if pointer.is_file() else ""
    chain: list[tuple[LabelVersion, pa.Table]] = []
    while name:
        if Path(name).name != name:
            raise CatalogError(f"{folder}: {name!r} is no name of a version; {_PUT_BACK}")
        chain.append(_read(folder / f"{name}.parquet"))
        name = chain[-1][0].parent
    return chain[::-1]


def _read(path: Path) -> tuple[LabelVersion, pa.Table]:
    try:
        table = pq.ParquetFile(path).read()
        version = LabelVersion.model_validate_json((table.schema.metadata or {})[_KEY])
    except (OSError, pa.ArrowException, KeyError, ValidationError) as error:
        raise CatalogError(
            f"{path}: not a version of the labels ({type(error).__name__}: {error}); {_PUT_BACK}"
        ) from error
    table = table.replace_schema_metadata(None)
    same = table.schema.equals(LABEL_SCHEMA) and set(table["version"].to_pylist()) <= {version.name}
    if not same or not path.stem == version.name == _name(version.model_dump(exclude={"name"}), table):
        raise CatalogError(f"{path}: its content is not what its name was made from, it was changed; {_PUT_BACK}")
    return version, table


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until nobody else writes into the store."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
