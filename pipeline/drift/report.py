"""What the drift monitor found: as values, as sentences and as a report in Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.core.templates import render

CLASSES = "classes"
MEANS = ("confidence", "ood_score")  # quantities that are means; the others are shares
_MOST_DIFFERENCES, _MOST_REGIONS = 20, 40  # in the report for people
_DIGITS = 6


@dataclass(frozen=True)
class DriftDifference:
    """How one quantity differs between new and earlier objects.

    new, earlier : means or shares; None for the class fractions.
    fractions : the class fractions by class, as (new, earlier).
    size : absolute difference; of class fractions their total variation distance.
    limit : of the size, from the settings.
    objects : number of new objects that have the quantity.
    earlier_objects : number of earlier objects; for the whole sky, where they are weighted, the effective number.
    nearby : False if the region has too few earlier objects, so that those of the whole sky replace them.
    p_value : probability that equal skies differ as much; None if the size is within the limit.
    alarm : whether the difference is beyond the limit and chance.
    """

    quantity: str
    new: float | None
    earlier: float | None
    size: float
    limit: float
    objects: int
    earlier_objects: int
    nearby: bool = True
    p_value: float | None = None
    alarm: bool = False
    fractions: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
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
            "limit": self.limit,
            "objects": self.objects,
            "earlier_objects": self.earlier_objects,
            "nearby": self.nearby,
            "alarm": self.alarm,
        }
        if self.p_value is not None:
            values["chance"] = float(f"{self.p_value:.3g}")
        if self.fractions:
            values["fractions"] = {slug: [_rounded(share) for share in both] for slug, both in self.fractions.items()}
        return values


@dataclass(frozen=True)
class DriftRegion:
    """A HEALPix cell, or the whole sky (`cell` None), and what was compared there.

    ra, dec : of the centre, degrees.
    new : number of objects in tiles that are new in the release; earlier : in the releases compared with.
    """

    cell: int | None
    ra: float | None
    dec: float | None
    new: int
    earlier: int
    differences: tuple[DriftDifference, ...]

    @property
    def name(self) -> str:
        """Where it lies."""
        if self.ra is None or self.dec is None:
            return "whole sky"
        return f"around ra {self.ra:.1f}, dec {self.dec:+.1f}"

    @property
    def largest_differences(self) -> str:
        """The three quantities that differ most; empty if nothing could be compared."""
        largest = sorted(self.differences, key=lambda difference: -difference.size)[:3]
        return ", ".join(f"{difference.quantity} {difference.size:.3f}" for difference in largest)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the differences by quantity."""
        return {
            "cell": self.cell,
            "ra": _rounded(self.ra),
            "dec": _rounded(self.dec),
            "new": self.new,
            "earlier": self.earlier,
            "differences": {difference.quantity: difference.to_dict() for difference in self.differences},
        }


@dataclass(frozen=True)
class DriftReport:
    """How the new rows of a release differ from those of earlier ones.

    The earlier rows are, in each region, what the last `releases` releases brought there, as in release `against`.

    other_model : the model of the earlier rows if it is another one; then differences are no alarms.
    order : HEALPix order of the regions.
    level : probability that chance alone gives any alarm; tests : number of comparisons.
    regions : the whole sky, then the regions with new objects, those with most first.
    remark : why nothing was compared, if so.
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
            f"{region.name}: {difference.sentence}"
            for region in self.regions
            for difference in region.differences
            if difference.alarm
        ]

    @property
    def alarms(self) -> list[str]:
        """The differences, unless the earlier rows are of another model."""
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
        return render(
            "pipeline.drift",
            "drift.md.j2",
            report=self,
            most_differences=_MOST_DIFFERENCES,
            most_regions=_MOST_REGIONS,
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
