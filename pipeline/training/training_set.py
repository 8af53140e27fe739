"""What a network is trained on: labelled images, and objects of the sky whose labels come from elsewhere.

Objects of the sky join the training split only, so that a model is measured on the same images with them and without.
Which objects join, and why, is known to `pseudo_labels` and `human_labels`, not here.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.preprocessing import Preprocessing
from pipeline.core.errors import UserError
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.splits import Split
from pipeline.survey.catalog_pixels import CatalogPixels, field_scales

LABELLED = "labelled"  # the origin of labels that came with the images
REPLACED = "replaced"  # the same, of images that are not trained on because a person said something else
LABELS_FILE = "labels.parquet"

_ORIGINS = pa.schema(
    [
        ("source_name", pa.string()),
        ("object_id", pa.int64()),
        ("origin", pa.string()),
        ("confidence", pa.float32()),
        ("author", pa.string()),
        ("version", pa.string()),
        ("time", pa.string()),
    ]
)
"""Of an image: what it is, and where its label comes from. `object_id` is −1 and `confidence` NaN if there is none;
`author`, `version` and `time` are those of the labels store, empty if no person of it gave the label."""


@dataclass(frozen=True, kw_only=True)
class ExtraExamples:
    """Objects of the sky with labels, to join a training set; k of them.

    rows : a row of the release each, with the columns of `catalog_pixels.ROW_COLUMNS` and `simulated`, bool.
    labels : int64 (k,), numbers of classes.
    fields : their pixels: row i is the i-th of `fields.usable`.
    origin : where the labels come from, in a word; `origin_columns` are further columns of `_ORIGINS`.
    content : what determines the pixels.
    """

    rows: pa.Table
    labels: np.ndarray
    fields: CatalogPixels
    origin: str
    content: str
    origin_columns: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What a network is trained on.

    `labelled` and `split` are the images with their own labels, and their frozen split. `images` begins with these
    images, row by row; what joined from the sky stands behind. `parts.validation` and `parts.test` are those of
    `split`; `parts.train` ends with the rows from the sky, a row several times where it is seen so often in an epoch,
    and is without the rows `replaced` (int64). `origins` has a row for each image from the sky. `data` are further
    entries of a card, `remarks` sentences for it.
    """

    labelled: ImageSet
    split: Split
    images: ImageSet
    parts: Split
    replaced: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    origins: pa.Table = field(default_factory=_ORIGINS.empty_table)
    data: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, images: ImageSet, parts: Split) -> TrainingSet:
        """Labelled images alone."""
        return cls(labelled=images, split=parts, images=images, parts=parts)

    def extended(
        self,
        sky: ExtraExamples,
        preprocessing: Preprocessing,
        *,
        repeats: int = 1,
        without: np.ndarray | None = None,
        data: dict[str, Any],
        remarks: tuple[str, ...],
    ) -> TrainingSet:
        """The training set with objects of the sky in its training split, each seen `repeats` times in an epoch.

        `without` are training rows int64 that are no longer trained on.
        """
        own = len(self.images) + np.arange(len(sky.labels))
        leaving = np.empty(0, dtype=np.int64) if without is None else without
        train = self.parts.train[~np.isin(self.parts.train, leaving)]
        return replace(
            self,
            images=_joined(self.images, sky, preprocessing),
            parts=replace(self.parts, train=np.concatenate([train, np.repeat(own, repeats)])),
            replaced=np.concatenate([self.replaced, leaving]),
            origins=pa.concat_tables([self.origins, _origins(sky)]),
            data={**self.data, **data},
            remarks=(*self.remarks, *remarks),
        )

    def card_data(self) -> dict[str, Any]:
        """Entries for the `data` of a model card; none when all images are labelled."""
        if self.origins.num_rows == 0:
            return {}
        labelled = int((self.parts.train < len(self.labelled)).sum())
        return {
            "simulated": self.images.simulated,
            "origins": {LABELLED: labelled, **Counter(self.origins["origin"].to_pylist())},
            **self.data,
        }

    def files(self) -> dict[str, str | bytes]:
        """Files for the model folder: the origin of every label; none when all images are labelled."""
        return {LABELS_FILE: self._labels_table()} if self.origins.num_rows else {}

    def _labels_table(self) -> bytes:
        """Parquet: the number of every row, its label, and the columns of `_ORIGINS`."""
        count, stem = len(self.labelled), Path(self.labelled.source).name
        origin = np.full(count, LABELLED, dtype=object)
        origin[self.replaced] = REPLACED
        given = {
            "source_name": [f"{stem}#{row}" for row in range(count)],
            "object_id": np.full(count, -1),
            "origin": origin,
            "confidence": np.full(count, np.nan, dtype=np.float32),
            **dict.fromkeys(("author", "version", "time"), np.full(count, "", dtype=object)),
        }
        table = pa.concat_tables([pa.table(given, schema=_ORIGINS), self.origins])
        labels = self.images.labels
        table = table.append_column("row", pa.array(np.arange(len(labels))))
        table = table.append_column("label_id", pa.array(labels.astype(np.int16)))
        table = table.append_column("label", pa.array([self.images.class_slugs[label] for label in labels]))
        first = ["row", "source_name", "object_id", "label_id", "label"]
        table = table.select([*first, *(name for name in _ORIGINS.names if name not in first)])
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()


def require_positions(images: ImageSet, parts: Split, setting: str) -> None:
    """Raise UserError unless all validation and test images have a position; `setting` is what needs it."""
    held_out = np.concatenate([parts.validation, parts.test])
    unknown = int((~np.isfinite(images.ra[held_out]) | ~np.isfinite(images.dec[held_out])).sum())
    if unknown:
        raise UserError(
            f"{setting}: {unknown} of {len(held_out)} validation and test images of {images.source} have no position "
            f"on the sky, so that they could come back unnoticed as training images; give ra and dec, or train without "
            f"{setting}"
        )


def _origins(sky: ExtraExamples) -> pa.Table:
    empty = np.full(len(sky.labels), "", dtype=object)
    columns = {
        "source_name": sky.rows["source_name"],
        "object_id": sky.rows["object_id"],
        "origin": np.full(len(sky.labels), sky.origin, dtype=object),
        "confidence": np.full(len(sky.labels), np.nan, dtype=np.float32),
        **dict.fromkeys(("author", "version", "time"), empty),
        **sky.origin_columns,
    }
    return pa.table(columns, schema=_ORIGINS)


def _joined(images: ImageSet, sky: ExtraExamples, preprocessing: Preprocessing) -> ImageSet:
    """The images with those of the sky behind them."""
    raw, rows = images.raw, sky.rows
    return replace(
        images,
        labels=np.concatenate([images.labels, sky.labels]),
        ra=np.concatenate([images.ra, rows["ra"].to_numpy()]),
        dec=np.concatenate([images.dec, rows["dec"].to_numpy()]),
        pixscale=np.concatenate([images.pixscale, field_scales(rows["pixscale"].to_numpy(), preprocessing)]),
        raw=lambda: chain(raw(), sky.fields.chunks(sky.fields.usable)),
        files=(*images.files, *sky.fields.files),
        content=f"{images.content}|{sky.content}",
        simulated=images.simulated or any(rows["simulated"].to_pylist()),
    )
