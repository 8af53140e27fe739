"""What a disturbance did, and whether the rows are those of an undisturbed run; as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.config.workspace import Workspace
from tests.chaos.outcomes import differences, outcome_of, sight_of
from tests.chaos.processes import Child, Way, ended_at_last, said, wait
from tests.chaos.stage import Stage

_MOST_RERUNS = 3


@dataclass
class Result:
    """One disturbance: strikes that hit (`kills` of them are signals), when, how the runs ended, what was there then.

    `reruns` is how many undisturbed runs it took until one ended well. `wrong` says what readers saw that was not
    whole, and how the rows differ from those of an undisturbed run; empty when all is well. `skipped` says why there
    was no disturbance.
    """

    name: str
    kills: int = 0
    when: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    reruns: int = 0
    rows: int = 0
    wrong: list[str] = field(default_factory=list)
    skipped: str = ""

    def __str__(self) -> str:
        return f"{self.name}; {'; '.join(self.when)}: {self.verdict}"

    @property
    def verdict(self) -> str:
        """What is to be said of the rows."""
        return f"skipped, {self.skipped}" if self.skipped else "equal" if self.equal else f"NOT EQUAL: {self.wrong}"

    @property
    def equal(self) -> bool:
        return not self.wrong

    def note(self, workspace: Workspace, child: Child, when: str) -> None:
        """Keep how a run ended, and what is in the workspace then: nothing half-written may be visible to readers."""
        sight = sight_of(workspace)
        self.when.append(when)
        self.ended.append(str(child.status()))
        self.there.append(str(sight))
        self.wrong += [f"{when}: {wrong}" for wrong in sight.wrong]
        if "a bug?" in said(child):
            self.wrong.append(f"{when}: an error without words: {said(child)[-600:]}")

    def finish(self, stage: Stage, way: Way, workspace: Workspace) -> Result:
        """Run again until a run ends well, and compare all rows with the undisturbed ones."""
        status = -1
        while status != 0 and self.reruns < _MOST_RERUNS:
            self.reruns += 1
            with ended_at_last(way.start(workspace)) as child:
                status = wait(child)
        if status != 0:
            self.wrong.append(f"run {self.reruns} after it ended with {status}: {said(child)[-600:]}")
        return self.compare(stage, workspace)

    def compare(self, stage: Stage, workspace: Workspace) -> Result:
        """Compare all rows with the undisturbed ones."""
        outcome = outcome_of(workspace)
        self.rows = len(outcome.rows)
        self.wrong += differences(outcome, stage.truth)
        return self


def as_table(results: Sequence[Result]) -> str:
    """Markdown: a line for each disturbance."""
    names = ("what", "kills", "when", "exit status", "there at that moment", "runs after", "rows", "equal")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for one in results:
        there = "; ".join(one.there)
        cells = (one.name, one.kills, "; ".join(one.when), "; ".join(one.ended), there, one.reruns, one.rows)
        equal = "skipped" if one.skipped else "yes" if one.equal else "**no**"
        lines.append("| " + " | ".join(map(str, (*cells, equal))) + " |")
    lines += ["", *(f"* {one}" for one in results if one.skipped or not one.equal)]
    return "\n".join(lines).rstrip()


def summary(results: Sequence[Result]) -> str:
    """One line on all of them."""
    compared, differ = sum(one.rows for one in results), sum(not one.equal for one in results)
    kills, reruns = sum(one.kills for one in results), sum(one.reruns for one in results)
    return f"{len(results)} disturbances, {kills} kills, {reruns} runs after them; {compared} rows compared; " + (
        f"{differ} DIFFER" if differ else "all equal"
    )
