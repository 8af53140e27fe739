"""The verdict of the gate on a model: a file in the folder of the model that is written once and never changed.

`pipeline.promotion.compare` makes verdicts. Reading them needs no torch, so that listing models stays quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from catalogs.atomic import atomic_write
from pipeline.core.errors import UserError
from pipeline.core.templates import render

_FOLDER = "verdicts"


class GateCheck(BaseModel):
    """One property of a candidate that the gate examined.

    `value` is what was measured, `limit` what it was compared with, `reference` the value of the champion; each is None
    if there is none. Passing takes more than a comparison of these numbers, as chance is allowed for: `words` give
    the reason.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    value: float | None = None
    limit: float | None = None
    reference: float | None = None
    words: str

    @property
    def summary(self) -> str:
        """The name with the numbers, or with the words if there are no numbers."""
        if self.value is None:
            return f"{self.name}: {self.words}"
        compared = (("champion", self.reference), ("limit", self.limit))
        numbers = ", ".join(f"{what} {number:.3f}" for what, number in compared if number is not None)
        return f"{self.name} {self.value:.3f}" + (f" ({numbers})" if numbers else "")


class Decision(BaseModel):
    """Whether a candidate may take the place of the champion, and by which numbers.

    key : digest of everything that the verdict depends on.
    champion : None if there was none; then only what needs no comparison was checked.
    policy : the settings of the gate.
    image_set, split : digests of the images and the split that the candidate was trained with.
    sky_sample : digest of the sample of the sky, empty without one.
    simulated : whether the test images or the sky were simulated.
    created : ISO 8601, UTC.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    candidate: str
    champion: str | None
    passed: bool
    checks: list[GateCheck]
    policy: dict[str, Any]
    image_set: str
    split: str
    sky_sample: str
    simulated: bool
    created: str

    @property
    def refusals(self) -> list[GateCheck]:
        """The checks that the candidate did not pass."""
        return [check for check in self.checks if not check.passed]

    @property
    def why(self) -> str:
        """One sentence: passed, or refused by which checks and numbers."""
        if self.passed:
            against = f" against {self.champion}" if self.champion else ", with no champion to compare with"
            return f"{self.candidate} passed all {len(self.checks)} checks{against}"
        reasons = "; ".join(check.summary for check in self.refusals)
        return f"{self.candidate} is refused by {len(self.refusals)} of {len(self.checks)} checks: {reasons}"

    def to_markdown(self) -> str:
        """The verdict for people."""
        return render("pipeline.promotion", "decision.md.j2", decision=self)


def decision_path(models: Path, candidate: str, key: str) -> Path:
    """The file of a verdict; the same name with `.md` is the version for people."""
    return models / candidate / _FOLDER / f"{key}.json"


def write_decision(models: Path, verdict: Decision) -> None:
    """Write a verdict into the folder of its candidate, the JSON file last: it marks the verdict as complete."""
    path = decision_path(models, verdict.candidate, verdict.key)
    for file, text in ((path.with_suffix(".md"), verdict.to_markdown()), (path, verdict.model_dump_json(indent=1))):
        with atomic_write(file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def read_decision(path: Path) -> Decision:
    """Read a verdict. Raises UserError when the file is damaged, or of another version."""
    try:
        return Decision.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path}: not a verdict of this version ({error.error_count()} problems, the first: "
            f"{error.errors()[0]['msg']}); delete it, and `morphcat models evaluate` makes a new one"
        ) from error


def decisions_of(models: Path, candidate: str) -> list[Decision]:
    """Every verdict on a model, oldest first. Raises what `read_decision` raises."""
    found = [read_decision(path) for path in (models / candidate / _FOLDER).glob("*.json")]
    return sorted(found, key=lambda verdict: (verdict.created, verdict.key))
