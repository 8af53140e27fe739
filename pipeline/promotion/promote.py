"""Who leads: promotion after the gate, or against it by a person, and the way back. Needs no torch.

The registry changes the pointer and keeps the history; here stands who may ask for it.
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

    Without `override` it takes a verdict that was passed, against the present champion, and a candidate that nobody
    turned back from. With it a person, named by `by` and `reason`, decides; the history says that the gate was
    overridden only where it had to be.

    Raises
    ------
    UserError : it may not be promoted; the message says why.
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
        raise UserError("to override the gate takes a name and a reason, for the history (--by NAME --reason TEXT)")
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
    """Why a candidate may not be promoted without a person; empty where nothing speaks against it."""
    if verdict is None:
        return f"{candidate} was not evaluated: `morphcat models evaluate {candidate}`"
    if verdict.champion != present:
        return (
            f"the verdict {verdict.key} is against {verdict.champion or 'no champion'}, but {present or 'nobody'} is "
            "champion by now: evaluate it again"
        )
    if not verdict.passed:
        return verdict.why
    if back := turned_back(models, candidate):
        return f"{candidate} was champion and {back.by or 'somebody'} turned back from it on {back.utc} ({back.reason})"
    return ""


def roll_back(workspace: Workspace, to: str | None, *, by: str, reason: str) -> ChampionChange:
    """Put an earlier champion back: the one before the present one, or a named one that has been champion.

    Going back twice goes two champions back: one that was turned back from is passed over.

    Raises
    ------
    UserError : there was none before, or the named one never was champion; or no reason is given.
    models.errors.ModelError : the model is gone, or is champion already.
    """
    changes = history(workspace.models)
    if not reason.strip():
        raise UserError("a rollback takes a reason, for the history (--reason TEXT)")
    line = standing(changes)
    if to is None:
        if len(line) < 2:
            raise UserError(
                f"{line[-1] if line else 'no model'} is the first champion of {workspace.models}: there is none before"
            )
        to = line[-2]
    elif to not in {change.to for change in changes}:
        known = ", ".join(dict.fromkeys(change.to for change in changes)) or "none"
        raise UserError(f"{to} never was champion (there were: {known}); `morphcat models promote` asks the gate")
    return set_champion(
        workspace.models, to, reason=reason, by=by, rollback=True, instead_of=champion(workspace.models)
    )


def standing(changes: list[ChampionChange]) -> list[str]:
    """The champions that led to the present one, oldest first and it last, without those that were turned back from."""
    line: list[str] = []
    for change in changes:
        if change.rollback and change.to in line:
            while line[-1] != change.to:
                line.pop()
        elif line[-1:] != [change.to]:
            line.append(change.to)
    return line


def was_promoted(models: Path, verdict_key: str) -> bool:
    """Whether a verdict has led to a promotion, whatever came after it."""
    return any(change.verdict == verdict_key for change in history(models))


def turned_back(models: Path, model_id: str) -> ChampionChange | None:
    """The rollback that took the lead from a model, if nobody has given it back since."""
    last: ChampionChange | None = None
    for change in history(models):
        if change.to == model_id:
            last = None
        elif change.rollback and change.before == model_id:
            last = change
    return last
