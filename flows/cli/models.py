"""`morphcat models`: list, show, evaluate, promote, roll back, and the history of champions."""

from __future__ import annotations

import argparse
import getpass
from typing import TYPE_CHECKING, Any

from flows.cli.common import Subparsers, bars, simulated_mark, warn_of_old_name, workspace_of
from flows.cli.display import print_json, print_message, print_table
from flows.cli.images import image_options, image_source

if TYPE_CHECKING:
    from models.artifacts.registry import ChampionChange
    from pipeline.config.workspace import Workspace
    from pipeline.promotion.decision import Decision

EXIT_REFUSED = 6


def add(subparsers: Subparsers) -> None:
    """Declare `models` and its verbs; without one it lists."""
    parser = subparsers.add_parser("models", help="trained models: list, show, evaluate, promote, roll back, history")
    parser.set_defaults(run=list_all)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    verbs.add_parser("list", help="all models, oldest first (the same as no verb)").set_defaults(run=list_all)
    shown = verbs.add_parser("show", help="the card of a model, its verdicts, when it was champion")
    shown.set_defaults(run=show)
    evaluated = verbs.add_parser("evaluate", help="let the gate compare a model with the champion, and promote nothing")
    evaluated.set_defaults(run=evaluate)
    judged = verbs.add_parser("judge")  # the old name, without a line in the help
    judged.set_defaults(run=judge)
    promoted = verbs.add_parser("promote", help="make a model champion if it passes the gate (evaluated if it was not)")
    promoted.add_argument("--override", action="store_true", help="whatever the gate says; takes a --reason")
    promoted.set_defaults(run=promote)
    back = verbs.add_parser("rollback", help="put the champion before back, or a named one that has been champion")
    back.set_defaults(run=roll_back)
    verbs.add_parser("history", help="every change of the champion, oldest first").set_defaults(run=show_history)
    for verb in (shown, evaluated, judged, promoted):
        verb.add_argument("model", metavar="ID", help="a model, as `models list` shows it")
    back.add_argument("model", metavar="ID", nargs="?", help="that champion (the one before the present one)")
    for verb in (promoted, back):
        verb.add_argument("--reason", metavar="TEXT", default="", help="why, for the history", required=verb is back)
        verb.add_argument("--by", metavar="NAME", help="who, for the history (the name you are logged in with)")
    for verb in (evaluated, judged, promoted):
        image_options(verb)


def list_all(arguments: argparse.Namespace) -> None:
    """List the trained models."""
    from models.artifacts.registry import champion, list_models, load_card
    from pipeline.promotion.decision import decisions_of

    root = workspace_of(arguments).models
    first = champion(root)
    rows = []
    for model_id in list_models(root):
        card, verdicts = load_card(root, model_id), decisions_of(root, model_id)
        rows.append(
            {
                "model": card.model_id,
                "champion": card.model_id == first,
                "layout": card.layout,
                "image_size": card.image_size,
                "test_accuracy": card.test["accuracy"] if card.test else None,
                "verdict": _word(verdicts[-1]) if verdicts else None,
                "images": sum(card.data["counts"].values()),
                "source": card.data["source"],
                "simulated": card.data["simulated"],
                "created": card.created,
            }
        )
    if arguments.json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        print_message(f"no models in {root} yet: `morphcat train` makes one")


def show(arguments: argparse.Namespace) -> None:
    """Print the card of a model, when it was champion, and the decisions of the gate on it."""
    from models.artifacts.registry import champion, describe, history, load_card
    from pipeline.promotion.decision import decisions_of

    root = workspace_of(arguments).models
    card, verdicts = load_card(root, arguments.model), decisions_of(root, arguments.model)
    changes = [change for change in history(root) if card.model_id in (change.before, change.to)]
    leads = champion(root) == card.model_id
    if arguments.json:
        plain = card.model_dump(mode="json", exclude={"history"})
        decisions = [{**verdict.model_dump(), "why": verdict.why} for verdict in verdicts]
        lines = [_plain(change) for change in changes]
        print_json({"card": plain, "champion": leads, "changes": lines, "verdicts": decisions})
        return
    print(describe(card))
    if leads:
        print(f"Champion since {changes[-1].utc}: {changes[-1].reason}")
    if changes:
        _print_changes(changes)
    for verdict in verdicts:
        print(f"\nVerdict {verdict.key} of {verdict.created}")
        _print_verdict(verdict)


def judge(arguments: argparse.Namespace) -> int:
    """`evaluate` by its old name."""
    warn_of_old_name("models judge", "models evaluate")
    return evaluate(arguments)


def evaluate(arguments: argparse.Namespace) -> int:
    """Let the gate decide on a model; the exit status tells whether it passed."""
    workspace = workspace_of(arguments)
    verdict = _evaluated(workspace, arguments)
    if arguments.json:
        print_json({**verdict.model_dump(), "why": verdict.why})
    else:
        _print_verdict(verdict)
    return 0 if verdict.passed else EXIT_REFUSED


def promote(arguments: argparse.Namespace) -> int:
    """Make a model champion, by the gate or against it."""
    from pipeline.promotion.promote import promote as make_champion

    workspace = workspace_of(arguments)
    verdict = _stored(workspace, arguments.model)
    if verdict is None and not arguments.override:
        verdict = _evaluated(workspace, arguments)
    if verdict and not verdict.passed and not arguments.override:
        if arguments.json:
            print_json({"promoted": False, "verdict": verdict.model_dump(), "why": verdict.why})
        else:
            _print_verdict(verdict)
            print_message("not promoted; a person may promote it all the same, with --override and a --reason")
        return EXIT_REFUSED
    reason = arguments.reason or (verdict.why if verdict and not arguments.override else "")
    change = make_champion(
        workspace, arguments.model, verdict, by=_who(arguments), reason=reason, override=arguments.override
    )
    if arguments.json:
        decision = {"verdict": verdict.model_dump(), "why": verdict.why} if verdict else {"verdict": None}
        print_json({"promoted": True, "change": _plain(change), **decision})
    else:
        print(f"champion: {change.to}, before: {change.before}" + (", the gate overridden" if change.override else ""))
    return 0


def roll_back(arguments: argparse.Namespace) -> None:
    """Put an earlier champion back."""
    from pipeline.promotion.promote import roll_back as put_back

    change = put_back(workspace_of(arguments), arguments.model, by=_who(arguments), reason=arguments.reason)
    if arguments.json:
        print_json(_plain(change))
    else:
        print(f"champion: {change.to}, before: {change.before}; the next survey classifies with it")


def show_history(arguments: argparse.Namespace) -> None:
    """Print every change of the champion."""
    from models.artifacts.registry import history

    changes = history(workspace_of(arguments).models)
    if arguments.json:
        print_json([_plain(change) for change in changes])
    elif changes:
        _print_changes(changes)
    else:
        print("no champion yet: the first model that is trained becomes it")


def _stored(workspace: Workspace, model: str) -> Decision | None:
    """The newest verdict on a model against the present champion by the present policy."""
    from models.artifacts.registry import champion
    from pipeline.promotion.decision import decisions_of

    present, policy = champion(workspace.models), workspace.settings.gate.model_dump()
    fit = [v for v in decisions_of(workspace.models, model) if v.champion == present and v.policy == policy]
    return fit[-1] if fit else None


def _evaluated(workspace: Workspace, arguments: argparse.Namespace) -> Decision:
    from models.artifacts.registry import load_card
    from pipeline.datasets.loading import open_images, source_or_benchmark
    from pipeline.promotion.compare import compare as ask_the_gate

    load_card(workspace.models, arguments.model)  # a wrong name is an error before images are opened
    with bars():
        images = open_images(source_or_benchmark(workspace, image_source(arguments)), workspace.settings.input)
        return ask_the_gate(workspace, images, arguments.model)


def _who(arguments: argparse.Namespace) -> str:
    """The name for the history; empty if the system does not know its user."""
    if arguments.by is not None:
        return str(arguments.by)
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _word(verdict: Decision) -> str:
    return "passed" if verdict.passed else "refused: " + ", ".join(check.name for check in verdict.refusals)


def _plain(change: ChampionChange) -> dict[str, Any]:
    return change.model_dump(by_alias=True)


def _print_verdict(verdict: Decision) -> None:
    """The checks one by one, and the outcome."""
    rows = [
        [check.name, "passed" if check.passed else "REFUSED", *map(_short, (check.value, check.limit, check.reference))]
        for check in verdict.checks
    ]
    print_table(["check", "", "value", "limit", "champion"], rows)
    for check in verdict.checks:
        print(f"  {check.name}: {check.words}")
    print(verdict.why + simulated_mark(verdict.simulated))


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _print_changes(changes: list[ChampionChange]) -> None:
    rows = [
        [change.utc, change.before, change.to, change.by, _kind(change), change.verdict, change.reason]
        for change in changes
    ]
    print_table(["utc", "from", "to", "by", "", "verdict", "reason"], rows)


def _kind(change: ChampionChange) -> str:
    return "rollback" if change.rollback else "override" if change.override else ""
