"""The checks of the gate: from the predictions of two models for the same images to verdicts with numbers and reasons.

Arrays in, checks out: no files, no networks. A candidate is refused where the numbers show that it is bad, not where
they are too few to show that it is good: each comparison allows for chance, with probability `gate.significance`.
Floors are strict.
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

_SEED = 0x6A7E  # of every random draw: the same numbers give the same verdict
_BINS = 15  # of the calibration error, as in models.metrics


@dataclass(frozen=True)
class HeldOutPredictions:
    """The predictions of one model for the test images.

    probabilities : float32 (n, C), calibrated; sets : bool (n, C), its prediction sets.
    coverage : what the sets promise, 0 … 1; calibrated_on : number of images behind the thresholds of the sets.
    """

    probabilities: np.ndarray
    sets: np.ndarray
    coverage: float
    calibrated_on: int

    @property
    def classes(self) -> np.ndarray:
        """The most probable class of each image: int64 (n,)."""
        return self.probabilities.argmax(axis=1)


def not_measured(name: str, reason: str) -> GateCheck:
    """A check that could not be made: it passes and gives the reason."""
    return GateCheck(name=name, passed=True, words=f"not measured: {reason}")


# --- the candidate alone ------------------------------------------------------------------------------------------


def check_candidate(
    labels: np.ndarray,
    candidate: HeldOutPredictions,
    slugs: Sequence[str],
    settings: GateSettings,
    champion: HeldOutPredictions | None = None,
) -> list[GateCheck]:
    """What needs no champion: floors of macro-F1 and recall, calibration error, coverage.

    labels : int64 (n,). The numbers of a champion on the same images are given for people and decide nothing.

    Raises
    ------
    UserError : `gate.min_recall` names an unknown class.
    """
    numbers = evaluate(candidate.probabilities, labels, candidate.sets)
    before = evaluate(champion.probabilities, labels, champion.sets) if champion else None
    checks = [
        (_f1_floor(numbers, settings), before and before.macro_f1),
        (_recall_floors(numbers, slugs, settings), None),
        (_calibration(numbers, candidate, settings), before and before.ece_equal_count),
        (_coverage(numbers, candidate, settings), before and before.coverage),
    ]
    return [check.model_copy(update={"reference": reference}) for check, reference in checks]


def _f1_floor(numbers: Evaluation, settings: GateSettings) -> GateCheck:
    value, floor = numbers.macro_f1, settings.min_macro_f1
    return GateCheck(
        name="macro_f1_floor",
        passed=value >= floor,
        value=value,
        limit=floor,
        words=f"{value:.3f}, gate.min_macro_f1 is {floor:.3f}",
    )


def _recall_floors(numbers: Evaluation, slugs: Sequence[str], settings: GateSettings) -> GateCheck:
    """Each class with a floor; a class without test images has no recall, so it does not reach its floor."""
    floors = settings.min_recall
    if unknown := sorted(set(floors) - set(slugs)):
        raise UserError(f"gate.min_recall: no class {', '.join(unknown)}; the classes are {', '.join(slugs)}")
    if not floors:
        return GateCheck(name="recall_floors", passed=True, words="gate.min_recall names no class")
    recall = {slug: numbers.recall[slugs.index(slug)] for slug in floors}
    texts = {slug: "without test images" if np.isnan(value) else f"{value:.2f}" for slug, value in recall.items()}
    short = [slug for slug, floor in floors.items() if not recall[slug] >= floor]  # NaN reaches no floor
    worst = min(floors, key=lambda slug: -1.0 if np.isnan(recall[slug]) else recall[slug] - floors[slug])
    return GateCheck(
        name="recall_floors",
        passed=not short,
        value=None if np.isnan(recall[worst]) else recall[worst],
        limit=floors[worst],
        words=", ".join(f"{slug} {texts[slug]} of at least {floors[slug]:.2f}" for slug in short or floors),
    )


def _calibration(numbers: Evaluation, candidate: HeldOutPredictions, settings: GateSettings) -> GateCheck:
    value = numbers.ece_equal_count
    honest = ece_limit(candidate.probabilities.max(axis=1), settings.significance, _BINS, _SEED)
    limit = max(settings.max_ece, honest)
    return GateCheck(
        name="calibration",
        passed=value <= limit,
        value=value,
        limit=limit,
        words=f"{value:.3f} on {numbers.n} images; gate.max_ece is {settings.max_ece:.3f}, and honest confidences stay "
        f"below {honest:.3f} with a probability of {_percent(1 - settings.significance)}",
    )


def _coverage(numbers: Evaluation, candidate: HeldOutPredictions, settings: GateSettings) -> GateCheck:
    rate = numbers.coverage or 0.0
    limit = max(0.0, candidate.coverage - settings.coverage_slack)
    p = coverage_p_value(round(rate * numbers.n), numbers.n, limit, candidate.calibrated_on)
    return GateCheck(
        name="coverage",
        passed=rate >= limit or p >= settings.significance,
        value=rate,
        limit=limit,
        words=f"sets hold the true class of {_percent(rate)} of {numbers.n} images, {_percent(candidate.coverage)} are "
        f"promised; probability of so few at {_percent(limit)}: {p:.2g}",
    )


# --- against the champion -----------------------------------------------------------------------------------------


def check_against_champion(
    labels: np.ndarray,
    candidate: HeldOutPredictions,
    champion: HeldOutPredictions,
    slugs: Sequence[str],
    settings: GateSettings,
) -> list[GateCheck]:
    """What compares a candidate with the champion on the same images: accuracy, macro-F1, recall; labels int64 (n,)."""
    new, old = candidate.classes, champion.classes
    gains = [
        _accuracy_gain(labels, new, old, settings.significance),
        _macro_f1_gain(labels, new, old, settings.significance),
    ]
    checks = [_not_worse(gain, settings) for gain in gains]
    if settings.require == "better":
        checks.append(_better(gains, settings))
    return [*checks, _recall_kept(labels, new, old, slugs, settings)]


@dataclass(frozen=True)
class _PairedGain:
    """A measure of both models, the interval of its gain, and how probable it is that chance alone gives such a gain.

    low, high : ends of the interval; beyond each the truth lies with probability `significance`.
    p_worse : probability of a loss as large or larger for equal models; p_better : of such a gain.
    """

    name: str
    candidate: float
    champion: float
    low: float
    high: float
    p_worse: float
    p_better: float
    images: str
    significance: float

    @property
    def text(self) -> str:
        """The gain with its interval."""
        return (
            f"{self.candidate:.3f} against {self.champion:.3f}: {self.candidate - self.champion:+.3f}, "
            f"{_percent(1 - 2 * self.significance)} interval {self.low:+.3f} to {self.high:+.3f}, {self.images}"
        )


def _accuracy_gain(labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray, significance: float) -> _PairedGain:
    right, before = candidate == labels, champion == labels
    gained, lost = int((right & ~before).sum()), int((before & ~right).sum())
    low, high = gain_interval(gained, lost, len(labels), significance)
    return _PairedGain(
        name="accuracy",
        candidate=float(right.mean()),
        champion=float(before.mean()),
        low=low,
        high=high,
        p_worse=mcnemar_p_value(gained, lost),
        p_better=mcnemar_p_value(lost, gained),
        images=f"{gained} images gained and {lost} lost of {len(labels)}",
        significance=significance,
    )


def _macro_f1_gain(labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray, significance: float) -> _PairedGain:
    gains = bootstrap_f1_gains(labels, candidate, champion, _SEED)
    low, high = np.quantile(gains, [significance, 1 - significance])
    return _PairedGain(
        name="macro_f1",
        candidate=macro_f1(labels, candidate),
        champion=macro_f1(labels, champion),
        low=float(low),
        high=float(high),
        p_worse=f1_p_value(labels, candidate, champion, _SEED),
        p_better=f1_p_value(labels, champion, candidate, _SEED),
        images=f"{len(labels)} images",
        significance=significance,
    )


def _not_worse(gain: _PairedGain, settings: GateSettings) -> GateCheck:
    """Refused where the loss is shown to be beyond the margin.

    Both must show it: the interval, which takes account of the margin, and the exact test, which keeps its level
    however few the images are.
    """
    worse = gain.high < -settings.margin and gain.p_worse < settings.significance
    return GateCheck(
        name=gain.name,
        passed=not worse,
        value=gain.candidate,
        limit=gain.champion - settings.margin,
        reference=gain.champion,
        words=f"{gain.text}; probability of such a loss by chance {gain.p_worse:.2g}",
    )


def _better(gains: Sequence[_PairedGain], settings: GateSettings) -> GateCheck:
    """Passed where one of the measures shows a gain beyond the margin, by the same two conditions.

    A candidate as good as the champion passes by chance with a probability of up to twice the significance, as two
    measures are tested.
    """
    shown = [gain for gain in gains if gain.low > settings.margin and gain.p_better < settings.significance]
    best = max(shown or gains, key=lambda gain: gain.low)
    result = "a gain" if shown else f"no gain of more than {settings.margin:.3f}"
    note = "" if shown else " (gate.require = better)"
    return GateCheck(
        name="improvement",
        passed=bool(shown),
        value=best.candidate - best.champion,
        limit=settings.margin,
        words=f"{result} is shown{note}: {best.name} {best.text}",
    )


def _recall_kept(
    labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray, slugs: Sequence[str], settings: GateSettings
) -> GateCheck:
    """Refused where a class lost more than `gate.recall_drop`, and more than chance explains in any of the classes.

    Within a class recall is accuracy, so McNemar's exact test applies; its level is shared out over the classes
    (Bonferroni).
    """
    classes = np.unique(labels).tolist()
    recalls: dict[int, tuple[float, float]] = {}  # of the candidate and of the champion
    texts: dict[int, str] = {}
    refused: list[int] = []
    for label in classes:
        inside = labels == label
        right, before = candidate[inside] == label, champion[inside] == label
        new, old = recalls[label] = float(right.mean()), float(before.mean())
        p = mcnemar_p_value(int((right & ~before).sum()), int((before & ~right).sum()))
        texts[label] = f"{slugs[label]} {old:.2f} → {new:.2f} on {inside.sum()} images (p = {p:.2g})"
        if old - new > settings.recall_drop and p < settings.significance / len(classes):
            refused.append(label)
    worst = max(refused or classes, key=lambda label: recalls[label][1] - recalls[label][0])
    new, old = recalls[worst]
    lost = ", ".join(texts[label] for label in refused)
    return GateCheck(
        name="recall",
        passed=not refused,
        value=new,
        limit=old - settings.recall_drop,
        reference=old,
        words=f"lost: {lost}" if refused else f"most changed for the worse: {texts[worst]}",
    )


# --- labels on the sky, and speed ---------------------------------------------------------------------------------


def check_flips(candidate: np.ndarray, champion: np.ndarray, left_out: str, settings: GateSettings) -> GateCheck:
    """How many labels of objects on the sky change.

    candidate, champion : labels int64 (n,) of the same reliable objects; left_out : which objects are not among them.
    """
    n, changed = len(champion), int((candidate != champion).sum())
    if n == 0:
        return not_measured("flips", f"no reliable object of the sample is left; {left_out}")
    share, limit = changed / n, settings.max_flips
    p = binomial_p_value(changed, n, limit)
    return GateCheck(
        name="flips",
        passed=share <= limit or p >= settings.significance,
        value=share,
        limit=limit,
        words=f"{changed} of {n} reliable labels change; probability of so many at {_percent(limit)}: {p:.2g}; "
        f"{left_out}",
    )


def check_speed(candidate: float, champion: float, measurement: str, settings: GateSettings) -> GateCheck:
    """Images per second of both models on the same images; `measurement` says how they were measured."""
    limit = settings.min_speed * champion
    return GateCheck(
        name="speed",
        passed=candidate >= limit,
        value=candidate,
        limit=limit,
        reference=champion,
        words=f"{candidate:.1f} images/s against {champion:.1f}, {measurement}",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
