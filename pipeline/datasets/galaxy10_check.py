"""Looking through a file of the Galaxy10 layout: is it the published one, is it usable, what is remarkable in it.

Everything is read in chunks; memory does not grow with the file but for sixteen bytes an image.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.core.classes import CLASS_SLUGS, GALAXY10_CLASSES
from pipeline.core.errors import UserError, is_transient
from pipeline.core.parsing import PARSE_ERRORS
from pipeline.core.progress import track
from pipeline.datasets.galaxy10 import PUBLISHED_SHA256, Galaxy10Layout, image_blocks, problems, read_layout
from pipeline.datasets.splits import SAME_POSITION, position_groups

_MEGABYTE = 10**6
_READ = 2**22  # bytes of the file at a time


@dataclass(frozen=True)
class Galaxy10Check:
    """What a file holds. `problems` make it unusable for training; everything else is for the reader to judge.

    `counts` by class slug; `scales` images by pixel scale, arcsec; `equal_positions`, `conflicting_positions` sky
    positions (within 1 arcsec) of several rows whose labels are all the same, or not; `blank` rows whose pixels are all
    equal; `identical` groups of rows whose images are the same, byte for byte.
    """

    path: str
    sha256: str
    simulated: bool = False
    datasets: dict[str, str] = field(default_factory=dict)
    images: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    scales: dict[str, int] = field(default_factory=dict)
    equal_positions: int = 0
    conflicting_positions: int = 0
    blank: list[int] = field(default_factory=list)
    identical: list[list[int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return not self.problems

    @property
    def published(self) -> bool:
        """Whether it is the file of the public record, byte for byte."""
        return self.sha256 == PUBLISHED_SHA256

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a script."""
        published_counts = {c.slug: c.galaxy10_count for c in GALAXY10_CLASSES}
        return {
            **asdict(self),
            "usable": self.usable,
            "published": self.published,
            "published_sha256": PUBLISHED_SHA256,
            "published_counts": published_counts,
            "counts_as_published": self.counts == published_counts,
        }


def check_galaxy10(path: Path) -> Galaxy10Check:
    """Read the whole file and say what is in it.

    Raises
    ------
    UserError : there is no such file. A file that cannot be used is no error here: `problems` says why.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `morphcat galaxy10 fetch` downloads the published one")
    sha256 = _sha256(path)
    try:
        layout = read_layout(path)
    except UserError as error:
        return Galaxy10Check(str(path), sha256, datasets=_datasets(path), problems=[str(error)])
    found = problems(layout)
    counts = np.bincount(layout.labels[layout.labels >= 0], minlength=len(CLASS_SLUGS))[: len(CLASS_SLUGS)]
    if absent := [slug for slug, count in zip(CLASS_SLUGS, counts, strict=True) if count == 0]:
        found.append(f"no example of {', '.join(absent)}")
    blank: list[int] = []
    identical: list[list[int]] = []
    try:
        blank, identical = _blank_and_identical(path, layout.shape[0])
    except UserError as error:
        found.append(str(error))
    equal, conflicting = _shared_positions(layout)
    return Galaxy10Check(
        path=str(path),
        sha256=sha256,
        simulated=layout.simulated,
        datasets=_datasets(path),
        images=layout.shape[0],
        counts=dict(zip(CLASS_SLUGS, counts.tolist(), strict=True)),
        scales=_scales(layout),
        equal_positions=equal,
        conflicting_positions=conflicting,
        blank=blank,
        identical=identical,
        problems=found,
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        track(f"checksum of {path.name}, MB", path.stat().st_size // _MEGABYTE) as step,
    ):
        done = 0
        while piece := file.read(_READ):
            digest.update(piece)
            before, done = done, done + len(piece)
            step(done // _MEGABYTE - before // _MEGABYTE, "")
    return digest.hexdigest()


def _datasets(path: Path) -> dict[str, str]:
    """Type and shape of each dataset at the top of the file; nothing of a file that is no HDF5."""
    try:
        with h5py.File(path, "r") as file:
            return {name: f"{item.dtype} {item.shape}" for name, item in file.items() if isinstance(item, h5py.Dataset)}
    except PARSE_ERRORS as error:
        if is_transient(error):
            raise
        return {}


def _blank_and_identical(path: Path, count: int) -> tuple[list[int], list[list[int]]]:
    """Rows of blank images, and groups of rows whose images are the same."""
    blank: list[int] = []
    same: defaultdict[bytes, list[int]] = defaultdict(list)
    row = 0
    with track(f"looking at the images of {path.name}", count) as step:
        for block in image_blocks(path):
            for image in block:
                if (image == image[0, 0]).all():
                    blank.append(row)
                same[hashlib.blake2b(image.tobytes(), digest_size=16).digest()].append(row)
                row += 1
            step(len(block), "")
    return blank, [rows for rows in same.values() if len(rows) > 1]


def _shared_positions(layout: Galaxy10Layout) -> tuple[int, int]:
    """How many sky positions have several rows: with equal labels, with conflicting ones."""
    if not {"ra", "dec"} <= layout.columns.keys():
        return 0, 0
    groups = position_groups(layout.columns["ra"], layout.columns["dec"], SAME_POSITION)
    labels: defaultdict[int, list[int]] = defaultdict(list)
    for group, label in zip(groups.tolist(), layout.labels.tolist(), strict=True):
        labels[group].append(label)
    several = [set(of_group) for of_group in labels.values() if len(of_group) > 1]
    conflicting = sum(len(of_group) > 1 for of_group in several)
    return len(several) - conflicting, conflicting


def _scales(layout: Galaxy10Layout) -> dict[str, int]:
    values = layout.columns.get("pxscale", np.array([]))
    return dict(sorted(Counter(f"{value:.4g}" for value in values).items()))
