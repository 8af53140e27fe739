"""One object of the catalogue classified again: its pixels from the sky tile, and the prediction of its model.

`reproduce` compares both with what the catalogue holds. Nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catalogs.paths import Partition
from catalogs.query.sql import find_release, select
from catalogs.releases.id_index import find
from models.artifacts.registry import ModelCard, load_card
from models.artifacts.weights import preprocessing_of
from models.errors import ModelError
from models.inference.ensemble import Ensemble
from models.inference.predictions import UncertaintyModel
from models.inference.predictor import chosen_device, load_ensemble
from models.preprocessing import Preprocessing
from pipeline.config.workspace import Workspace
from pipeline.core.errors import BadInput, InputChanged, UserError, is_transient
from pipeline.readers.dispatch import read_tile
from pipeline.readers.stamps import Stamp, StampBatch
from pipeline.survey.plan import tiles_in
from pipeline.survey.prediction import pixel_digests, render_stamps

TOLERANCE = 3e-4  # of a probability; they are rounded to 1e-4, and another batch size alone changes them by up to 2e-4


@dataclass(frozen=True)
class CataloguedObject:
    """A row of a release: its columns by name, where its sky tile lay (`origin`), and the record of its run."""

    release: str
    row: dict[str, Any]
    origin: str
    run: dict[str, Any]

    @property
    def object_id(self) -> int:
        return int(self.row["object_id"])

    @property
    def classified(self) -> bool:
        return int(self.row["label_id"]) >= 0


@dataclass(frozen=True)
class ReloadedStamp:
    """The pixels of an object as they are now: model-ready, uint8 (1, 3, S, S), north up, and their digest."""

    pixels: Tensor
    digest: int


@dataclass(frozen=True)
class Reproduction:
    """An object as the catalogue has it and as it is classified again; `differences` are sentences, none when equal.

    `largest` is the largest difference of a probability, NaN if none were compared. `digest_again` is None, and
    `label_again` empty, where the input or the model is gone.
    """

    object_id: int
    release: str
    model_id: str
    label: str
    label_again: str
    digest: int
    digest_again: int | None
    largest: float = float("nan")
    differences: list[str] = field(default_factory=list)


def find_object(workspace: Workspace, object_id: int, release: str | None = None) -> CataloguedObject:
    """An object of a release, the current one unless another is named.

    Raises
    ------
    UserError : it is not in the release.
    catalogs.errors.CatalogError : there is no (such) release.
    """
    info, layout = find_release(workspace.catalog, release)
    pixel = find(layout, object_id)
    partitions = [Partition(*pixel, rows=0)] if pixel else []
    rows = select(layout, f"SELECT * FROM morphology WHERE object_id = {object_id:d}", among=partitions).to_pylist()
    if not rows:
        raise UserError(
            f"object {object_id} is not in release {info.release}; `morphcat cone` finds objects at a position, "
            "`morphcat quarantine list` inputs that gave no row"
        )
    (row,) = rows
    tile, run = _literal(row["tile_id"]), _literal(row["run_id"])
    tiles = select(layout, f"SELECT origin FROM tiles WHERE tile_id = {tile}", among=[]).to_pylist()
    runs = select(layout, f"SELECT * FROM runs WHERE run_id = {run}", among=[]).to_pylist()
    return CataloguedObject(info.release, row, tiles[0]["origin"] if tiles else "", runs[0] if runs else {})


def reload_pixels(workspace: Workspace, entry: CataloguedObject, preprocessing: Preprocessing) -> ReloadedStamp:
    """Read the pixels of an object from its sky tile, and prepare them for a network.

    Raises
    ------
    UserError : the tile or the object in it is gone, or cannot be read; the message says which.
    """
    stamp = _read_stamp(workspace, entry)
    pixels = render_stamps(StampBatch([stamp]), preprocessing, torch.device("cpu"))
    return ReloadedStamp(pixels, int(pixel_digests(pixels)[0]))


def _read_stamp(workspace: Workspace, entry: CataloguedObject) -> Stamp:
    """The stamp of an object, read from its sky tile as it is now."""
    origin = workspace.catalog.parent / entry.origin
    if not entry.origin or not origin.exists():
        raise UserError(f"input gone: {origin} is no longer there")
    tile_id = entry.row["tile_id"]
    tile = next((t for t in tiles_in(workspace, [origin]) if t.tile_id == tile_id), None)
    if tile is None:
        raise UserError(
            f"input gone: {origin} no longer holds sky tile {tile_id}; were survey.rows or bricks.catalogue different "
            "when it was classified?"
        )
    try:
        for batch in read_tile(tile, workspace.settings.reading, workspace.settings.survey.batch):
            for stamp in batch.stamps:
                if stamp.object_id == entry.object_id:
                    return stamp
    except (BadInput, InputChanged) as bad:
        raise UserError(f"input cannot be read: {bad}") from bad
    except OSError as error:
        if is_transient(error):
            raise
        raise UserError(f"input cannot be read: {error}") from error
    raise UserError(f"input gone: {origin} no longer holds {entry.row['source_name']}")


def model_of(workspace: Workspace, entry: CataloguedObject) -> tuple[ModelCard, Preprocessing]:
    """The card and preprocessing of the model that classified an object.

    Raises
    ------
    UserError : it is gone, or this version cannot use it.
    """
    try:
        card = load_card(workspace.models, entry.row["model_id"])
        return card, preprocessing_of(card)
    except ModelError as error:
        raise UserError(f"model gone: {error}") from error


def load_ensemble_for(workspace: Workspace, card: ModelCard) -> Ensemble:
    """The networks of a model, as a survey uses them; UserError when they are gone."""
    device = torch.device(chosen_device(workspace.settings.workers.device))
    try:
        return load_ensemble(workspace.models, card, device, workspace.settings.survey.batch)
    except ModelError as error:
        raise UserError(f"model gone: {error}") from error


def reproduce(
    workspace: Workspace, object_id: int, release: str | None = None, tolerance: float = TOLERANCE
) -> Reproduction:
    """Classify an object again from its input and compare digest, probabilities and label with the catalogue.

    Raises
    ------
    UserError : there is no such object.
    """
    entry = find_object(workspace, object_id, release)
    row = entry.row
    result = Reproduction(
        entry.object_id, entry.release, row["model_id"], row["label"], "", int(row["input_digest"]), None
    )
    try:
        card, preprocessing = model_of(workspace, entry)
        stamp = reload_pixels(workspace, entry, preprocessing)
        ensemble = load_ensemble_for(workspace, card) if entry.classified else None
    except UserError as problem:
        result.differences.append(str(problem))
        return result
    result = replace(result, digest_again=stamp.digest)
    if stamp.digest != result.digest:
        result.differences.append(
            f"input changed: the model-ready pixels have digest {stamp.digest}, the catalogue has {result.digest}"
        )
    if ensemble is None:
        return result
    model = UncertaintyModel(card.temperature, card.conformal, card.novelty)
    p = model.of(ensemble.predict(stamp.pixels)).probabilities[0]
    label = card.class_slugs[int(p.argmax())]
    largest, differences = _compare(row, p, label, card.class_slugs, tolerance)
    return replace(result, label_again=label, largest=largest, differences=result.differences + differences)


def _compare(
    row: dict[str, Any], p: np.ndarray, label: str, slugs: list[str], tolerance: float
) -> tuple[float, list[str]]:
    """The largest difference of a probability, and what differs by more than the tolerance."""
    catalogued = np.array([row[f"p_{slug}"] for slug in slugs], dtype=np.float64)
    distance = np.abs(p.astype(np.float64) - catalogued)
    differences = [
        f"numbers differ: p_{slug} is {now:.4f}, the catalogue has {before:.4f}"
        for slug, now, before, far in zip(slugs, p, catalogued, distance, strict=True)
        if not far <= tolerance  # true for NaN
    ]
    # Two classes that are equally probable within the tolerance may change places.
    if label != row["label"] and not row["confidence"] - row[f"p_{label}"] <= 2 * tolerance:
        differences.append(f"label differs: {label}, the catalogue has {row['label']}")
    return float(distance.max()), differences


def _literal(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"
