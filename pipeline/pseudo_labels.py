"""Learning from unlabelled sky: confident rows of our own catalogue as further training images.

A teacher, the model of the current release, has named the galaxies of the sky; a student learns from the labelled
images and from the surest of these names, under noise (Noisy Student: Xie et al. 2020, arXiv 1911.04252; here with the
label itself instead of the probabilities). What comes from the sky joins the training split only, and never an object
at the position of a labelled image: validation and test stay what they were. Pixels are read again from the sky tiles
by the readers of the survey and must be those that the teacher saw.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from catalogs.query import query
from catalogs.release import ReleaseInfo, current_release
from models.predictor import chosen_device
from models.recipe import Recipe
from models.registry import ModelCard, load_card
from models.weights import recipe_of
from pipeline.classify import model_pixels, pixel_digests
from pipeline.discovery import discover
from pipeline.errors import BadInput, InputChanged, UserError
from pipeline.image_sets import ImageSet
from pipeline.pixel_cache import ensure_pixels, map_pixels
from pipeline.progress import track
from pipeline.readers.tile import read_tile
from pipeline.settings import Workspace
from pipeline.sky_tiles import SkyTile
from pipeline.splits import Split, position_groups
from pipeline.stamps import StampBatch
from pipeline.training_settings import TrainingSettings

_log = logging.getLogger(__name__)

LABELLED = "labelled"  # the origin of labels that came with the images
LABELS_FILE = "labels.parquet"
_GONE, _CHANGED, _TAKEN = range(3)  # what became of a row when its pixels were read again
_BLOCK = 64


@dataclass(frozen=True)
class Lesson:
    """What a network is trained on.

    `images` begins with the labelled images, row by row as they are; the `pseudo` rows, if any, stand behind them, and
    `parts.train` ends with them. `origin` names where their labels come from, `left_out` counts rows that were
    confident and are not used, by reason; `remarks` are sentences for the card.
    """

    images: ImageSet
    parts: Split
    pseudo: pa.Table | None = None
    origin: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def card_data(self) -> dict[str, Any]:
        """Entries for the `data` of a model card; none when all images are labelled."""
        if self.pseudo is None:
            return {}
        count = self.pseudo.num_rows
        return {
            "simulated": self.images.simulated,
            "origins": {LABELLED: len(self.parts.train) - count, self.origin: count},
            "left_out": self.left_out,
        }

    def files(self) -> dict[str, str | bytes]:
        """Files for the model folder: the origin of every label; none when all images are labelled."""
        return {} if self.pseudo is None else {LABELS_FILE: _labels_table(self, self.pseudo)}


def with_pseudo_labels(workspace: Workspace, images: ImageSet, parts: Split, recipe: Recipe) -> Lesson:
    """Join confident rows of the current release to the training split of `images`.

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
    _require_same_kind(teacher, images, recipe)
    _require_positions(images, parts)
    rows, left_out = _select(workspace, images, release)
    path, fates = _read_again(workspace, release, recipe_of(teacher), recipe, rows)
    kept = np.flatnonzero(fates == _TAKEN)
    left_out |= {
        "no longer there": int((fates == _GONE).sum()),
        "other pixels than the teacher saw": int((fates == _CHANGED).sum()),
    }
    if len(kept) == 0:
        raise UserError(_nothing(workspace.settings.training, release, left_out))
    _log.info("%d pseudo-labelled images from release %s; left out: %s", len(kept), release.release, left_out)
    origin = f"pseudo:{release.release}:{release.model_id}"
    pseudo = rows.take(kept)
    return Lesson(
        images=_joined(images, pseudo, recipe, path, kept, rows.num_rows, f"{origin}:{release.content}"),
        parts=Split(np.concatenate([parts.train, len(images) + np.arange(len(kept))]), parts.validation, parts.test),
        pseudo=pseudo,
        origin=origin,
        left_out=left_out,
        remarks=_remarks(teacher, images, parts, len(kept), release),
    )


def _require_same_kind(teacher: ModelCard, images: ImageSet, recipe: Recipe) -> None:
    theirs = recipe_of(teacher)
    for what, found, expected in (
        ("classes", teacher.class_slugs, list(images.class_slugs)),
        ("rendering", theirs.rendering, recipe.rendering),
        ("field of view", theirs.field_pixels, recipe.field_pixels),
    ):
        if found != expected:
            raise UserError(
                f"training.pseudo_labels: the {what} of the release's model {teacher.model_id} ({found}) differs from "
                f"that of {images.source} ({expected}); its labels can not be used for these images"
            )


def _require_positions(images: ImageSet, parts: Split) -> None:
    held_out = np.concatenate([parts.validation, parts.test])
    unknown = int((~np.isfinite(images.ra[held_out]) | ~np.isfinite(images.dec[held_out])).sum())
    if unknown:
        raise UserError(
            f"training.pseudo_labels: {unknown} of {len(held_out)} validation and test images of {images.source} have "
            "no position on the sky, so that they could come back unnoticed as training images; give ra and dec, or "
            "train without pseudo-labels"
        )


def _select(workspace: Workspace, images: ImageSet, release: ReleaseInfo) -> tuple[pa.Table, dict[str, int]]:
    """Rows of the release to learn from, the surest first, and how many were left out for their position."""
    settings = workspace.settings.training
    # More than are wanted of each class, for some will be at the position of a labelled image.
    most = settings.pseudo_per_class + len(images)
    rows = query(
        workspace.catalog,
        f"""SELECT object_id, source_name, tile_id, origin, ra, dec, pixscale::DOUBLE AS pixscale,
                   label_id, label, confidence, input_digest, starts_with(survey_layer, 'simulated') AS simulated
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


def _read_again(
    workspace: Workspace, release: ReleaseInfo, teacher: Recipe, recipe: Recipe, rows: pa.Table
) -> tuple[Path, np.ndarray]:
    """The file of the rows' fields of view, and what became of each row, uint8 (n,).

    A record of the file is a byte, what became of the row, and the field uint8 (F, F, 3) that the recipe cuts out
    before it brings it to the network's size. So the file serves networks of any size, and its pixels pass through the
    recipe once more, like those of other image sets, to the very values that `model_pixels` gives.
    """
    tiles = _tiles(workspace, rows)
    whole = replace(recipe, image_size=recipe.field_pixels, mean=Recipe.mean, std=Recipe.std)
    what = [release.content, whole.digest, *(f"{tile.tile_id}:{tile.fingerprint}" for tile in tiles)]
    digest = hashlib.sha256("\0".join(what).encode())
    digest.update(rows["object_id"].to_numpy().tobytes() + rows["input_digest"].to_numpy().tobytes())
    path = workspace.cache / f"sky-{digest.hexdigest()[:16]}.u8"
    shape = _shape(rows.num_rows, recipe)

    def write(file: BinaryIO) -> None:
        file.truncate(shape[0] * shape[1])
        with track("reading pseudo-labelled objects", rows.num_rows) as step:
            for tile in tiles:
                for index, fate, picture in _of_tile(workspace, tile, rows, teacher, whole):
                    file.seek(index * shape[1])
                    file.write(bytes([fate]) + picture.tobytes())
                    step(1, "")

    if rows.num_rows == 0:
        return path, np.empty(0, dtype=np.uint8)
    ensure_pixels(path, shape, write)
    return path, map_pixels(path, shape)[:, 0].numpy()


def _shape(count: int, recipe: Recipe) -> tuple[int, int]:
    return count, 1 + 3 * recipe.field_pixels**2


def _tiles(workspace: Workspace, rows: pa.Table) -> list[SkyTile]:
    """The sky tiles of the rows as they are now; those whose files are gone are left out."""
    wanted = set(rows["tile_id"].to_pylist())
    home = workspace.catalog.parent
    places = sorted({home / origin for origin in rows["origin"].to_pylist() if origin})
    settings = workspace.settings
    found = discover([p for p in places if p.exists()], settings.survey.rows, settings.reading)
    return [tile for tile in found if tile.tile_id in wanted]


def _of_tile(
    workspace: Workspace, tile: SkyTile, rows: pa.Table, teacher: Recipe, whole: Recipe
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Of each row that is found in a tile: its index, what became of it, its field uint8 (F, F, 3)."""
    here = np.flatnonzero(np.array(rows["tile_id"].to_pylist()) == tile.tile_id)
    index_of = dict(zip(rows["object_id"].to_numpy()[here].tolist(), here.tolist(), strict=True))
    digests = rows["input_digest"].to_numpy()
    device = torch.device(chosen_device(workspace.settings.workers.device))
    try:
        for batch in read_tile(tile, workspace.settings.reading, workspace.settings.survey.batch):
            # An id that occurs twice in a tile stands for its first stamp, as in the survey.
            named = {stamp.object_id: stamp for stamp in reversed(batch.stamps) if stamp.object_id in index_of}
            if not named:
                continue
            wanted = StampBatch(list(named.values()))
            seen = pixel_digests(model_pixels(wanted, teacher, device))
            pictures = model_pixels(wanted, whole, device).permute(0, 2, 3, 1).cpu().numpy()
            for object_id, digest, picture in zip(named, seen, pictures, strict=True):
                index = index_of.pop(object_id)
                yield index, _TAKEN if digest == digests[index] else _CHANGED, picture
    except BadInput as bad:
        _log.warning("%s can not be read any more (%s); its objects are left out", tile.path, bad)
    except InputChanged as changed:
        raise UserError(f"training.pseudo_labels: {changed}") from changed


def _joined(
    images: ImageSet, pseudo: pa.Table, recipe: Recipe, path: Path, kept: np.ndarray, count: int, origin: str
) -> ImageSet:
    """The labelled images with the `kept` records of the file of `count` records behind them."""
    digest = hashlib.sha256(pseudo["object_id"].to_numpy().tobytes() + pseudo["input_digest"].to_numpy().tobytes())
    scale = pseudo["pixscale"].to_numpy()
    # The fields were brought to a scale of the training; where it is unknown the whole picture is the field.
    scale = np.where(recipe.is_training_scale(scale) | np.isnan(scale), scale, recipe.pixel_scales[0])
    fields = partial(_fields, path, _shape(count, recipe), recipe.field_pixels, kept)
    raw = images.raw
    return replace(
        images,
        labels=np.concatenate([images.labels, pseudo["label_id"].to_numpy().astype(np.int64)]),
        ra=np.concatenate([images.ra, pseudo["ra"].to_numpy()]),
        dec=np.concatenate([images.dec, pseudo["dec"].to_numpy()]),
        pixscale=np.concatenate([images.pixscale, scale]),
        raw=lambda: chain(raw(), fields()),
        files=(*images.files, path),
        content=f"{images.content}|{origin}|{digest.hexdigest()}",
        simulated=images.simulated or any(pseudo["simulated"].to_pylist()),
    )


def _fields(path: Path, shape: tuple[int, int], side: int, kept: np.ndarray) -> Iterator[np.ndarray]:
    """Chunks uint8 (n, side, side, 3) of the kept records."""
    records = map_pixels(path, shape)
    for start in range(0, len(kept), _BLOCK):
        block = records[torch.from_numpy(kept[start : start + _BLOCK])]
        yield block[:, 1:].reshape(-1, side, side, 3).numpy()


def _labels_table(lesson: Lesson, pseudo: pa.Table) -> bytes:
    """Parquet: of every row its name, label, where the label comes from, and how sure the teacher was.

    `object_id` is −1 and `confidence` NaN where the label came with the image.
    """
    images, count = lesson.images, pseudo.num_rows
    given = len(images) - count
    stem = Path(images.source).name
    table = pa.table(
        {
            "row": np.arange(len(images)),
            "source_name": [f"{stem}#{row}" for row in range(given)] + pseudo["source_name"].to_pylist(),
            "object_id": np.concatenate([np.full(given, -1), pseudo["object_id"].to_numpy()]),
            "label_id": images.labels.astype(np.int16),
            "label": [images.class_slugs[label] for label in images.labels],
            "origin": [LABELLED] * given + [lesson.origin] * count,
            "confidence": np.concatenate([np.full(given, np.nan, dtype=np.float32), pseudo["confidence"].to_numpy()]),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _remarks(teacher: ModelCard, images: ImageSet, parts: Split, count: int, release: ReleaseInfo) -> tuple[str, ...]:
    said = [
        f"Also trained on {count} images of the sky with labels by {teacher.model_id} (release {release.release}), not "
        "by people."
    ]
    if (teacher.data["digest"], teacher.split_digest) != (images.digest, parts.digest):
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
