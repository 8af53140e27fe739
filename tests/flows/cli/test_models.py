"""`morphcat models` as it is typed; no verb of it starts Prefect."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli.main import main
from flows.cli.models import EXIT_REFUSED
from models.artifacts.registry import champion
from tests.conftest import Small
from tests.pipeline.contenders import CHAMPION, SETTINGS, Ring, make_ring

Typed = Callable[..., str]


@pytest.fixture(scope="module")
def ring(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Ring:
    made = make_ring(small, tmp_path_factory.mktemp("models"))
    made.put("equal", noise=1e-4)
    made.put("worse", noise=5.0)
    return made


@pytest.fixture
def typed(ring: Ring, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command; gives what it printed."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]

    def run(*words: str, status: int = 0) -> str:
        got = main(["--workspace", str(ring.workspace.root), *settings, *words])
        out, err = capsys.readouterr()
        assert got == status, err
        return out + err

    return run


def test_from_the_list_to_a_promotion_and_back(ring: Ring, typed: Typed) -> None:
    had_prefect = "prefect" in sys.modules
    rows = {row["model"]: row for row in json.loads(typed("models", "--json"))}
    assert [name for name, row in rows.items() if row["champion"]] == [CHAMPION]
    assert set(rows) == {CHAMPION, "equal", "worse"} and rows["worse"]["verdict"] is None

    told = typed("models", "evaluate", "worse", status=EXIT_REFUSED)
    assert "worse is refused by" in told and "REFUSED" in told and "(simulated)" in told
    verdict = json.loads(typed("models", "evaluate", "worse", "--json", status=EXIT_REFUSED))
    assert verdict["passed"] is False and verdict["why"].startswith("worse is refused by")
    by_old_name = typed("models", "judge", "worse", status=EXIT_REFUSED)
    assert "models judge is now called models evaluate" in by_old_name and "worse is refused by" in by_old_name
    assert "not promoted" in typed("models", "promote", "worse", status=EXIT_REFUSED)
    assert "takes a name and a reason" in typed("models", "promote", "worse", "--override", status=1)
    assert champion(ring.workspace.models) == CHAMPION

    assert f"champion: equal, before: {CHAMPION}" in typed("models", "promote", "equal", "--by", "Ann")
    assert "equal is the champion" in typed("models", "promote", "equal", status=1)
    listed = typed("models", "list")
    assert "refused: accuracy, macro_f1, recall" in listed and "passed" in listed
    back = json.loads(typed("models", "rollback", "--reason", "too many rings", "--by", "Ben", "--json"))
    assert (back["from"], back["to"], back["rollback"], back["by"]) == ("equal", CHAMPION, True, "Ben")
    assert "Ben turned back from it" in typed("models", "promote", "equal", status=1)
    over = ("--override", "--reason", "labels of round galaxies were wrong", "--by", "Ann")
    assert "the gate overridden" in typed("models", "promote", "worse", *over)

    history = json.loads(typed("models", "history", "--json"))
    assert [change["to"] for change in history] == [CHAMPION, "equal", CHAMPION, "worse"]
    assert history[1]["reason"].startswith("equal passed all") and history[3]["override"] is True
    assert history[3]["verdict"] == verdict["key"]
    shown = typed("models", "show", "worse")
    assert "Champion since" in shown and "Ann" in shown and verdict["key"] in shown and "# worse" in shown
    card = json.loads(typed("models", "show", "equal", "--json"))
    assert card["champion"] is False and [v["passed"] for v in card["verdicts"]] == [True]
    assert len(card["changes"]) == 2 and card["card"]["model_id"] == "equal"
    assert "rollback" in typed("models", "history") and "override" in typed("models", "history")
    assert had_prefect or "prefect" not in sys.modules


def test_what_cannot_be_asked(typed: Typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean equal?" in typed("models", "evaluate", "equa", status=1)
    assert "no such file" in typed("models", "evaluate", "equal", "--galaxy10", str(tmp_path / "x.h5"), status=1)
    assert "never was champion" in typed("models", "rollback", "nobody", "--reason", "x", status=1)
    with pytest.raises(SystemExit):
        typed("models", "rollback")
    assert main(["models", "--workspace", str(tmp_path), "history"]) == 0
    assert "no champion yet" in capsys.readouterr().out
    assert main(["models", "--workspace", str(tmp_path)]) == 0
    assert "no models in" in capsys.readouterr().err
