"""Model folders: content-addressed, immutable, never executed; and the pointer to the champion.

A folder `<root>/<model id>/` holds `weights.safetensors`, `features.safetensors` (where the training images lie among
the network's features), `card.json` (what a program needs) and `README.md` (what a person reads); that of an ensemble
names its members and holds no tensors. It is written beside and renamed, so that it is there whole or not at all.
`CHAMPION` is one line; `history.jsonl` keeps every change of it. Nothing here needs torch, so that listing models is
quick.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from models.conformal import ConformalSets
from models.errors import ModelError
from models.files import sync
from models.novelty import NoveltyScale

WEIGHTS = "weights.safetensors"

_CHAMPION = "CHAMPION"
_HISTORY = "history.jsonl"


class Member(BaseModel):
    """A model that takes part in an ensemble, with the digest of its tensors (`models.weights.tensors_digest`)."""

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
    members: list[Member]
    views: int
    temperature: float
    conformal: ConformalSets
    novelty: NoveltyScale
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
            for path in (*beside.iterdir(), beside):
                sync(path)
            _rename_unless_there(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    if may_lead:
        lead_if_first(root, card.model_id)
    return folder


def lead_if_first(root: Path, model_id: str) -> None:
    """Make a model champion where there is none yet."""
    if champion(root) is None:
        set_champion(root, model_id, reason="first model")


def _rename_unless_there(beside: Path, folder: Path) -> None:
    """Rename; when another process published the same model in the meantime, its folder stays."""
    try:
        os.replace(beside, folder)
    except OSError:
        if not (folder / "card.json").is_file():
            raise


def load_card(root: Path, model_id: str) -> ModelCard:
    """Read the card of a model. Raises ModelError when there is no such model or the card is damaged."""
    path = root / model_id / "card.json"
    if not path.is_file():
        known = list_models(root)
        near = difflib.get_close_matches(model_id, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none yet; train one first'}"
        raise ModelError(f"no model {model_id!r} in {root} ({hint})")
    try:
        card = ModelCard.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelError(f"{path}: not a model card of this version: {error}") from error
    if card.model_id != model_id:
        raise ModelError(f"{path}: this is the card of {card.model_id}; a model folder can not be renamed or copied")
    return card


def list_models(root: Path) -> list[str]:
    """Ids of all models under `root`, oldest first."""
    cards = [p for p in root.glob("*/card.json") if not p.parent.name.startswith(".")]
    return [p.parent.name for p in sorted(cards, key=lambda p: (p.stat().st_mtime, p.parent.name))]


def champion(root: Path) -> str | None:
    """Id of the model that classifies unless another is named; None before the first training."""
    path = root / _CHAMPION
    return path.read_text().strip() or None if path.is_file() else None


def set_champion(root: Path, model_id: str, *, reason: str) -> None:
    """Make a model champion and add a line to the history."""
    before = champion(root)
    load_card(root, model_id)
    beside = root / f".{_CHAMPION}.{os.getpid()}"
    beside.write_text(model_id + "\n")
    os.replace(beside, root / _CHAMPION)
    line = {"utc": datetime.now(UTC).isoformat(timespec="seconds"), "from": before, "to": model_id, "reason": reason}
    with (root / _HISTORY).open("a") as history:
        history.write(json.dumps(line) + "\n")


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
