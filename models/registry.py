"""Model folders: content-addressed, immutable, never executed; and the pointer to the champion.

A folder `<root>/<model id>/` holds `weights.safetensors`, `card.json` (what a program needs) and `README.md` (what a
person reads). It is written beside and renamed, so that it is there whole or not at all. `CHAMPION` is one line;
`history.jsonl` keeps every change of it. Nothing here needs torch, so that listing models is quick.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import ModelError
from models.files import sync

WEIGHTS = "weights.safetensors"

_CHAMPION = "CHAMPION"
_HISTORY = "history.jsonl"


class ModelCard(BaseModel):
    """What a model folder claims about itself.

    `envelope` says what the training images were like (pixel scales in arcsec), `data` where they came from and
    whether they were simulated, `validation` and `test` hold the numbers of `models.metrics.Evaluation`.
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
    temperature: float
    settings: dict[str, Any]
    data: dict[str, Any]
    envelope: dict[str, Any]
    split_digest: str
    validation: dict[str, Any] | None
    test: dict[str, Any] | None
    history: list[dict[str, Any]]
    versions: dict[str, str]


def publish(root: Path, card: ModelCard, save: Callable[[Path], None], *, files: dict[str, str] | None = None) -> Path:
    """Write a model folder and return its path; a folder of that id which is already there stays as it is.

    `save` writes the weights into the folder that it is given; `files` are further text files by name. The first
    model of a root becomes champion.
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
            for name, text in (files or {}).items():
                (beside / name).write_text(text)
            for path in (*beside.iterdir(), beside):
                sync(path)
            _rename_unless_there(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    if champion(root) is None:
        set_champion(root, card.model_id, reason="first model")
    return folder


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
        f"Images: {card.data.get('source')} ({card.data.get('counts')})" + (", **simulated**." if simulated else "."),
        f"Rendering {card.recipe['rendering']}, pixel scales {card.envelope.get('pixscale')} arcsec, recipe "
        f"{card.recipe_digest}.",
        f"Temperature {card.temperature:.3f}; split {card.split_digest}; morphcat {card.versions.get('morphcat')}.",
        "",
        "| set | images | accuracy | macro-F1 | calibration error |",
        "|---|---|---|---|---|",
    ]
    for name, numbers in (("validation", card.validation), ("test", card.test)):
        if numbers:
            shown = " | ".join(f"{numbers[key]:.3f}" for key in ("accuracy", "macro_f1", "ece"))
            lines.append(f"| {name} | {numbers['n']} | {shown} |")
    return "\n".join(lines) + "\n"
