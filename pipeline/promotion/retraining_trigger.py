"""When a retraining is due, and the results of earlier ones.

A retraining is due as long as the labels in force differ from those that the champion learned from, whatever event or
schedule asks. Nothing in this module needs torch, so that asking is quick.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from catalogs.labels.store import digest, find, in_force, versions
from models.artifacts.registry import ModelCard, champion, load_card
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError

_POLL_SECONDS = 0.5  # between two checks for new labels


@dataclass(frozen=True)
class LabelSet:
    """The labels in force at a version; the name and digest are empty if there are none."""

    version: str
    digest: str
    labels: int


@dataclass(frozen=True)
class RetrainingResult:
    """The result of retraining on a label set.

    `why` is the verdict in a sentence, `verdict` its key; `promoted` : whether this run promoted the candidate.
    """

    labels: LabelSet
    champion: str
    candidate: str
    passed: bool
    promoted: bool
    why: str
    verdict: str

    @property
    def outcome(self) -> str:
        """ "promoted", "promoted before" or "refused"."""
        if self.promoted:
            return "promoted"
        return "promoted before" if self.passed else "refused"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report or a script."""
        return {**asdict(self), "outcome": self.outcome}


def label_set(workspace: Workspace, version: str | None = None) -> LabelSet:
    """The labels in force at a version (a name or number), the newest when left out.

    Raises
    ------
    catalogs.errors.CatalogError : no such version, or the store is damaged.
    """
    history = versions(workspace.labels)
    if not history:
        return LabelSet("", "", 0)
    chosen = find(workspace.labels, version, history) if version else history[-1]
    return _named(chosen.name, in_force(workspace.labels, chosen.name))


def due(workspace: Workspace) -> LabelSet | None:
    """The newest labels if the champion has not learned from them; None if it has, or too few differ.

    Raises
    ------
    UserError : there is no champion yet.
    """
    name = champion(workspace.models)
    now = label_set(workspace)
    if name is None:
        if now.labels:
            raise UserError(f"labels wait in {workspace.labels}, but there is no model yet: `morphcat train` makes one")
        return None
    version, learned = learned_labels(load_card(workspace.models, name))
    if now.digest == learned:
        return None
    changed = count_changed_labels(workspace, now.version, version)
    return now if changed >= workspace.settings.retraining.min_labels else None


def learned_labels(card: ModelCard) -> tuple[str, str]:
    """Version and digest of the human labels that a model learned from; empty for one that learned from none."""
    labels = card.data.get("labels") or {}
    return str(labels.get("version", "")), str(labels.get("digest", ""))


def count_changed_labels(workspace: Workspace, version: str, other: str) -> int:
    """How many objects have different labels in two versions, or a label in only one of them."""
    ours, theirs = (_by_object(workspace, name) for name in (version, other))
    return sum(ours.get(object_id) != theirs.get(object_id) for object_id in ours.keys() | theirs.keys())


def wait_until_quiet(workspace: Workspace, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return when no label has arrived for `retraining.quiet_seconds`, so that ten files in a minute train once."""
    quiet = workspace.settings.retraining.quiet_seconds
    head = workspace.labels / "HEAD"
    changed, quiet_for = None, 0.0
    while quiet_for < quiet:
        now = head.stat().st_mtime_ns if head.is_file() else 0
        if now != changed:
            # The age of the file counts as quiet time, within limits, as the clock may have been set.
            changed, quiet_for = now, min(quiet, max(0.0, time.time() - now / 1e9))
        else:
            quiet_for += _POLL_SECONDS
        if quiet_for < quiet:
            sleep(_POLL_SECONDS)


def reports(workspace: Workspace) -> list[dict[str, Any]]:
    """Reports of retrainings, the oldest first."""
    paths = sorted(workspace.reports.glob("retraining-*.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text()) for path in paths]


def _named(version: str, labels: pa.Table) -> LabelSet:
    return LabelSet(version, digest(labels) if labels.num_rows else "", labels.num_rows)


def _by_object(workspace: Workspace, version: str) -> dict[int, str]:
    """The label of each object id in a version; none for an empty version."""
    if not version:
        return {}
    labels = in_force(workspace.labels, version)
    return dict(zip(labels["object_id"].to_pylist(), labels["label"].to_pylist(), strict=True))
