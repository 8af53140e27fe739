"""Whether labels of people wait to be learned from, and what came of those that were.

Retraining goes by level: it is due while the labels in force differ from those that the champion learned from, however
that is noticed. Nothing here needs torch, so that a look is quick.
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

_TICK = 0.5  # seconds between two looks at the labels


@dataclass(frozen=True)
class LabelSet:
    """The labels in force at a version; the name and digest are empty where there are none."""

    version: str
    digest: str
    labels: int


@dataclass(frozen=True)
class Retraining:
    """What came of a label set. `why` is the verdict in a sentence; `promoted` says whether this run promoted."""

    labels: LabelSet
    champion: str
    candidate: str
    passed: bool
    promoted: bool
    why: str
    verdict: str

    @property
    def outcome(self) -> str:
        """In a word or two."""
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
    """The newest labels when the champion has not learned from them; None when it has, or too few differ.

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
    return now if differing(workspace, now.version, version) >= workspace.settings.retraining.min_labels else None


def learned_labels(card: ModelCard) -> tuple[str, str]:
    """Version and digest of the labels of people that a model learned from; empty for one that learned from none."""
    told = card.data.get("labels") or {}
    return str(told.get("version", "")), str(told.get("digest", ""))


def differing(workspace: Workspace, version: str, other: str) -> int:
    """How many objects have another label at one version than at another, or a label at only one of them."""
    ours, theirs = (_by_object(workspace, name) for name in (version, other))
    return sum(ours.get(one) != theirs.get(one) for one in ours.keys() | theirs.keys())


def wait_until_quiet(workspace: Workspace, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return when no label has come for `retraining.quiet_seconds`, so that ten files in a minute train once."""
    quiet = workspace.settings.retraining.quiet_seconds
    head = workspace.labels / "HEAD"
    seen, still = None, 0.0
    while still < quiet:
        now = head.stat().st_mtime_ns if head.is_file() else 0
        if now != seen:  # an age that the clock tells counts, except one from a clock that was set
            seen, still = now, min(quiet, max(0.0, time.time() - now / 1e9))
        else:
            still += _TICK
        if still < quiet:
            sleep(_TICK)


def reports(workspace: Workspace) -> list[dict[str, Any]]:
    """Reports of retrainings, the oldest first."""
    paths = sorted(workspace.reports.glob("retraining-*.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text()) for path in paths]


def _named(version: str, labels: pa.Table) -> LabelSet:
    return LabelSet(version, digest(labels) if labels.num_rows else "", labels.num_rows)


def _by_object(workspace: Workspace, version: str) -> dict[int, str]:
    """Label by object id at a version; none where the version is empty."""
    if not version:
        return {}
    labels = in_force(workspace.labels, version)
    return dict(zip(labels["object_id"].to_pylist(), labels["label"].to_pylist(), strict=True))
