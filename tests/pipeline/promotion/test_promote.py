"""Who may become champion: by the gate, against it by a person, and the way back. No network is loaded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.artifacts.registry import champion, history, publish
from models.errors import ModelError
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.core.errors import UserError
from pipeline.promotion.decision import Decision, GateCheck
from pipeline.promotion.promote import champion_lineage, promote, roll_back, rollback_from, was_promoted
from tests.conftest import Small


@pytest.fixture
def workspace(small: Small, tmp_path: Path) -> Workspace:
    """Models A, B, C, of which A leads."""
    made = open_workspace(tmp_path)
    for name in "ABC":
        publish(made.models, small.card.model_copy(update={"model_id": name}), lambda folder: None)
    return made


def verdict(candidate: str, against: str | None, *, passed: bool = True) -> Decision:
    check = GateCheck(name="accuracy", passed=passed, value=0.6, limit=0.8, reference=0.8, words="0.6 against 0.8")
    return Decision(
        key=f"{candidate}-{against}",
        candidate=candidate,
        champion=against,
        passed=passed,
        checks=[check],
        policy={},
        image_set="i",
        split="s",
        sky_sample="",
        simulated=True,
        created="2026-11-23T00:00:00+00:00",
    )


def test_a_passed_verdict_promotes_and_is_recorded(workspace: Workspace) -> None:
    change = promote(workspace, "B", verdict("B", "A"), by="retraining", reason="labels 0003")
    assert champion(workspace.models) == "B" and history(workspace.models)[-1] == change
    assert (change.before, change.by, change.verdict, change.override) == ("A", "retraining", "B-A", False)
    assert was_promoted(workspace.models, "B-A") and not was_promoted(workspace.models, "C-A")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "B was not evaluated"),
        (verdict("B", "A", passed=False), r"refused by 1 of 1 checks: accuracy 0\.600 \(champion 0\.800"),
        (verdict("B", "C"), "is against C, but A is champion by now"),
        (verdict("B", None), "is against no champion, but A"),
        (verdict("C", "A"), "on C, not on B"),
    ],
)
def test_without_a_good_verdict_nothing_is_promoted(workspace: Workspace, given: Decision | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        promote(workspace, "B", given, by="Ann", reason="hope")
    assert champion(workspace.models) == "A" and len(history(workspace.models)) == 1


def test_a_person_may_override_and_that_is_recorded(workspace: Workspace) -> None:
    bad = verdict("B", "A", passed=False)
    for by, reason in (("", "known flaw of the labels"), ("Ann", " ")):
        with pytest.raises(UserError, match="takes a name and a reason"):
            promote(workspace, "B", bad, by=by, reason=reason, override=True)
    change = promote(workspace, "B", bad, by="Ann", reason="known flaw of the labels", override=True)
    assert change.override and change.by == "Ann" and change.verdict == "B-A" and champion(workspace.models) == "B"
    assert promote(workspace, "C", None, by="Ann", reason="in a hurry", override=True).verdict == ""
    # An override that was not needed is none.
    assert not promote(workspace, "A", verdict("A", "C"), by="Ann", reason="fine", override=True).override


def test_a_verdict_on_another_model_is_never_accepted(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="on C, not on B"):
        promote(workspace, "B", verdict("C", "A"), by="Ann", reason="a mistake", override=True)


def test_going_back_and_back_again(workspace: Workspace) -> None:
    promote(workspace, "B", verdict("B", "A"), by="", reason="1")
    promote(workspace, "C", verdict("C", "B"), by="", reason="2")
    change = roll_back(workspace, None, by="Ann", reason="too many rings")
    assert (change.before, change.to, change.rollback, change.by) == ("C", "B", True, "Ann")
    assert roll_back(workspace, None, by="Ann", reason="still").to == "A"
    with pytest.raises(UserError, match="A is the first champion"):
        roll_back(workspace, None, by="Ann", reason="still")
    assert champion_lineage(history(workspace.models)) == ["A"]
    assert roll_back(workspace, "C", by="Ann", reason="it was the sky").to == "C"
    with pytest.raises(ModelError, match="already"):
        roll_back(workspace, "C", by="Ann", reason="twice")
    with pytest.raises(UserError, match="takes a reason"):
        roll_back(workspace, None, by="Ann", reason="")
    assert len(history(workspace.models)) == 6


def test_only_former_champions_can_be_gone_back_to(workspace: Workspace) -> None:
    with pytest.raises(UserError, match=r"C never was champion \(there were: A\)"):
        roll_back(workspace, "C", by="Ann", reason="curious")


def test_what_a_person_turned_back_from_takes_a_person(workspace: Workspace) -> None:
    """Also where another policy gave a new verdict that passed."""
    promote(workspace, "B", verdict("B", "A"), by="retraining", reason="1")
    roll_back(workspace, None, by="Ann", reason="too many rings")
    assert was_promoted(workspace.models, "B-A")
    again = verdict("B", "A").model_copy(update={"key": "new"})
    with pytest.raises(UserError, match=r"Ann turned back from it on .* \(too many rings\)"):
        promote(workspace, "B", again, by="retraining", reason="2")
    back = rollback_from(workspace.models, "B")
    assert back is not None and back.by == "Ann" and rollback_from(workspace.models, "A") is None
    assert promote(workspace, "B", again, by="Ann", reason="it was the sky", override=True).override
    assert rollback_from(workspace.models, "B") is None


def test_of_two_promotions_at_once_one_wins(workspace: Workspace) -> None:
    def attempt(name: str) -> str:
        try:
            return promote(workspace, name, verdict(name, "A"), by=name, reason="first").to
        except (UserError, ModelError):
            return ""

    with ThreadPoolExecutor(2) as pool:
        outcome = list(pool.map(attempt, "BC"))
    assert sorted(outcome)[0] == "" and champion(workspace.models) == sorted(outcome)[1]
    assert len(history(workspace.models)) == 2
