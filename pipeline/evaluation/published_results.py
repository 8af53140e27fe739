"""Accuracies that others have published, with their sources and how far to trust them. They are never mixed with ours.

The figures are in `published_results.csv`. Those of the paper are from its tables (R. Dagli, arXiv 2304.05350, 2023).
Those of other networks come from public records; their sources were not checked again.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import pandas as pd

GALAXY10_IMAGES = 17_736
TITLES = {
    "galaxy10": "Galaxy10 DECaLS",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny ImageNet",
}


@cache
def published_results() -> pd.DataFrame:
    """One row per published figure, not to be changed by the caller.

    benchmark : a key of `TITLES`; network : its name; accuracy : top-1, percent; source, trust : text.
    variant, layout : the names of the network in this package, empty if it has none.
    """
    with (files("pipeline.evaluation") / "published_results.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, keep_default_na=False)


def public_benchmark(kind: str, images: int, *, simulated: bool) -> str | None:
    """The public benchmark that a set of labelled images is, or None; simulated images are never one.

    `kind` is that of the image set. A file in the Galaxy10 layout is the benchmark if it has all its 17,736 images.
    """
    if simulated or kind not in TITLES or (kind == "galaxy10" and images != GALAXY10_IMAGES):
        return None
    return kind


def published_accuracy(benchmark: str | None, variant: str, layout: str) -> float | None:
    """The percentage published for one of our networks on a benchmark; None if nobody published any."""
    table = published_results()
    found = table[(table.benchmark == benchmark) & (table.variant == variant) & (table.layout == layout)]
    return None if found.empty else float(found.accuracy.iloc[0])
