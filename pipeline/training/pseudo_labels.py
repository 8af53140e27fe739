"""Learning from unlabelled sky: confident rows of our own catalogue as further training images.

A teacher, the model of the current release, has named the galaxies of the sky; a student learns from the labelled
images and from the surest of these names, under noise (Noisy Student: Xie et al. 2020, arXiv 1911.04252; here with the
label itself instead of the probabilities). What comes from the sky joins the training split only, and never an object
at the position of an image that is there already: validation and test stay what they were. Pixels are read again from
the sky tiles by the readers of the survey and must be those that the teacher saw.
"""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pyarrow as pa

from catalogs.query.sql import query
from catalogs.releases.registry import ReleaseInfo, current_release
from models.artifacts.registry import ModelCard, load_card
from models.artifacts.weights import preprocessing_of
from models.preprocessing import Preprocessing
from pipeline.config.training import TrainingSettings
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.splits import position_groups
from pipeline.survey.catalog_pixels import ROW_COLUMNS, load_catalog_pixels
from pipeline.training.training_set import ExtraExamples, TrainingSet, require_positions

_log = logging.getLogger(__name__)


def with_pseudo_labels(workspace: Workspace, lesson: TrainingSet, recipe: Preprocessing) -> TrainingSet:
    """Join confident rows of the current release to the training split of a lesson.

    `recipe` is that of the training. The pixels are read once and kept in the cache.

    Raises
    ------
    UserError : there is no release, its teacher looks at other classes or images than these, validation or test images
        have no position on the sky, sky tiles change meanwhile, or no row can be used.
    """
    release = current_release(workspace.catalog)
    if release is None:
        raise UserError(
            f"training.pseudo_labels: no release in {workspace.catalog} to take labels from; run `morphcat survey`"
        )
    teacher = load_card(workspace.models, release.model_id)
    _require_same_kind(teacher, lesson.labelled, recipe)
    require_positions(lesson.labelled, lesson.split, "training.pseudo_labels")
    rows, left_out = _select(workspace, lesson.images, release)
    fields = load_catalog_pixels(workspace, preprocessing_of(teacher), recipe, rows, "reading pseudo-labelled objects")
    left_out |= fields.left_out()
    if len(fields.usable) == 0:
        raise UserError(_nothing(workspace.settings.training, release, left_out))
    _log.info("%d pseudo-labelled images from release %s; left out: %s", len(fields.usable), release.release, left_out)
    rows = rows.take(fields.usable)
    origin = f"pseudo:{release.release}:{release.model_id}"
    digest = hashlib.sha256(rows["object_id"].to_numpy().tobytes() + rows["input_digest"].to_numpy().tobytes())
    sky = ExtraExamples(
        rows=rows,
        labels=rows["label_id"].to_numpy().astype(np.int64),
        fields=fields,
        origin=origin,
        content=f"{origin}:{release.content}|{digest.hexdigest()}",
        told={"confidence": rows["confidence"]},
    )
    remarks = _remarks(teacher, lesson, rows.num_rows, release)
    return lesson.joined_by(sky, recipe, data={"left_out": left_out}, remarks=remarks)


def _require_same_kind(teacher: ModelCard, images: ImageSet, recipe: Preprocessing) -> None:
    theirs = preprocessing_of(teacher)
    for what, found, expected in (
        ("classes", teacher.class_slugs, list(images.class_slugs)),
        ("rendering", theirs.rendering, recipe.rendering),
        ("field of view", theirs.field_pixels, recipe.field_pixels),
    ):
        if found != expected:
            raise UserError(
                f"training.pseudo_labels: the {what} of the release's model {teacher.model_id} ({found}) differs from "
                f"that of {images.source} ({expected}); its labels cannot be used for these images"
            )


def _select(workspace: Workspace, images: ImageSet, release: ReleaseInfo) -> tuple[pa.Table, dict[str, int]]:
    """Rows of the release to learn from, the surest first, and how many were left out for their position."""
    settings = workspace.settings.training
    # More than are wanted of each class, for some will be at the position of a labelled image.
    most = settings.pseudo_per_class + len(images)
    rows = query(
        workspace.catalog,
        f"""SELECT {ROW_COLUMNS}, starts_with(survey_layer, 'simulated') AS simulated, label_id, confidence
            FROM morphology JOIN tiles USING (tile_id)
            WHERE label_id >= 0 AND is_reliable AND confidence >= {settings.pseudo_confidence}::FLOAT
              AND ood_score <= {settings.pseudo_novelty}::FLOAT
            QUALIFY row_number() OVER (PARTITION BY label_id ORDER BY confidence DESC, object_id) <= {most}
            ORDER BY confidence DESC, object_id""",
        release=release.release,
    )
    groups = position_groups(
        np.concatenate([images.ra, rows["ra"].to_numpy()]), np.concatenate([images.dec, rows["dec"].to_numpy()])
    )
    labelled, own = groups[: len(images)], groups[len(images) :]
    near = np.isin(own, labelled)
    first = np.zeros(len(own), dtype=bool)
    first[np.unique(own, return_index=True)[1]] = True
    kept = np.flatnonzero(~near & first)
    kept = kept[_rank_in_class(rows["label_id"].to_numpy()[kept]) < settings.pseudo_per_class]
    left_out = {"at a labelled position": int(near.sum()), "twice at one position": int((~near & ~first).sum())}
    return rows.take(kept), left_out


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many entries of the same label stand before each: int64 (n,)."""
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return rank


def _remarks(teacher: ModelCard, lesson: TrainingSet, count: int, release: ReleaseInfo) -> tuple[str, ...]:
    said = [
        f"Also trained on {count} images of the sky with labels by {teacher.model_id} (release {release.release}), not "
        "by people."
    ]
    if (teacher.data["digest"], teacher.split_digest) != (lesson.labelled.digest, lesson.split.digest):
        said.append(
            f"{teacher.model_id}, which gave these labels, was trained on other images or another split: it may have "
            "seen test images of this model, whose test numbers may then be too good."
        )
        _log.warning(said[-1])
    return tuple(said)


def _nothing(settings: TrainingSettings, release: ReleaseInfo, left_out: dict[str, int]) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    return (
        f"training.pseudo_labels: no row of release {release.release} can be used: expected is_reliable, confidence of "
        f"at least {settings.pseudo_confidence} and ood_score of at most {settings.pseudo_novelty}"
        + (f"; left out: {counts}" if counts else "")
        + "; lower training.pseudo_confidence, or survey again where tiles changed"
    )
