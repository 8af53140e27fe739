"""What a survey run found and did, in numbers and words. Knows nothing of how it is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Summary:
    """What a run found and did.

    Over all tiles that are committed as they are now, objects = classified + unclassified + quarantined +
    out_of_footprint + duplicates; `reasons` breaks quarantined down. `duplicates_across_tiles` counts rows of the
    release's tiles that were left out of it, because another tile has the object.

    `skipped_tiles` were done before this run; `failed` names tiles that could not be finished and why, `waiting` those
    that are still arriving and why, `remarks` what is to be said about tiles as a whole: each by tile id. `passed_over`
    counts files that are no input by their names, by extension; `set_aside` rows of survey catalogues that were not
    selected, by reason. `reused` rows of this run kept their prediction, because their pixels were the same. `alarm`
    is a sentence when too much is in quarantine, else empty; `drift` are the alarms of the drift monitor.
    """

    run_id: str
    model_id: str
    tiles: int
    skipped_tiles: int
    objects: int
    classified: int
    unclassified: int
    quarantined: int
    out_of_footprint: int
    duplicates: int
    reasons: dict[str, int]
    duplicates_across_tiles: int
    simulated_objects: int
    release: str | None
    catalog: str
    failed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    set_aside: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    reused: int = 0
    alarm: str = ""
    drift: list[str] = field(default_factory=list)

    @property
    def nothing_to_do(self) -> bool:
        """Whether every tile that has arrived was done before."""
        return self.skipped_tiles + len(self.waiting) == self.tiles and not self.failed

    def last_words(self) -> list[tuple[str, str]]:
        """The tiles that failed, in order, each with the last line of its error."""
        return [(tile, error.strip().splitlines()[-1]) for tile, error in sorted(self.failed.items())]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report or a script."""
        return {**asdict(self), "nothing_to_do": self.nothing_to_do}

    def to_markdown(self) -> str:
        """The totals for people."""
        rows = ["tiles", "skipped_tiles", "objects", "classified", "unclassified", "quarantined", "out_of_footprint"]
        rows += ["duplicates", "duplicates_across_tiles", "reused"]
        lines = [f"# Survey {self.run_id}", "", f"Model {self.model_id}, release {self.release}.", ""]
        lines += [f"**Alarm: {self.alarm}**", ""] if self.alarm else []
        lines += ["**Drift**", "", *(f"* {alarm}" for alarm in self.drift), ""] if self.drift else []
        lines += ["| what | number |", "|---|---|", *(f"| {row} | {getattr(self, row)} |" for row in rows)]
        lines += [f"| quarantined: {reason} | {count} |" for reason, count in sorted(self.reasons.items())]
        lines += [f"| not selected: {reason} | {count} |" for reason, count in sorted(self.set_aside.items())]
        lines += [f"| passed over, no input: {ending} | {count} |" for ending, count in self.passed_over.items()]
        if self.simulated_objects:
            lines += ["", f"**{self.simulated_objects} objects of the release are simulated.**"]
        if self.failed:
            lines += ["", "## Failed sky tiles", ""]
            lines += [f"* `{tile}`: {error}" for tile, error in self.last_words()]
        if self.waiting:
            lines += [
                "",
                "## Still arriving",
                "",
                *(f"* `{tile}`: {why}" for tile, why in sorted(self.waiting.items())),
            ]
        if self.remarks:
            said = ((tile, remark) for tile, remarks in sorted(self.remarks.items()) for remark in remarks)
            lines += ["", "## Remarks", "", *(f"* `{tile}`: {remark}" for tile, remark in said)]
        return "\n".join(lines) + "\n"
