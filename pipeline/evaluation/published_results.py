"""Accuracies that others have reported, with how far to trust them. Never ours, and never mixed with ours.

The numbers of the paper are from its tables (R. Dagli, arXiv 2304.05350, 2023). Those of other networks were collected
from public records when this project was planned; their sources were not checked again.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "Dagli 2023, arXiv 2304.05350"
GALAXY10_IMAGES = 17_736

_UNPUBLISHED = (
    "no weights, split or seed published; selected on the split that is reported; not known to be reproduced in public"
)
_OTHER = "a cleaner protocol than the paper's; a split of its own"
_CLEANER = "public record, not checked again"
_LEAK = "trained, or may have been trained, on test images"


@dataclass(frozen=True)
class PublishedResult:
    """A reported top-1 accuracy in percent. `variant` and `layout` are our names of the network where we have it."""

    benchmark: str
    network: str
    accuracy: float
    source: str
    trust: str
    variant: str = ""
    layout: str = ""


def _paper(benchmark: str, three: float, four: float, five: float) -> tuple[PublishedResult, ...]:
    return tuple(
        PublishedResult(benchmark, f"Astroformer-{n}", accuracy, PAPER, _UNPUBLISHED, f"astroformer_{n}", "CCCT")
        for n, accuracy in ((3, three), (4, four), (5, five))
    )


REPORTED: tuple[PublishedResult, ...] = (
    *_paper("galaxy10", 92.39, 94.86, 94.81),
    *_paper("cifar100", 87.65, 93.36, 89.38),
    *_paper("cifar10", 99.12, 98.93, 93.23),
    *_paper("tiny_imagenet", 86.86, 91.12, 92.98),
    PublishedResult("galaxy10", "a later claim", 95.52, _CLEANER, _LEAK),
    PublishedResult("galaxy10", "another later claim", 95.42, _CLEANER, _LEAK),
    PublishedResult("galaxy10", "DINOv2-L, finetuned", 87.4, _CLEANER, _OTHER),
    PublishedResult("galaxy10", "ConvNeXtV2-L", 86.8, _CLEANER, _OTHER),
    PublishedResult("galaxy10", "Zoobot-2, finetuned", 86.7, _CLEANER, _OTHER),
    PublishedResult("galaxy10", "ConvNeXt-B", 84.3, _CLEANER, _OTHER),
)

TITLES = {
    "galaxy10": "Galaxy10 DECaLS",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny ImageNet",
}


def benchmark_of(kind: str, images: int, *, simulated: bool) -> str | None:
    """The public benchmark that a set of labelled images is, or None: simulated images are none, whatever their layout.

    `kind` is that of the image set; a file of the Galaxy10 layout is the benchmark where it has all its 17,736 images.
    """
    if simulated or kind not in TITLES or (kind == "galaxy10" and images != GALAXY10_IMAGES):
        return None
    return kind


def published_for(benchmark: str | None, variant: str, layout: str) -> float | None:
    """The percentage reported for one of our networks on a benchmark; None where nobody reported any."""
    for entry in REPORTED:
        if benchmark and (entry.benchmark, entry.variant, entry.layout) == (benchmark, variant, layout):
            return entry.accuracy
    return None
