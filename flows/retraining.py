"""The retrain flow: labels → candidate → gate → promotion → re-classification.

The steps are functions of `pipeline.promotion.retraining`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from catalogs.releases.registry import current_release
from flows.runtime.progress import kept_by_prefect
from flows.runtime.retries import if_transient
from flows.survey import survey
from models.artifacts.registry import champion
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.core.times import run_id_of
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.loading import open_source
from pipeline.promotion import retraining as steps
from pipeline.promotion import retraining_trigger as trigger
from pipeline.promotion.retraining_trigger import LabelSet, RetrainingResult
from pipeline.runs.locks import AlreadyRunning, exclusive, retraining_lock
from pipeline.runs.run_log import logging_to


@task(cache_policy=NO_CACHE)
def freeze(workspace: Workspace, version: str | None) -> LabelSet | None:
    """The labels to train on: those of a version that is named, else the newest once no more come, if any are due."""
    if version:
        return trigger.label_set(workspace, version)
    if trigger.due(workspace) is None:
        return None
    trigger.wait_until_quiet(workspace)
    return trigger.due(workspace)


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5, retry_condition_fn=if_transient)
def fit(workspace: Workspace, labels: LabelSet, images: ImageSet) -> str:
    with kept_by_prefect():
        return steps.train_candidate(workspace, labels, images).model_id


@task(cache_policy=NO_CACHE)
def measure(workspace: Workspace, images: ImageSet, candidate: str) -> None:
    steps.measure(workspace, images, candidate)


@task(cache_policy=NO_CACHE)
def decide(workspace: Workspace, labels: LabelSet, images: ImageSet, candidate: str) -> RetrainingResult:
    result, verdict = steps.decide(workspace, labels, images, candidate)
    create_markdown_artifact(verdict.to_markdown(), key="gate-verdict", description=verdict.why)
    return result


@flow(name="retrain")
def retrain(
    workspace: str,
    labels: str | None = None,
    source: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
    event: str | None = None,
    reclassify: bool = True,
    scheduled: bool = False,
) -> dict[str, Any]:
    """Train on the labels of people that the champion has not learned from, and let the gate decide.

    It depends on state, not on what started it: it waits until no more labels come, and goes on until the champion has
    learned from the labels in force or the gate has refused the candidate that did. So a run that finds another one
    under way may end, because that one will see the same labels.

    Parameters
    ----------
    workspace : folder of the workspace.
    labels : the version of the labels to train on; the newest when left out.
    source : fields of a `pipeline.datasets.loading.ImageSource`; the workspace's own benchmark file when left out.
    overrides : settings as `section.key=value`.
    event : what started it, for the record.
    reclassify : whether a new champion classifies the sky again.
    scheduled : nobody waits for this run: if another retraining is under way, it ends as "Skipped", not as failed.

    Returns
    -------
    outcome : "nothing to do", "refused", "promoted" or "promoted before" (of the last label set); rounds : a
    `pipeline.promotion.retraining_trigger.RetrainingResult` for each label set; release : what readers see afterwards.

    Raises
    ------
    pipeline.runs.locks.AlreadyRunning : another retraining is under way.
    """
    opened = open_workspace(Path(workspace), overrides or [])
    try:
        with (
            exclusive(retraining_lock(opened.models), event or "by hand", "retraining"),
            logging_to(opened, "retrain", run_id_of(datetime.now(UTC))),
        ):
            rounds = _rounds(opened, labels, source)
    except AlreadyRunning as busy:
        if not scheduled:
            raise
        return Completed(name="Skipped", message=str(busy))  # type: ignore[return-value]  # the run's state
    if reclassify and _release_lags(opened):
        survey(workspace, overrides=overrides, wait=opened.settings.retraining.wait, scheduled=True)
    published = current_release(opened.catalog)
    return {
        "outcome": rounds[-1].outcome if rounds else "nothing to do",
        "rounds": [one.to_dict() for one in rounds],
        "champion": champion(opened.models),
        "release": published.release if published else None,
    }


def _rounds(workspace: Workspace, version: str | None, source: dict[str, Any] | None) -> list[RetrainingResult]:
    """Retrain until no labels are due but those that were tried; labels that come meanwhile have another round."""
    logger = get_run_logger()
    rounds: list[RetrainingResult] = []
    while True:
        labels = freeze(workspace, version)
        if labels is None or labels.digest in {one.labels.digest for one in rounds}:
            return rounds
        logger.info("%d labels of version %s", labels.labels, labels.version)
        images = open_source(workspace, source)
        if steps.nothing_to_learn(workspace, labels, images):
            logger.warning("none of them can be used for training: all are of held-out images, or of no object")
            return rounds
        candidate = fit(workspace, labels, images)
        measure(workspace, images, candidate)
        result = decide(workspace, labels, images, candidate)
        logger.info("%s: %s", result.outcome, result.why)
        rounds.append(result)


def _release_lags(workspace: Workspace) -> bool:
    """Whether readers see the catalogue of another model than the champion."""
    published = current_release(workspace.catalog)
    return published is not None and published.model_id != champion(workspace.models)
