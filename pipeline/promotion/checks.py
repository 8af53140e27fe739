"""The checks of the gate: what two models say of the same images in, checks with their numbers in words out.

Pure: no files, no networks. A candidate is refused where the numbers show that it is bad, not where they are too few to
show that it is good: comparisons allow for chance, with probability `gate.chance` each. Floors are what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.metrics import Evaluation, evaluate
from pipeline.config.promotion import GateSettings
from pipeline.core.errors import UserError
from pipeline.evaluation.statistics import (
    binomial_p_value,
    bootstrap_f1_gains,
    coverage_p_value,
    ece_limit,
    f1_p_value,
    gain_interval,
    macro_f1,
    mcnemar_p_value,
)
from pipeline.promotion.decision import GateCheck

_SEED = 0x6A7E  # of every draw: the same numbers give the same verdict
_BINS = 15  # of the calibration error, as in models.metrics


@dataclass(frozen=True)
class HeldOutPredictions:
    """What one model says of the test images.

    probabilities : float32 (n, C), calibrated; sets : bool (n, C), its prediction sets.
    coverage : the promised one; calibrated_on : the images behind the thresholds of the sets.
    """

    probabilities: np.ndarray
    sets: np.ndarray
    coverage: float
    calibrated_on: int

    @property
    def called(self) -> np.ndarray:
        """The most probable class of each image: int64 (n,)."""
        return self.probabilities.argmax(axis=1)


def checks_alone(
    labels: np.ndarray,
    said: HeldOutPredictions,
    slugs: Sequence[str],
    settings: GateSettings,
    champion: HeldOutPredictions | None = None,
) -> list[GateCheck]:
    """What needs no champion: floors of macro-F1 and recall, calibration error, coverage; labels int64 (n,).

    What a champion shows on the same images stands beside it for people, and decides nothing.

    Raises
    ------
    UserError : `gate.min_recall` names a class that there is not.
    """
    numbers = evaluate(said.probabilities, labels, said.sets)
    before = evaluate(champion.probabilities, labels, champion.sets) if champion else None
    checks = [
        (_f1_floor(numbers, settings), before and before.macro_f1),
        (_recall_floors(numbers, slugs, settings), None),
        (_calibration(numbers, said, settings), before and before.ece_equal_count),
        (_coverage(numbers, said, settings), before and before.coverage),
    ]
    return [check.model_copy(update={"reference": reference}) for check, reference in checks]


def checks_against(
    labels: np.ndarray,
    candidate: HeldOutPredictions,
    champion: HeldOutPredictions,
    slugs: Sequence[str],
    settings: GateSettings,
) -> list[GateCheck]:
    """What compares a candidate with the champion on the same images, labels int64 (n,)."""
    compared = [_Compared.accuracy(labels, candidate, champion, settings.chance)]
    compared.append(_Compared.macro_f1(labels, candidate, champion, settings.chance))
    checks = [_not_worse(each, settings) for each in compared]
    if settings.require == "better":
        checks.append(_better(compared, settings))
    return [*checks, _recall_kept(labels, candidate.called, champion.called, slugs, settings)]


# --- the candidate alone ------------------------------------------------------------------------------------------


def _f1_floor(numbers: Evaluation, settings: GateSettings) -> GateCheck:
    value, floor = numbers.macro_f1, settings.min_macro_f1
    words = f"{value:.3f}, gate.min_macro_f1 is {floor:.3f}"
    return GateCheck(
        name="macro_f1_floor", passed=value >= floor, value=value, limit=floor, reference=None, words=words
    )


def _recall_floors(numbers: Evaluation, slugs: Sequence[str], settings: GateSettings) -> GateCheck:
    """Each class with a floor; a class without test images shows nothing, so its floor is not reached."""
    floors = settings.min_recall
    if unknown := sorted(set(floors) - set(slugs)):
        raise UserError(f"gate.min_recall: no class {', '.join(unknown)}; there are {', '.join(slugs)}")
    name = "recall_floors"
    if not floors:
        words = "gate.min_recall names no class"
        return GateCheck(name=name, passed=True, value=None, limit=None, reference=None, words=words)
    recall = {slug: numbers.recall[slugs.index(slug)] for slug in floors}
    short = [slug for slug, floor in floors.items() if not recall[slug] >= floor]  # NaN reaches none
    told = [f"{slug} {_recall_words(recall[slug])} of at least {floors[slug]:.2f}" for slug in short or floors]
    worst = min(floors, key=lambda slug: -1.0 if np.isnan(recall[slug]) else recall[slug] - floors[slug])
    value = None if np.isnan(recall[worst]) else recall[worst]
    return GateCheck(
        name=name, passed=not short, value=value, limit=floors[worst], reference=None, words=", ".join(told)
    )


def _recall_words(recall: float) -> str:
    return "without test images" if np.isnan(recall) else f"{recall:.2f}"


def _calibration(numbers: Evaluation, said: HeldOutPredictions, settings: GateSettings) -> GateCheck:
    value = numbers.ece_equal_count
    honest = ece_limit(said.probabilities.max(axis=1), settings.chance, _BINS, _SEED)
    limit = max(settings.max_ece, honest)
    words = (
        f"{value:.3f} on {numbers.n} images; gate.max_ece is {settings.max_ece:.3f}, and honest confidences stay below "
        f"{honest:.3f} with {_percent(1 - settings.chance)}"
    )
    return GateCheck(name="calibration", passed=value <= limit, value=value, limit=limit, reference=None, words=words)


def _coverage(numbers: Evaluation, said: HeldOutPredictions, settings: GateSettings) -> GateCheck:
    rate = numbers.coverage or 0.0
    wanted = max(0.0, said.coverage - settings.coverage_slack)
    p = coverage_p_value(round(rate * numbers.n), numbers.n, wanted, said.calibrated_on)
    words = (
        f"sets hold the truth of {_percent(rate)} of {numbers.n} images, {_percent(said.coverage)} are promised; "
        f"probability of so few at {_percent(wanted)}: {p:.2g}"
    )
    return GateCheck(
        name="coverage",
        passed=rate >= wanted or p >= settings.chance,
        value=rate,
        limit=wanted,
        reference=None,
        words=words,
    )


# --- against the champion -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Compared:
    """One measure of both models: the ends of the interval of its gain, and the probabilities that chance explains it.

    `worse` is that of a loss as large or larger for equal models, `better` that of such a gain.
    """

    name: str
    candidate: float
    champion: float
    low: float
    high: float
    worse: float
    better: float
    images: str

    @classmethod
    def accuracy(
        cls, labels: np.ndarray, candidate: HeldOutPredictions, champion: HeldOutPredictions, chance: float
    ) -> _Compared:
        right, before = candidate.called == labels, champion.called == labels
        gained, lost = int((right & ~before).sum()), int((before & ~right).sum())
        low, high = gain_interval(gained, lost, len(labels), chance)
        worse, better = mcnemar_p_value(gained, lost), mcnemar_p_value(lost, gained)
        images = f"{gained} images gained and {lost} lost of {len(labels)}"
        return cls("accuracy", float(right.mean()), float(before.mean()), low, high, worse, better, images)

    @classmethod
    def macro_f1(
        cls, labels: np.ndarray, candidate: HeldOutPredictions, champion: HeldOutPredictions, chance: float
    ) -> _Compared:
        called, before = candidate.called, champion.called
        low, high = np.quantile(bootstrap_f1_gains(labels, called, before, _SEED), [chance, 1 - chance])
        worse, better = f1_p_value(labels, called, before, _SEED), f1_p_value(labels, before, called, _SEED)
        now, then = macro_f1(labels, called), macro_f1(labels, before)
        return cls("macro_f1", now, then, float(low), float(high), worse, better, f"{len(labels)} images")

    def words(self, chance: float) -> str:
        """The gain with its interval."""
        return (
            f"{self.candidate:.3f} against {self.champion:.3f}: {self.candidate - self.champion:+.3f}, "
            f"{_percent(1 - 2 * chance)} interval {self.low:+.3f} to {self.high:+.3f}, {self.images}"
        )


def _not_worse(compared: _Compared, settings: GateSettings) -> GateCheck:
    """Refused where the loss is shown to be beyond the margin.

    Both must show it: the interval, which knows the margin, and the exact test, which keeps its level however few the
    images are.
    """
    worse = compared.high < -settings.margin and compared.worse < settings.chance
    words = compared.words(settings.chance) + f"; probability of such a loss by chance {compared.worse:.2g}"
    return GateCheck(
        name=compared.name,
        passed=not worse,
        value=compared.candidate,
        limit=compared.champion - settings.margin,
        reference=compared.champion,
        words=words,
    )


def _better(compared: list[_Compared], settings: GateSettings) -> GateCheck:
    """Passed where one of the measures shows a gain beyond the margin, by the same two conditions.

    A candidate as good as the champion passes by chance with a probability of up to twice `chance`, as two are asked.
    """
    shown = [each for each in compared if each.low > settings.margin and each.better < settings.chance]
    best = max(shown or compared, key=lambda each: each.low)
    told = (
        "a gain is shown" if shown else f"no gain of more than {settings.margin:.3f} is shown (gate.require = better)"
    )
    return GateCheck(
        name="improvement",
        passed=bool(shown),
        value=best.candidate - best.champion,
        limit=settings.margin,
        reference=None,
        words=f"{told}: {best.name} {best.words(settings.chance)}",
    )


def _recall_kept(
    labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray, slugs: Sequence[str], settings: GateSettings
) -> GateCheck:
    """Refused where a class lost more than `gate.recall_drop`, and more than chance explains in any of the classes.

    Within a class recall is accuracy, so that McNemar's exact test tells; its level is shared out over the classes
    (Bonferroni).
    """
    classes = np.unique(labels)
    drops: dict[int, float] = {}
    told: dict[int, str] = {}
    refused: list[int] = []
    for label in classes.tolist():
        inside = labels == label
        right, before = candidate[inside] == label, champion[inside] == label
        drops[label] = float(before.mean() - right.mean())
        p = mcnemar_p_value(int((right & ~before).sum()), int((before & ~right).sum()))
        told[label] = f"{slugs[label]} {before.mean():.2f} → {right.mean():.2f} on {inside.sum()} images (p = {p:.2g})"
        if drops[label] > settings.recall_drop and p < settings.chance / len(classes):
            refused.append(label)
    worst = max(refused or drops, key=lambda label: drops[label])
    where = labels == worst
    return GateCheck(
        name="recall",
        passed=not refused,
        value=float((candidate[where] == worst).mean()),
        limit=float((champion[where] == worst).mean()) - settings.recall_drop,
        reference=float((champion[where] == worst).mean()),
        words=("lost: " if refused else "most changed for the worse: ")
        + ", ".join(told[k] for k in refused or [worst]),
    )


# --- the sky, the clock -------------------------------------------------------------------------------------------


def check_flips(candidate: np.ndarray, champion: np.ndarray, left_out: str, settings: GateSettings) -> GateCheck:
    """Labels int64 (n,) of the same reliable objects of the sky; `left_out` tells which objects are not among them."""
    n, changed = len(champion), int((candidate != champion).sum())
    if n == 0:
        return not_measured("flips", f"no reliable object of the sample is there; {left_out}")
    share, limit = changed / n, settings.max_flips
    p = binomial_p_value(changed, n, limit)
    words = f"{changed} of {n} reliable labels change; probability of so many at {_percent(limit)}: {p:.2g}; {left_out}"
    return GateCheck(
        name="flips",
        passed=share <= limit or p >= settings.chance,
        value=share,
        limit=limit,
        reference=None,
        words=words,
    )


def check_speed(candidate: float, champion: float, words: str, settings: GateSettings) -> GateCheck:
    """Images a second of both models on the same images, in turn; `words` tell on what."""
    least = settings.min_speed * champion
    return GateCheck(
        name="speed",
        passed=candidate >= least,
        value=candidate,
        limit=least,
        reference=champion,
        words=f"{candidate:.1f} images/s against {champion:.1f}, {words}",
    )


def not_measured(name: str, reason: str) -> GateCheck:
    """A check that could not be made; it passes and says so."""
    return GateCheck(name=name, passed=True, value=None, limit=None, reference=None, words=f"not measured: {reason}")


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
