"""Learning from labels that people gave: a frozen version of the labels store as further training images.

The labels in force at one version are matched with the current release, and the pixels of their objects are read again
from the sky tiles. Where an object and a labelled image have the same position, at most one of them is used:

* at the position of a validation or test image an object is not used: the frozen split stays what it is;
* at the position of a training image the person is right: the image leaves the training split, the object joins it;
* of several labelled objects at one position the one with the newest label is used, and none if labels of one
  version contradict each other;
* labels that are no class of the images, and objects that the release does not have or could not classify, are counted
  and left out.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from catalogs.labels import store
from catalogs.query.sql import query
from catalogs.releases.registry import ReleaseInfo, current_release
from models.artifacts.registry import load_card
from models.artifacts.weights import preprocessing_of
from models.preprocessing import Preprocessing
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.splits import Split, position_groups
from pipeline.survey.catalog_pixels import ROW_COLUMNS, CatalogPixels, load_catalog_pixels
from pipeline.training.training_set import ExtraExamples, TrainingSet, require_positions

_log = logging.getLogger(__name__)

ORIGIN = "people"
NEWEST = "newest"


@dataclass(frozen=True)
class _FrozenLabels:
    """The labels in force at a version of the store; `digest` is that of which object has which label."""

    version: str
    digest: str
    labels: pa.Table


@dataclass(frozen=True)
class _ChosenLabels:
    """Labelled objects to learn from: rows of the release with the columns of the labels behind them.

    `groups` int64 (N + n,) are the groups of positions of the N images and of these rows; `left_out` counts the labels
    that are not used, by reason.
    """

    rows: pa.Table
    groups: np.ndarray
    left_out: dict[str, int]

    def replaced(self, parts: Split, rows: np.ndarray) -> np.ndarray:
        """Training rows int64 at the positions of these rows of the chosen."""
        count = len(self.groups) - self.rows.num_rows
        return parts.train[np.isin(self.groups[parts.train], self.groups[count + rows])]


def usable(workspace: Workspace, images: ImageSet, parts: Split) -> int:
    """How many labels of people a training could learn from, as far as is known without reading any pixels.

    Raises
    ------
    UserError : there is no release, or validation or test images have no position on the sky.
    catalogs.errors.CatalogError : no such version of the labels, or the store is damaged.
    """
    require_positions(images, parts, "training.labels")
    return _choose(workspace, images, parts, _release(workspace), _frozen(workspace).labels).rows.num_rows


def with_human_labels(workspace: Workspace, training_set: TrainingSet, preprocessing: Preprocessing) -> TrainingSet:
    """Join objects with labels of people to a training set; the set itself if none is in force.

    `preprocessing` is that of the training. The pixels are read once and kept in the cache.

    Raises
    ------
    UserError : there is no release, its model was trained on images of another rendering, validation or test images
        have no position on the sky, sky tiles change meanwhile, or no label can be used.
    catalogs.errors.CatalogError : no such version of the labels, or the store is damaged.
    """
    labels = _frozen(workspace)
    if labels.labels.num_rows == 0:
        return training_set
    release = _release(workspace)
    model = preprocessing_of(load_card(workspace.models, release.model_id))
    if model.rendering != preprocessing.rendering:
        raise UserError(
            f"training.labels: the release's model {release.model_id} was trained on images of rendering "
            f"{model.rendering!r}, those of {training_set.labelled.source} are {preprocessing.rendering!r}: pixels of "
            "the sky cannot join them"
        )
    require_positions(training_set.labelled, training_set.split, "training.labels")
    chosen = _choose(workspace, training_set.labelled, training_set.split, release, labels.labels)
    fields = load_catalog_pixels(workspace, model, preprocessing, chosen.rows, "reading objects with labels of people")
    left_out = chosen.left_out | fields.left_out()
    if len(fields.usable) == 0:
        raise UserError(_no_labels_message(labels, release, left_out))
    replaced = chosen.replaced(training_set.split, fields.usable)
    counts = {"used": len(fields.usable), "replaced": len(replaced), "left_out": left_out}
    _log.info("labels of people, version %s: %s", labels.version, counts)
    return training_set.extended(
        _sky_images(labels, chosen.rows.take(fields.usable), fields, training_set.labelled.class_slugs),
        preprocessing,
        repeats=workspace.settings.training.label_repeats,
        without=replaced,
        data={"labels": {"version": labels.version, "digest": labels.digest, **counts}},
        remarks=_remarks(labels, len(fields.usable), len(replaced)),
    )


def _frozen(workspace: Workspace) -> _FrozenLabels:
    """The labels that the setting `training.labels` names; none if the newest of an empty store are meant."""
    name, history = workspace.settings.training.labels, store.versions(workspace.labels)
    if name == NEWEST:
        version = history[-1].name if history else ""
    else:
        version = store.find(workspace.labels, name, history).name
    labels = store.in_force(workspace.labels, version or None)
    return _FrozenLabels(version, store.digest(labels), labels)


def _release(workspace: Workspace) -> ReleaseInfo:
    release = current_release(workspace.catalog)
    if release is None:
        raise UserError(
            f"training.labels: no release in {workspace.catalog} to find the labelled objects in; run `morphcat survey`"
        )
    return release


def _choose(
    workspace: Workspace, images: ImageSet, parts: Split, release: ReleaseInfo, labels: pa.Table
) -> _ChosenLabels:
    """The objects to learn from, in the order of their ids, before their pixels are read."""
    known = np.isin(labels["label"].to_pylist(), images.class_slugs)
    rows = _rows_of(workspace, release, labels.filter(pa.array(known)))
    classified = rows["label_id"].to_numpy() >= 0
    left_out = {
        "no class of these images": int((~known).sum()),
        "not in the release": int(known.sum()) - rows.num_rows,
        "not classified in the release": int((~classified).sum()),
    }
    rows = rows.filter(pa.array(classified))
    groups = position_groups(
        np.concatenate([images.ra, rows["ra"].to_numpy()]), np.concatenate([images.dec, rows["dec"].to_numpy()])
    )
    own = groups[len(images) :]
    held_out = np.isin(own, groups[np.concatenate([parts.validation, parts.test])])
    newest, contradicting = _newest(own, rows["version"].to_pylist(), rows["given"].to_pylist())
    kept = ~held_out & newest
    left_out |= {
        "at the position of a validation or test image": int(held_out.sum()),
        "contradicting labels at one position": int((~held_out & contradicting).sum()),
        "another label at the same position": int((~held_out & ~newest & ~contradicting).sum()),
    }
    groups = np.concatenate([groups[: len(images)], own[kept]])
    return _ChosenLabels(rows.filter(pa.array(kept)), groups, left_out)


def _rows_of(workspace: Workspace, release: ReleaseInfo, labels: pa.Table) -> pa.Table:
    """Rows of labelled objects in a release, sorted by id; `given`, `author`, `version` and `time` are of the label."""
    ids = ", ".join(map(str, labels["object_id"].to_pylist())) or "NULL"
    rows = query(
        workspace.catalog,
        f"""SELECT {ROW_COLUMNS}, starts_with(survey_layer, 'simulated') AS simulated, label_id
            FROM morphology JOIN tiles USING (tile_id)
            WHERE object_id IN ({ids}) ORDER BY object_id""",
        release=release.release,
    )
    # Both are sorted by object id, and the store has each once.
    labels = labels.filter(pa.array(np.isin(labels["object_id"].to_numpy(), rows["object_id"].to_numpy())))
    for name, column in (("given", "label"), ("author", "author"), ("version", "version"), ("time", "time")):
        rows = rows.append_column(name, labels[column])
    return rows


def _newest(groups: np.ndarray, versions: list[str], labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have the newest label of their position, and which contradict others of that version: bool (n,) each.

    Of rows that say the same the first is meant. Names of versions begin with their number.
    """
    numbers = np.array([int(name.partition("-")[0]) for name in versions], dtype=np.int64)
    newest, contradicting = np.zeros(len(groups), dtype=bool), np.zeros(len(groups), dtype=bool)
    order = np.argsort(groups, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []:
        latest = members[numbers[members] == numbers[members].max()]
        if len({labels[row] for row in latest}) == 1:
            newest[latest[0]] = True
        else:
            contradicting[latest] = True
    return newest, contradicting


def _sky_images(labels: _FrozenLabels, rows: pa.Table, fields: CatalogPixels, slugs: tuple[str, ...]) -> ExtraExamples:
    # By their pixels, not by the digests of the release, which are those of another model in the next one.
    digest = hashlib.sha256()
    for chunk in fields.chunks(fields.usable):
        digest.update(chunk.tobytes())
    return ExtraExamples(
        rows=rows,
        labels=np.array([slugs.index(label) for label in rows["given"].to_pylist()], dtype=np.int64),
        fields=fields,
        origin=ORIGIN,
        content=f"{ORIGIN}:{labels.digest}|{digest.hexdigest()}",
        origin_columns={name: rows[name] for name in ("author", "version", "time")},
    )


def _remarks(labels: _FrozenLabels, used: int, replaced: int) -> tuple[str, ...]:
    remarks = [f"Also trained on {used} objects of the sky with labels of people (version {labels.version})."]
    if replaced:
        remarks.append(f"Training images at the position of such an object, left out for it: {replaced}.")
    return tuple(remarks)


def _no_labels_message(labels: _FrozenLabels, release: ReleaseInfo, left_out: dict[str, int]) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    return (
        f"training.labels: none of the {labels.labels.num_rows} labels in force at version {labels.version} can be "
        f"used with release {release.release}"
        + (f": {counts}" if counts else "")
        + "; label other objects, survey again where tiles changed, or train without training.labels"
    )
