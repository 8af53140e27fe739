"""What the drift monitor found, as values, as sentences and as a page. Reads no catalogue and decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CLASSES = "classes"
MEANS = ("confidence", "ood_score")  # quantities that are no shares
_MOST_SENTENCES, _MOST_REGIONS = 20, 40
_DIGITS = 6


@dataclass(frozen=True)
class DriftDifference:
    """One quantity of new and of earlier objects.

    `new` and `earlier` are means or shares; of the class fractions, which are in `fractions` by class as (new,
    earlier), there is none. `size` is the absolute difference, of fractions their total variation distance. `objects`
    are those of the new rows that have the quantity, `earlier_objects` those compared with (of the whole sky the number
    that tells as much, for they are weighted). `nearby` is False where there were too few in the region and all of the
    sky stand for them. `chance` is the probability that equal skies differ as much, None where `size` is within `limit`
    and it was not asked.
    """

    quantity: str
    new: float | None
    earlier: float | None
    size: float
    limit: float
    objects: int
    earlier_objects: int
    nearby: bool = True
    chance: float | None = None
    alarm: bool = False
    fractions: dict[str, tuple[float, float]] = field(default_factory=dict)

    def in_words(self) -> str:
        """The quantity with its numbers."""
        where = "" if self.nearby else " of the whole sky"
        numbers = f"{self.objects:,} new and {self.earlier_objects:,} earlier objects{where}, limit {self.limit:g}"
        if self.new is None or self.earlier is None:
            most = sorted(self.fractions.items(), key=lambda item: -abs(item[1][0] - item[1][1]))[:3]
            changes = ", ".join(f"{slug} {earlier:.1%} → {new:.1%}" for slug, (new, earlier) in most)
            return f"class fractions differ by {self.size:.3f}: {changes} ({numbers})"
        if self.quantity in MEANS:
            return f"mean {self.quantity} {self.earlier:.3f} → {self.new:.3f} ({numbers})"
        return f"{self.quantity} {self.earlier:.1%} → {self.new:.1%} ({numbers})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded to what the sums are exact to."""
        values: dict[str, Any] = {
            "new": _rounded(self.new),
            "earlier": _rounded(self.earlier),
            "size": _rounded(self.size),
        }
        values |= {"limit": self.limit, "objects": self.objects, "earlier_objects": self.earlier_objects}
        values |= {"nearby": self.nearby, "alarm": self.alarm}
        if self.chance is not None:
            values["chance"] = float(f"{self.chance:.3g}")
        if self.fractions:
            values["fractions"] = {slug: [_rounded(share) for share in both] for slug, both in self.fractions.items()}
        return values


@dataclass(frozen=True)
class DriftRegion:
    """A HEALPix cell, or the whole sky (`cell` None), and what was compared there.

    `ra` and `dec` (deg) are the centre. `new` objects are those of tiles that came since, `earlier` those of the
    releases compared with.
    """

    cell: int | None
    ra: float | None
    dec: float | None
    new: int
    earlier: int
    differences: tuple[DriftDifference, ...]

    @property
    def name(self) -> str:
        """The place in words."""
        if self.ra is None or self.dec is None:
            return "whole sky"
        return f"around ra {self.ra:.1f}, dec {self.dec:+.1f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the differences by quantity."""
        place = {"cell": self.cell, "ra": _rounded(self.ra), "dec": _rounded(self.dec)}
        counts = {"new": self.new, "earlier": self.earlier}
        return {**place, **counts, "differences": {d.quantity: d.to_dict() for d in self.differences}}


@dataclass(frozen=True)
class DriftReport:
    """How the new rows of a release differ from those of earlier ones.

    These are what the last `releases` brought to each region, as they stand in the release `against`, by the model
    `other_model` where that is another one: then differences are no alarms. `order` is that of the regions, `tests` how
    many comparisons there were, `level` the probability that chance alone gives any alarm. `regions` are those with new
    objects, most first, the whole sky before them. `remark` says why nothing was compared.
    """

    release: str
    model_id: str
    against: str = ""
    releases: int = 0
    other_model: str = ""
    order: int = 0
    level: float = 0.0
    tests: int = 0
    regions: tuple[DriftRegion, ...] = ()
    remark: str = ""

    @property
    def differences(self) -> list[str]:
        """A sentence for each difference beyond limit and chance, those of the whole sky first."""
        return [
            f"{region.name}: {difference.in_words()}"
            for region in self.regions
            for difference in region.differences
            if difference.alarm
        ]

    @property
    def alarms(self) -> list[str]:
        """These sentences, unless the earlier rows are of another model."""
        return [] if self.other_model else self.differences

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report or a script; the same each time."""
        return {
            "release": self.release,
            "model_id": self.model_id,
            "against": self.against,
            "releases": self.releases,
            "other_model": self.other_model,
            "order": self.order,
            "level": self.level,
            "tests": self.tests,
            "remark": self.remark,
            "alarms": self.alarms,
            "differences": self.differences,
            "regions": [region.to_dict() for region in self.regions],
        }

    def to_markdown(self) -> str:
        """The report for people."""
        lines = [f"# Drift of release {self.release}", ""]
        if self.against:
            of_model = f" of model {self.other_model}" if self.other_model else ""
            brought = f"what the last {self.releases} releases{of_model} brought there"
            lines += [f"New objects of model {self.model_id}, against {brought} (as in {self.against}).", ""]
        lines += [self.remark, ""] if self.remark else []
        if self.regions:
            lines += [*self._sentences(), "", *self._whole_sky(), "", *self._regions()]
        return "\n".join(lines).rstrip("\n") + "\n"

    def _sentences(self) -> list[str]:
        found = self.differences
        if not found:
            return [f"No difference beyond limits and chance in {self.tests} comparisons."]
        head = "No alarms, but differences from another model:" if self.other_model else "**Alarms:**"
        more = [f"* and {len(found) - _MOST_SENTENCES} more"] if len(found) > _MOST_SENTENCES else []
        return [head, "", *(f"* {sentence}" for sentence in found[:_MOST_SENTENCES]), *more]

    def _whole_sky(self) -> list[str]:
        whole = self.regions[0].differences
        rows = [_row(d.quantity, d.new, d.earlier, d.size, d.limit, "alarm" if d.alarm else "") for d in whole]
        shares = [
            _row(slug, *both, abs(both[0] - both[1]), None, "") for d in whole for slug, both in d.fractions.items()
        ]
        head = ["| whole sky | new | earlier | difference | limit | |", "|---|---|---|---|---|---|"]
        return [*head, *rows, *shares] if rows else []

    def _regions(self) -> list[str]:
        head = [f"| ra | dec | new objects | earlier | largest differences (HEALPix order {self.order}) |"]
        lines = [*head, "|---|---|---|---|---|"]
        for region in self.regions[1 : _MOST_REGIONS + 1]:
            largest = sorted(region.differences, key=lambda d: -d.size)[:3]
            told = ", ".join(f"{d.quantity} {d.size:.3f}" for d in largest) or "too few objects"
            lines.append(f"| {region.ra:.1f} | {region.dec:+.1f} | {region.new} | {region.earlier} | {told} |")
        more = len(self.regions) - 1 - _MOST_REGIONS
        return [*lines, *([f"| | | | | and {more} more regions |"] if more > 0 else [])]


def _row(name: str, new: float | None, earlier: float | None, size: float, limit: float | None, mark: str) -> str:
    numbers = ("" if value is None else f"{value:.4f}" for value in (new, earlier, size))
    return f"| {name} | {' | '.join(numbers)} | {'' if limit is None else f'{limit:g}'} | {mark} |"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
