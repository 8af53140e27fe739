"""What the gate said of a model: a file beside the model, never written again.

Reading verdicts needs no torch, so that listing models stays quick. How a verdict comes about stands in
`pipeline.promotion.compare`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from catalogs.atomic import atomic_write
from pipeline.core.errors import UserError

_FOLDER = "verdicts"


class GateCheck(BaseModel):
    """One thing that the gate looked at.

    `value` is what was measured, None where nothing was; `limit` what it was held against, `reference` the same of the
    champion; both None where there is none. Whether it passed is more than a comparison of these numbers (what chance
    explains is allowed for): `words` say why.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    value: float | None
    limit: float | None
    reference: float | None
    words: str

    @property
    def briefly(self) -> str:
        """What was measured and against what; the words where there are no numbers."""
        if self.value is None:
            return f"{self.name}: {self.words}"
        against = (("champion", self.reference), ("limit", self.limit))
        told = ", ".join(f"{what} {number:.3f}" for what, number in against if number is not None)
        return f"{self.name} {self.value:.3f}" + (f" ({told})" if told else "")


class Decision(BaseModel):
    """Whether a candidate may take the place of the champion, by which numbers.

    `champion` is None where there was none: only what needs no comparison was checked. `image_set` and `split` are the
    digests of the candidate's, `sky_sample` that of the sample of the sky, empty without one. `simulated` says that the
    test images or the sky were. `created` is ISO 8601 UTC; `key` a digest of everything but the numbers.
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
        """One sentence: passed, or which checks refused it and by what numbers."""
        if self.passed:
            against = f" against {self.champion}" if self.champion else ", with no champion to compare with"
            return f"{self.candidate} passed all {len(self.checks)} checks{against}"
        told = "; ".join(check.briefly for check in self.refusals)
        return f"{self.candidate} is refused by {len(self.refusals)} of {len(self.checks)} checks: {told}"

    def to_markdown(self) -> str:
        """The verdict for people."""
        lines = [
            f"# {self.candidate}: {'passed' if self.passed else 'refused'}",
            "",
            f"{self.why}.",
            "",
            f"Champion {self.champion or 'none'}; images {self.image_set}, split {self.split}, sky sample "
            f"{self.sky_sample or 'none'}; {self.created}" + ("; **simulated**." if self.simulated else "."),
            "",
            "| check | | value | limit | champion | |",
            "|---|---|---|---|---|---|",
        ]
        for check in self.checks:
            numbers = " | ".join(_number(value) for value in (check.value, check.limit, check.reference))
            lines.append(
                f"| {check.name} | {'passed' if check.passed else '**refused**'} | {numbers} | {check.words} |"
            )
        policy = ", ".join(f"{name} = {value}" for name, value in self.policy.items())
        return "\n".join([*lines, "", f"Policy (section `[gate]` of the settings): {policy}."]) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def decision_path(models: Path, candidate: str, key: str) -> Path:
    """Where a verdict lies; the same name with `.md` is for people."""
    return models / candidate / _FOLDER / f"{key}.json"


def write_decision(models: Path, verdict: Decision) -> None:
    """Write a verdict beside its candidate, for people first: the JSON file is what says that it is there."""
    path = decision_path(models, verdict.candidate, verdict.key)
    for where, text in ((path.with_suffix(".md"), verdict.to_markdown()), (path, verdict.model_dump_json(indent=1))):
        with atomic_write(where) as beside:
            beside.write_text(text, encoding="utf-8")


def read_decision(path: Path) -> Decision:
    """Read a verdict. Raises UserError when the file is damaged, or of another version."""
    try:
        return Decision.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path}: not a verdict of this version ({error.error_count()} problems, the first: "
            f"{error.errors()[0]['msg']}); delete it, and `morphcat models evaluate` makes it anew"
        ) from error


def decisions_of(models: Path, candidate: str) -> list[Decision]:
    """Every verdict on a model, oldest first. Raises what `read_decision` raises."""
    found = [read_decision(path) for path in (models / candidate / _FOLDER).glob("*.json")]
    return sorted(found, key=lambda verdict: (verdict.created, verdict.key))
