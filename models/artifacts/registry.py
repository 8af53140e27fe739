"""Model folders: content-addressed, immutable, never executed; and the pointer to the champion.

A folder `<root>/<model id>/` holds `weights.safetensors`, `features.safetensors` (where the training images lie among
the network's features), `card.json` (what a program needs) and `README.md` (what a person reads); that of an ensemble
names its members and holds no tensors. It is written beside and renamed, so that it is there whole or not at all.
`CHAMPION` is one line, and the truth; `history.jsonl` keeps every change of it. A change is announced in a file of its
own before it is made, so that a process killed half-way loses neither. Nothing here needs torch, so that listing models
is quick.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import ModelError
from models.files import fsync
from models.uncertainty.conformal import ConformalSets
from models.uncertainty.ood import OODScale

WEIGHTS = "weights.safetensors"

_CHAMPION = "CHAMPION"
_HISTORY = "history.jsonl"
_ANNOUNCED = ".change.json"  # the change that is being made
_LOCK = ".champion.lock"


class EnsembleMember(BaseModel):
    """A model of an ensemble, with the digest of its tensors (`models.artifacts.weights.tensors_digest`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_id: str
    digest: str


class Calibration(BaseModel):
    """Whether confidences of one split are honest, at temperature 1 (`before`) and at that of the card (`after`).

    Each of the two holds `ece`, `ece_equal_count`, `brier`, `nll` of `models.metrics.Evaluation` and `bins`, the table
    of `models.metrics.reliability`. On the validation split `after` was fitted; on the test split it is a measurement.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: dict[str, Any]
    after: dict[str, Any]


class ModelCard(BaseModel):
    """What a model folder claims about itself.

    `envelope` says what the training images were like (pixel scales in arcsec), `data` where they came from and
    whether they were simulated, `validation` and `test` hold the numbers of `models.metrics.Evaluation`. `views` is the
    number of views of each image that each network sees; temperature, sets and novelty hold for that number only.
    `calibration` has an entry for each of the splits that has images. `members` is empty unless the model is an
    ensemble. `remarks` are sentences on what to be careful with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_id: str
    created: str
    variant: str
    layout: str
    image_size: int
    parameters: int
    class_slugs: list[str]
    class_names: list[str]
    recipe: dict[str, Any]
    recipe_digest: str
    members: list[EnsembleMember]
    views: int
    temperature: float
    conformal: ConformalSets
    novelty: OODScale
    settings: dict[str, Any]
    data: dict[str, Any]
    envelope: dict[str, Any]
    split_digest: str
    validation: dict[str, Any] | None
    test: dict[str, Any] | None
    calibration: dict[str, Calibration]
    remarks: list[str]
    history: list[dict[str, Any]]
    versions: dict[str, str]


class ChampionChange(BaseModel):
    """One change of the champion; a line of the history.

    `before` and `to` are model ids, `before` None for the first champion. `by` says who made it, `verdict` is the key
    of the gate's verdict that it rests on, `override` says that a person promoted against the gate, `rollback` that an
    earlier champion was put back. Lines of older versions lack the last four.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    utc: str
    before: str | None = Field(alias="from")
    to: str
    reason: str
    by: str = ""
    verdict: str = ""
    override: bool = False
    rollback: bool = False

    def line(self) -> str:
        """As it stands in the history."""
        return self.model_dump_json(by_alias=True)


def publish(
    root: Path,
    card: ModelCard,
    save: Callable[[Path], None],
    *,
    files: Mapping[str, str | bytes] | None = None,
    may_lead: bool = True,
) -> Path:
    """Write a model folder and return its path; a folder of that id which is already there stays as it is.

    `save` writes the weights into the folder that it is given; `files` are further files by name. The first
    model of a root becomes champion, unless it may not lead.
    """
    folder = root / card.model_id
    if not folder.exists():
        beside = root / f".{card.model_id}.{os.getpid()}"
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            save(beside)
            (beside / "card.json").write_text(card.model_dump_json(indent=1))
            (beside / "README.md").write_text(describe(card))
            for name, content in (files or {}).items():
                (beside / name).write_bytes(content.encode() if isinstance(content, str) else content)
            mode = (beside / "card.json").stat().st_mode  # safetensors makes files that only their owner can read
            for path in (*beside.iterdir(), beside):
                if path.is_file():
                    path.chmod(mode)
                fsync(path)
            _rename_unless_exists(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    if may_lead:
        promote_if_first(root, card.model_id)
    return folder


def promote_if_first(root: Path, model_id: str) -> None:
    """Make a model champion if there is none yet."""
    if champion(root) is None:
        with _locked(root):
            if champion(root) is None:
                _replace_champion(root, model_id, reason="first model")


def _rename_unless_exists(beside: Path, folder: Path) -> None:
    """Rename; when another process published the same model in the meantime, its folder stays."""
    try:
        os.replace(beside, folder)
    except OSError:
        if not (folder / "card.json").is_file():
            raise


def load_card(root: Path, model_id: str) -> ModelCard:
    """Read the card of a model. Raises ModelError when there is no such model or the card is damaged."""
    path = root / model_id / "card.json"
    if not _is_name(model_id) or not path.is_file():
        known = list_models(root)
        near = difflib.get_close_matches(model_id, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none yet; train one first'}"
        raise ModelError(f"no model {model_id!r} in {root} ({hint})")
    try:
        card = ModelCard.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelError(f"{path}: not a model card of this version: {error}") from error
    if card.model_id != model_id:
        raise ModelError(f"{path}: this is the card of {card.model_id}; a model folder cannot be renamed or copied")
    return card


def _is_name(model_id: str) -> bool:
    """An id is one part of a path, so that none leads out of the folder of models."""
    return re.fullmatch(r"[^./\\][^/\\]*", model_id) is not None


def list_models(root: Path) -> list[str]:
    """Ids of all models under `root`, oldest first."""
    cards = [p for p in root.glob("*/card.json") if not p.parent.name.startswith(".")]
    return [p.parent.name for p in sorted(cards, key=lambda p: (p.stat().st_mtime, p.parent.name))]


def champion(root: Path) -> str | None:
    """Id of the model that classifies unless another is named; None before the first training."""
    path = root / _CHAMPION
    return path.read_text().strip() or None if path.is_file() else None


def set_champion(
    root: Path,
    model_id: str,
    *,
    reason: str,
    by: str = "",
    verdict: str = "",
    override: bool = False,
    rollback: bool = False,
    instead_of: str | None = None,
) -> ChampionChange:
    """Make a model champion and add a line to the history; the arguments are those of `ChampionChange`.

    Raises
    ------
    ModelError : no such model, it is champion already, or `instead_of` is given and is not the champion any more.
    """
    load_card(root, model_id)
    with _locked(root):
        before = champion(root)
        if before == model_id:
            raise ModelError(f"{model_id} is the champion of {root} already; there is nothing to change")
        if instead_of is not None and before != instead_of:
            raise ModelError(
                f"the champion of {root} is {before} by now, {instead_of} was expected: somebody else changed it "
                "meanwhile; look at `morphcat models history` and decide again"
            )
        return _replace_champion(
            root, model_id, reason=reason, by=by, verdict=verdict, override=override, rollback=rollback
        )


def history(root: Path) -> list[ChampionChange]:
    """Every change of the champion, oldest first; the last one always names the present champion.

    A change whose line is missing is taken from its announcement (its process was killed), or else inferred from
    `CHAMPION` (somebody edited the file). Nothing is written.

    Raises
    ------
    ModelError : a line is damaged.
    """
    while True:  # until nobody changed the champion while it was read
        present = champion(root)
        announced = _announced_change(root)  # after the champion and before the lines: it is in one or the other
        changes, _ = _recorded_changes(root)
        if champion(root) == present:
            break
    if announced and announced.to == present and announced not in changes[-1:]:
        changes.append(announced)
    last = changes[-1].to if changes else None
    if present is not None and present != last:
        when = datetime.fromtimestamp((root / _CHAMPION).stat().st_mtime, UTC).isoformat(timespec="seconds")
        changes.append(
            ChampionChange(utc=when, before=last, to=present, reason="not recorded: CHAMPION was changed by hand")
        )
    return changes


def _replace_champion(root: Path, model_id: str, **words: Any) -> ChampionChange:
    """Announce a change, make it, record it; to be called under the lock."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    change = ChampionChange(utc=now, before=champion(root), to=model_id, **words)
    _record(root, history(root))  # what a process that was killed here left unsaid
    _write_line(root / _ANNOUNCED, change.line())
    _write_line(root / _CHAMPION, model_id)
    _record(root, history(root))
    (root / _ANNOUNCED).unlink()
    return change


def _record(root: Path, changes: list[ChampionChange]) -> None:
    """Append to the history those of `changes` that are not in it, over a last line that was cut short."""
    there, whole = _recorded_changes(root)
    missing = changes[len(there) :]
    if missing:
        with (root / _HISTORY).open("ab") as file:
            file.truncate(whole)
            file.write("".join(change.line() + "\n" for change in missing).encode())
        fsync(root / _HISTORY)


def _recorded_changes(root: Path) -> tuple[list[ChampionChange], int]:
    """The changes in the file of the history, and the bytes that they take; a last line without its end is no change.

    Raises ModelError when another line is damaged.
    """
    path = root / _HISTORY
    content = path.read_bytes() if path.is_file() else b""
    whole = content.rfind(b"\n") + 1
    changes: list[ChampionChange] = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            changes.append(ChampionChange.model_validate_json(line))
        except ValidationError as error:
            raise ModelError(f"{path}, line {number}: not a change of the champion: {error}") from error
    return changes, whole


def _announced_change(root: Path) -> ChampionChange | None:
    """The change that a process began; None if none did, or a file of that name says nothing."""
    try:
        return ChampionChange.model_validate_json((root / _ANNOUNCED).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write_line(path: Path, text: str) -> None:
    """Replace a file by one line, whole or not at all."""
    beside = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}")
    beside.write_text(text + "\n")
    fsync(beside)
    os.replace(beside, path)
    fsync(path.parent)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Wait until nobody else changes the champion; the system drops the lock of a process that dies."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def describe(card: ModelCard) -> str:
    """The model card for people, in Markdown."""
    simulated = card.data.get("simulated", False)
    lines = [
        f"# {card.model_id}",
        "",
        f"{card.variant}, layout {card.layout}, {card.image_size} px, {card.parameters:,} parameters; {card.created}.",
        *([f"An ensemble of {', '.join(member.model_id for member in card.members)}."] if card.members else []),
        f"Images: {card.data.get('source')} ({card.data.get('counts')})" + (", **simulated**." if simulated else "."),
        f"Rendering {card.recipe['rendering']}, pixel scales {card.envelope.get('pixscale')} arcsec, recipe "
        f"{card.recipe_digest}.",
        f"Views of each image {card.views}; temperature {card.temperature:.3f}; split {card.split_digest}; morphcat "
        f"{card.versions.get('morphcat')}.",
        "",
        f"| set | images | accuracy | macro-F1 | calibration error | {card.conformal.coverage:.0%} sets hold the truth "
        "| classes in a set |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, numbers in (("validation", card.validation), ("test", card.test)):
        if numbers:
            names = ("accuracy", "macro_f1", "ece", "coverage", "mean_set_size")
            shown = " | ".join(f"{numbers[key]:.3f}" for key in names)
            lines.append(f"| {name} | {numbers['n']} | {shown} |")
    if card.remarks:
        lines += ["", *(f"* {remark}" for remark in card.remarks)]
    return "\n".join(lines) + "\n"
