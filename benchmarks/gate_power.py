"""Which loss of accuracy the gate refuses, and how often it refuses an equal model by chance: a simulation.

Two models of known accuracy classify test images whose classes are as frequent as in Galaxy10 DECaLS; their predictions
are drawn at random. `python -m benchmarks.gate_power --trials 300` prints the table of docs/promotion.md.
"""

from __future__ import annotations

import argparse

import numpy as np

from pipeline.config.promotion import GateSettings
from pipeline.core.classes import GALAXY10_CLASSES
from pipeline.promotion.checks import HeldOutPredictions, check_against_champion

ACCURACY = 0.80  # of the champion
GAINED = 0.07  # share of the images that only the candidate gets right; two trainings of one recipe differ on as many
SAME_ERROR = 0.7  # share of the images that both get wrong where they predict the same class
LOSSES = {
    60: (0.0, 0.10, 0.15, 0.20, 0.25, 0.30),
    180: (0.0, 0.04, 0.06, 0.08, 0.10, 0.12, 0.15),
    2660: (0.0, 0.01, 0.02, 0.025, 0.03, 0.035, 0.04),
}


def drawn(n: int, loss: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of about n images, predictions of a candidate that is worse by `loss`, and of the champion: int64 (m,)."""
    rng = np.random.default_rng([seed, n])
    share = np.array([one.galaxy10_count for one in GALAXY10_CLASSES], dtype=np.float64)
    counts = np.maximum(1, np.round(share / share.sum() * n)).astype(np.int64)
    labels = np.repeat(np.arange(len(counts)), counts)
    both, lost = ACCURACY - GAINED - loss, GAINED + loss
    u = rng.random(len(labels))
    champion = u < both + lost
    candidate = (u < both) | ((u >= both + lost) & (u < both + lost + GAINED))
    wrong, other = ((labels + rng.integers(1, len(counts), len(labels))) % len(counts) for _ in range(2))
    wrong_before = np.where(rng.random(len(labels)) < SAME_ERROR, wrong, other)
    return labels, np.where(candidate, labels, wrong), np.where(champion, labels, wrong_before)


def predictions(labels: np.ndarray, classes: int) -> HeldOutPredictions:
    """Predictions of these labels; of their probabilities only the largest matters for the checks."""
    return HeldOutPredictions(np.eye(classes, dtype=np.float32)[labels], np.eye(classes, dtype=bool)[labels], 0.9, 1)


def refused(n: int, loss: float, trials: int, settings: GateSettings) -> dict[str, float]:
    """The share of the trials in which each check refuses the candidate, and in which any of them does."""
    slugs = [one.slug for one in GALAXY10_CLASSES]
    counts = dict.fromkeys(("accuracy", "macro_f1", "recall", "any"), 0)
    for trial in range(trials):
        labels, candidate, champion = drawn(n, loss, trial)
        new, old = predictions(candidate, len(slugs)), predictions(champion, len(slugs))
        checks = check_against_champion(labels, new, old, slugs, settings)
        refusals = [check.name for check in checks if not check.passed]
        for name in (*refusals, *(["any"] if refusals else [])):
            counts[name] += 1
    return {name: count / trials for name, count in counts.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--chance", type=float, default=GateSettings().significance)
    parser.add_argument("--images", type=int, nargs="*", default=list(LOSSES))
    arguments = parser.parse_args()
    settings = GateSettings(significance=arguments.chance)
    print(f"SIMULATED predictions, {arguments.trials} trials a row, gate.significance {settings.significance}\n")
    print("| test images | true loss, points | refused by accuracy | by macro-F1 | by recall | by any |")
    print("|---|---|---|---|---|---|")
    for n in arguments.images:
        for loss in LOSSES[n]:
            shares = refused(n, loss, arguments.trials, settings)
            print(f"| {n:,} | {100 * loss:.1f} | " + " | ".join(f"{100 * s:.1f} %" for s in shares.values()) + " |")


if __name__ == "__main__":
    main()
