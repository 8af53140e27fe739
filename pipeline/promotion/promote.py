"""Promotion of a model to champion, after the gate or by a person who overrides it, and rollback. Needs no torch.

`models.artifacts.registry` changes the champion and keeps the history; this module decides who may ask for it.
"""

from __future__ import annotations

from pathlib import Path

from models.artifacts.registry import ChampionChange, champion, history, set_champion
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.promotion.decision import Decision


def promote(
    workspace: Workspace, candidate: str, verdict: Decision | None, *, by: str, reason: str, override: bool = False
) -> ChampionChange:
    """Make a candidate champion; returns the line of the history.

    Without `override` the candidate needs a passed verdict against the present champion, and must not have been rolled
    back. With it a person decides, named by `by`, for a `reason`; the history records an override only where one was
    needed.

    Raises
    ------
    UserError : the candidate may not be promoted; the message gives the reason.
    models.errors.ModelError : no such model, it is champion already, or the champion was changed meanwhile.
    """
    models = workspace.models
    if verdict is not None and verdict.candidate != candidate:
        raise UserError(f"the verdict {verdict.key} is on {verdict.candidate}, not on {candidate}")
    present = champion(models)
    objection = _objection(models, candidate, verdict, present)
    if objection and not override:
        raise UserError(f"{objection}; a person may promote it all the same, with --override and a --reason")
    if objection and not (by.strip() and reason.strip()):
        raise UserError("overriding the gate takes a name and a reason, for the history (--by NAME --reason TEXT)")
    return set_champion(
        models,
        candidate,
        reason=reason,
        by=by,
        verdict=verdict.key if verdict else "",
        override=bool(objection),
        instead_of=present,
    )


def _objection(models: Path, candidate: str, verdict: Decision | None, present: str | None) -> str:
    """Why a candidate may not be promoted without an override; empty if nothing speaks against it."""
    if verdict is None:
        return f"{candidate} was not evaluated: `morphcat models evaluate {candidate}`"
    if verdict.champion != present:
        return (
            f"the verdict {verdict.key} is against {verdict.champion or 'no champion'}, but {present or 'nobody'} is "
            "champion by now: evaluate it again"
        )
    if not verdict.passed:
        return verdict.why
    if rollback := rollback_from(models, candidate):
        who = rollback.by or "somebody"
        return f"{candidate} was champion and {who} turned back from it on {rollback.utc} ({rollback.reason})"
    return ""


def roll_back(workspace: Workspace, to: str | None, *, by: str, reason: str) -> ChampionChange:
    """Put an earlier champion back: the one before the present one, or a named one that has been champion.

    Two rollbacks in a row go two champions back: one that was rolled back is skipped.

    Raises
    ------
    UserError : there was none before, the named one never was champion, or no reason is given.
    models.errors.ModelError : the model is gone, or is champion already.
    """
    changes = history(workspace.models)
    if not reason.strip():
        raise UserError("a rollback takes a reason, for the history (--reason TEXT)")
    lineage = champion_lineage(changes)
    if to is None:
        if len(lineage) < 2:
            first = lineage[-1] if lineage else "no model"
            raise UserError(f"{first} is the first champion of {workspace.models}: there is none before")
        to = lineage[-2]
    elif to not in {change.to for change in changes}:
        known = ", ".join(dict.fromkeys(change.to for change in changes)) or "none"
        raise UserError(f"{to} never was champion (there were: {known}); `morphcat models promote` asks the gate")
    return set_champion(
        workspace.models, to, reason=reason, by=by, rollback=True, instead_of=champion(workspace.models)
    )


def champion_lineage(changes: list[ChampionChange]) -> list[str]:
    """The champions up to the present one, oldest first, without those that were rolled back."""
    lineage: list[str] = []
    for change in changes:
        if change.rollback and change.to in lineage:
            while lineage[-1] != change.to:
                lineage.pop()
        elif lineage[-1:] != [change.to]:
            lineage.append(change.to)
    return lineage


def was_promoted(models: Path, verdict_key: str) -> bool:
    """Whether a verdict has led to a promotion, even if it was rolled back later."""
    return any(change.verdict == verdict_key for change in history(models))


def rollback_from(models: Path, model_id: str) -> ChampionChange | None:
    """The rollback by which a model ceased to be champion, unless it has become champion again since."""
    last: ChampionChange | None = None
    for change in history(models):
        if change.to == model_id:
            last = None
        elif change.rollback and change.before == model_id:
            last = change
    return last
