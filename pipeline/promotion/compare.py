"""The gate: whether a trained model may take the place of the champion, as a verdict with its numbers.

The two are shown the frozen test split, a frozen sample of the sky, and the clock; `pipeline.promotion.checks` says
what the numbers mean. A verdict is written once: judging again what was judged returns it. Nothing is promoted here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from catalogs.schema import RELIABLE_CONFIDENCE
from models.artifacts import registry
from models.artifacts.registry import ModelCard, load_card
from models.inference.predictor import Predictor, chosen_device, predictor_for
from models.preprocessing import Preprocessing
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.datasets.image_set import ImageSet
from pipeline.evaluation.evaluate import PredictedSplit, predict_test_split
from pipeline.promotion.checks import (
    HeldOutPredictions,
    check_flips,
    check_speed,
    checks_against,
    checks_alone,
    not_measured,
)
from pipeline.promotion.decision import Decision, GateCheck, decision_path, read_decision, write_decision
from pipeline.promotion.sky_sample import SkySample, sky_sample

_log = logging.getLogger(__name__)

_ROUNDS = 5  # times that each model is clocked
_TIMED = 256  # images a round, fewer where the slower model would take longer than:
_ROUND_SECONDS = 5.0


@dataclass(frozen=True)
class _Contender:
    """A model that was shown the test split."""

    card: ModelCard
    predictor: Predictor
    run: PredictedSplit

    @property
    def said(self) -> HeldOutPredictions:
        sets = self.card.conformal
        p = self.run.probabilities
        return HeldOutPredictions(p, sets.sets(p), sets.coverage, sum(sets.counts))


def compare(workspace: Workspace, images: ImageSet, candidate: str, champion: str | None = None) -> Decision:
    """Judge a model against a champion, the present one unless another is named, by the policy in `[gate]`.

    Where there is no champion, only what needs no comparison is checked. The verdict is written beside the candidate;
    if one of the same models, images, policy and sky sample is there, it is returned.

    Raises
    ------
    UserError : the candidate is the champion, `images` are not those of its training, it has no test split, or a sky
        tile of the sample changed while it was read.
    models.errors.ModelError : no such model, or it is damaged.
    """
    card = load_card(workspace.models, candidate)
    present = champion if champion is not None else registry.champion(workspace.models)
    if present == candidate:
        raise UserError(f"{candidate} is the champion itself; compare another model with it")
    before = load_card(workspace.models, present) if present else None
    sample = sky_sample(workspace)
    policy = workspace.settings.gate.model_dump()
    sky = sample.digest if isinstance(sample, SkySample) else ""
    what = [candidate, present, images.digest, card.split_digest, policy, sky]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    path = decision_path(workspace.models, candidate, key)
    if path.is_file():
        return read_decision(path)
    checks = _checks(workspace, images, card, before, sample)
    verdict = Decision(
        key=key,
        candidate=candidate,
        champion=present,
        passed=all(check.passed for check in checks),
        checks=checks,
        policy=policy,
        image_set=images.digest,
        split=card.split_digest,
        sky_sample=sky,
        simulated=images.simulated or (isinstance(sample, SkySample) and sample.simulated),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_decision(workspace.models, verdict)
    _log.info("%s", verdict.why)
    return verdict


def _checks(
    workspace: Workspace, images: ImageSet, card: ModelCard, before: ModelCard | None, sample: SkySample | str
) -> list[GateCheck]:
    """Every check that can be made, in the order in which people read them."""
    settings = workspace.settings.gate
    candidate = _contender(workspace, images, card)
    labels = candidate.run.labels
    if before is None:
        return checks_alone(labels, candidate.said, card.class_slugs, settings)
    comparable = _comparable(card, before)
    if not comparable.passed:
        alone = checks_alone(labels, candidate.said, card.class_slugs, settings)
        return [comparable, *alone, _flips(workspace, candidate.predictor, _predictor(workspace, before), sample)]
    champion = _contender(workspace, images, before)
    return [
        comparable,
        *checks_against(labels, candidate.said, champion.said, card.class_slugs, settings),
        *checks_alone(labels, candidate.said, card.class_slugs, settings, champion.said),
        _flips(workspace, candidate.predictor, champion.predictor, sample),
        _speed(workspace, images, candidate, champion),
    ]


def _contender(workspace: Workspace, images: ImageSet, card: ModelCard) -> _Contender:
    run = predict_test_split(workspace, images, card.model_id)
    return _Contender(card, _predictor(workspace, card), run)


def _predictor(workspace: Workspace, card: ModelCard) -> Predictor:
    """The predictor of a model; after `predict_test_split` it is the one that is loaded already."""
    return predictor_for(workspace.models, card.model_id, chosen_device(workspace.settings.workers.device))


def _comparable(candidate: ModelCard, champion: ModelCard) -> GateCheck:
    """Whether nobody was trained on an image that the other is tested on."""
    differ = [
        f"{what} ({theirs} and {ours})"
        for what, theirs, ours in (
            ("images", candidate.data["digest"], champion.data["digest"]),
            ("split", candidate.split_digest, champion.split_digest),
        )
        if theirs != ours
    ]
    words = (
        f"{candidate.model_id} and {champion.model_id} differ in {' and '.join(differ)}: one may have learned from the "
        "test images of the other, so nothing can be compared on them; train with the champion's images and split"
        if differ
        else "the same images and split"
    )
    return GateCheck(name="comparable", passed=not differ, value=None, limit=None, reference=None, words=words)


def _flips(workspace: Workspace, candidate: Predictor, champion: Predictor, sample: SkySample | str) -> GateCheck:
    """Show both the sample of the sky; labels are counted where the champion is sure of its own."""
    if isinstance(sample, str):
        return not_measured("flips", sample)
    if candidate.card.class_slugs != champion.card.class_slugs:
        return not_measured("flips", "the models know other classes")
    if not _field(candidate.recipe) == _field(champion.recipe) == _field(sample.recipe):
        return not_measured("flips", "the models, or that of the sample, want other fields of view or renderings")
    fields = sample.fields(workspace)
    scales = sample.rows["pixscale"].to_numpy()
    said = [
        predictor.predict(fields.pixels(predictor.recipe, scales, fields.usable)).probabilities
        for predictor in (candidate, champion)
    ]
    sure = said[1].max(axis=1) >= RELIABLE_CONFIDENCE
    counts = {**fields.left_out(), f"{champion.card.model_id} is unsure": int((~sure).sum())}
    left_out = f"of {len(fields.status)} objects of release {sample.release} left out: " + ", ".join(
        f"{reason} {count}" for reason, count in counts.items()
    )
    return check_flips(said[0].argmax(axis=1)[sure], said[1].argmax(axis=1)[sure], left_out, workspace.settings.gate)


def _field(recipe: Preprocessing) -> tuple[object, ...]:
    """What stamps must be like to be seen through a recipe, whatever the network's size."""
    return recipe.field_pixels, recipe.pixel_scales, recipe.rendering, recipe.colour


def _speed(workspace: Workspace, images: ImageSet, candidate: _Contender, champion: _Contender) -> GateCheck:
    """Clock both on the same test images, in turn, so that whatever else the machine does slows both."""
    slower = min(candidate.run.images_per_second, champion.run.images_per_second)
    rows = candidate.run.rows[: max(1, min(_TIMED, int(slower * _ROUND_SECONDS)))]
    seconds: tuple[list[float], list[float]] = ([], [])
    pixels = [
        images.pixels(each.predictor.recipe, workspace.cache)[torch.from_numpy(rows)] for each in (candidate, champion)
    ]
    for _ in range(_ROUNDS):
        for each, shown, times in zip((candidate, champion), pixels, seconds, strict=True):
            started = time.perf_counter()
            each.predictor.predict(shown)
            times.append(time.perf_counter() - started)
    speeds = [len(rows) / statistics.median(times) for times in seconds]
    words = f"medians of {_ROUNDS} rounds of {len(rows)} images on {candidate.run.device}"
    return check_speed(speeds[0], speeds[1], words, workspace.settings.gate)
