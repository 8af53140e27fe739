"""What checks of a release found wrong: counted, with the first examples of each. Knows no check by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

EXAMPLES = 5  # of each check are kept


@dataclass
class Findings:
    """Mismatches by check. One for each thread; `merge` adds them up."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, check: str, example: str, count: int = 1) -> None:
        """Note `count` mismatches of a check, and one sentence on them."""
        self.counts[check] += count
        if len(self.examples[check]) < EXAMPLES:
            self.examples[check].append(example)

    def expect(self, check: str, where: str, what: str, found: object, wanted: object) -> None:
        """Note a mismatch when a value is not the one it must be."""
        if found != wanted:
            self.add(check, f"{where}: {what} {found}, but {wanted} expected")

    def merge(self, others: Sequence[Findings]) -> None:
        """Take over what others found, in their order."""
        for other in others:
            for check, count in other.counts.items():
                self.counts[check] += count
                self.examples[check] = (self.examples[check] + other.examples[check])[:EXAMPLES]
