"""The gate: whether a trained model may take the place of the champion, as a verdict with its numbers.

Both models predict the frozen test split and a frozen sample of the sky, and their speed is measured.
`pipeline.promotion.checks` decides what the numbers mean. A verdict is written once: comparing the same models again
returns it. Nothing is promoted here.
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
    check_against_champion,
    check_candidate,
    check_flips,
    check_speed,
    not_measured,
)
from pipeline.promotion.decision import Decision, GateCheck, decision_path, read_decision, write_decision
from pipeline.promotion.sky_sample import SkySample, sky_sample

_log = logging.getLogger(__name__)

_ROUNDS = 5  # in which the speed of each model is measured
_ROUND_IMAGES = 256  # fewer where the slower model would take longer than the next number
_ROUND_SECONDS = 5.0


def compare(workspace: Workspace, images: ImageSet, candidate: str, champion: str | None = None) -> Decision:
    """Judge a model against a champion, the present one unless another is named, by the policy in `[gate]`.

    Where there is no champion, only what needs no comparison is checked. The verdict is written into the folder of the
    candidate. If there is one of the same models, images, policy and sky sample, that one is returned.

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
    depends_on = [candidate, present, images.digest, card.split_digest, policy, sky]
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
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


@dataclass(frozen=True)
class _Contender:
    """A model and its predictions of the test split."""

    card: ModelCard
    predictor: Predictor
    run: PredictedSplit

    @property
    def predictions(self) -> HeldOutPredictions:
        sets = self.card.conformal
        probabilities = self.run.probabilities
        return HeldOutPredictions(probabilities, sets.sets(probabilities), sets.coverage, sum(sets.counts))


def _checks(
    workspace: Workspace, images: ImageSet, card: ModelCard, before: ModelCard | None, sample: SkySample | str
) -> list[GateCheck]:
    """Every check that can be made, in the order in which people read them."""
    settings, slugs = workspace.settings.gate, card.class_slugs
    candidate = _contender(workspace, images, card)
    labels, predictions = candidate.run.labels, candidate.predictions
    if before is None:
        return check_candidate(labels, predictions, slugs, settings)
    comparable = _comparable(card, before)
    if not comparable.passed:
        alone = check_candidate(labels, predictions, slugs, settings)
        return [comparable, *alone, _flips(workspace, candidate.predictor, _predictor(workspace, before), sample)]
    champion = _contender(workspace, images, before)
    return [
        comparable,
        *check_against_champion(labels, predictions, champion.predictions, slugs, settings),
        *check_candidate(labels, predictions, slugs, settings, champion.predictions),
        _flips(workspace, candidate.predictor, champion.predictor, sample),
        _speed(workspace, images, candidate, champion),
    ]


def _contender(workspace: Workspace, images: ImageSet, card: ModelCard) -> _Contender:
    run = predict_test_split(workspace, images, card.model_id)
    return _Contender(card, _predictor(workspace, card), run)


def _predictor(workspace: Workspace, card: ModelCard) -> Predictor:
    """The predictor of a model; after `predict_test_split` this is the one that is loaded already."""
    return predictor_for(workspace.models, card.model_id, chosen_device(workspace.settings.workers.device))


def _comparable(candidate: ModelCard, champion: ModelCard) -> GateCheck:
    """Whether neither model was trained on an image that the other is tested on."""
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
    return GateCheck(name="comparable", passed=not differ, words=words)


def _flips(workspace: Workspace, candidate: Predictor, champion: Predictor, sample: SkySample | str) -> GateCheck:
    """Let both models predict the sample of the sky; count changed labels where those of the champion are reliable."""
    if isinstance(sample, str):
        return not_measured("flips", sample)
    if candidate.card.class_slugs != champion.card.class_slugs:
        return not_measured("flips", "the models have different classes")
    if not _field(candidate.preprocessing) == _field(champion.preprocessing) == _field(sample.preprocessing):
        return not_measured("flips", "the models, or that of the sample, need different fields of view or renderings")
    catalog = sample.pixels(workspace)
    scales = sample.rows["pixscale"].to_numpy()
    new, old = (
        predictor.predict(catalog.pixels(predictor.preprocessing, scales, catalog.usable)).probabilities
        for predictor in (candidate, champion)
    )
    reliable = old.max(axis=1) >= RELIABLE_CONFIDENCE
    counts = {**catalog.left_out(), f"{champion.card.model_id} is unsure": int((~reliable).sum())}
    left_out = f"of {len(catalog.status)} objects of release {sample.release} left out: " + ", ".join(
        f"{reason} {count}" for reason, count in counts.items()
    )
    new_labels, old_labels = new.argmax(axis=1)[reliable], old.argmax(axis=1)[reliable]
    return check_flips(new_labels, old_labels, left_out, workspace.settings.gate)


def _field(preprocessing: Preprocessing) -> tuple[object, ...]:
    """What a preprocessing needs of a stamp, whatever the image size of the network."""
    return preprocessing.field_pixels, preprocessing.pixel_scales, preprocessing.rendering, preprocessing.colour


def _speed(workspace: Workspace, images: ImageSet, candidate: _Contender, champion: _Contender) -> GateCheck:
    """Time both models on the same test images, in turn, so that whatever else the machine does slows both."""
    slower = min(candidate.run.images_per_second, champion.run.images_per_second)
    rows = candidate.run.rows[: max(1, min(_ROUND_IMAGES, int(slower * _ROUND_SECONDS)))]
    seconds: tuple[list[float], list[float]] = ([], [])
    pixels = [
        images.pixels(each.predictor.preprocessing, workspace.cache)[torch.from_numpy(rows)]
        for each in (candidate, champion)
    ]
    for _ in range(_ROUNDS):
        for each, batch, times in zip((candidate, champion), pixels, seconds, strict=True):
            started = time.perf_counter()
            each.predictor.predict(batch)
            times.append(time.perf_counter() - started)
    speeds = [len(rows) / statistics.median(times) for times in seconds]
    measurement = f"medians of {_ROUNDS} rounds of {len(rows)} images on {candidate.run.device}"
    return check_speed(speeds[0], speeds[1], measurement, workspace.settings.gate)
