"""Benchmark sets of everyday pictures as labelled images: CIFAR-10, CIFAR-100 and Tiny ImageNet, as they are published.

They come with an official test split, which is respected. They show nothing of the sky: positions and pixel scales are
unknown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.core.errors import UserError
from pipeline.datasets.image_folder import picture_blocks
from pipeline.datasets.image_set import ImageSet, RawImages
from pipeline.datasets.safe_pickle import read_plain_pickle

RENDERING = "srgb"

_CIFAR_SIDE, _TINY_SIDE = 32, 64
_PLANES = 3 * _CIFAR_SIDE**2  # bytes of a CIFAR image: three planes, red first


@dataclass(frozen=True)
class _Cifar:
    """File names and keys of one of the two sets, in its Python and its binary version."""

    kind: str
    names: str  # file of the class names, Python version
    names_key: bytes
    names_text: str  # the same, binary version
    batches: tuple[str, ...]  # the last one is the official test split
    labels_key: bytes
    label_bytes: int  # of a binary record; the last of them is the label


_CIFAR10 = _Cifar(
    kind="cifar10",
    names="batches.meta",
    names_key=b"label_names",
    names_text="batches.meta.txt",
    batches=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
    labels_key=b"labels",
    label_bytes=1,
)
_CIFAR100 = _Cifar(
    kind="cifar100",
    names="meta",
    names_key=b"fine_label_names",
    names_text="fine_label_names.txt",
    batches=("train", "test"),
    labels_key=b"fine_labels",
    label_bytes=2,
)


def open_cifar10(folder: Path) -> ImageSet:
    """Open CIFAR-10 (Krizhevsky 2009): `cifar-10-batches-py` or `cifar-10-batches-bin`, or the folder around it.

    Raises
    ------
    UserError : files are missing, damaged, or hold something else.
    """
    return _open_cifar(folder, _CIFAR10)


def open_cifar100(folder: Path) -> ImageSet:
    """Open CIFAR-100 with its 100 fine classes: `cifar-100-python` or `cifar-100-binary`, or the folder around it.

    Raises
    ------
    UserError : files are missing, damaged, or hold something else.
    """
    return _open_cifar(folder, _CIFAR100)


def open_tiny_imagenet(folder: Path) -> ImageSet:
    """Open Tiny ImageNet (`tiny-imagenet-200`): its validation pictures are the official test split.

    The published `test` folder has no labels and is not read. Class slugs are WordNet ids, names the words for them.

    Raises
    ------
    UserError : files are missing or name unknown classes.
    """
    wnids = tuple(_lines(folder / "wnids.txt"))
    number = {wnid: i for i, wnid in enumerate(wnids)}
    words = dict(line.partition("\t")[::2] for line in _lines(folder / "words.txt"))
    folders = [(folder / "train" / wnid / "images", number[wnid]) for wnid in wnids]
    train = [(path, label) for place, label in folders for path in sorted(place.glob("*.JPEG"))]
    test = list(_tiny_validation(folder / "val", number))
    if not train or not test:
        raise UserError(f"{folder}: expected pictures as train/WNID/images/*.JPEG and val/images/*.JPEG")
    paths = tuple(path.absolute() for path, _ in (*train, *test))
    sizes = "|".join(f"{path.name}:{path.stat().st_size}" for path in paths)
    return _everyday(
        folder,
        "tiny_imagenet",
        labels=[label for _, label in (*train, *test)],
        test_from=len(train),
        slugs=wnids,
        names=tuple(words.get(wnid, wnid) for wnid in wnids),
        raw=lambda: picture_blocks(paths),
        files=paths,
        content=hashlib.sha256(sizes.encode()).hexdigest()[:16],
        side=_TINY_SIDE,
    )


def _tiny_validation(folder: Path, number: dict[str, int]) -> Iterator[tuple[Path, int]]:
    table = folder / "val_annotations.txt"
    for line in _lines(table):
        name, wnid, *_ = [*line.split("\t"), ""]
        path = folder / "images" / name
        if wnid not in number:
            raise UserError(f"{table}: {name} has the class {wnid!r}, which is not in wnids.txt")
        if not path.is_file():
            raise UserError(f"{table} names {name}, which is not in {path.parent}")
        yield path, number[wnid]


def _open_cifar(folder: Path, cifar: _Cifar) -> ImageSet:
    place, binary = _find_cifar(folder, cifar)
    ending = ".bin" if binary else ""
    files = tuple((place / (name + ending)).absolute() for name in cifar.batches)
    if missing := [path.name for path in files if not path.is_file()]:
        raise UserError(f"{place}: {', '.join(missing)} missing; unpack the archive again")
    names = tuple(_lines(place / cifar.names_text)) if binary else _pickled_names(place / cifar.names, cifar)
    read = partial(_read_batch, cifar=cifar, binary=binary, num_classes=len(names))
    labels, counts, digest = [], [], hashlib.sha256()
    for path in files:
        pixels, of_batch = read(path)
        labels.extend(of_batch.tolist())
        counts.append(len(of_batch))
        digest.update(np.ascontiguousarray(pixels).data)
    return _everyday(
        folder,
        cifar.kind,
        labels=labels,
        test_from=sum(counts[:-1]),
        slugs=tuple(name.replace(" ", "_") for name in names),
        names=names,
        raw=lambda: (_rgb(read(path)[0]) for path in files),
        files=files,
        content=digest.hexdigest()[:16],
        side=_CIFAR_SIDE,
    )


def _find_cifar(folder: Path, cifar: _Cifar) -> tuple[Path, bool]:
    """The folder that holds the class names, and whether it is the binary version."""
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        for name, binary in ((cifar.names, False), (cifar.names_text, True)):
            if (place / name).is_file():
                return place, binary
    raise UserError(
        f"{folder}: neither it nor a folder in it holds {cifar.names} or {cifar.names_text}, as the published "
        f"archives of {cifar.kind} do"
    )


def _read_batch(path: Path, cifar: _Cifar, binary: bool, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (n, 3072) and labels int64 (n,) of one file."""
    pixels, labels = _binary_batch(path, cifar) if binary else _pickled_batch(path, cifar)
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= num_classes:
        found = f"{labels.min()} to {labels.max()}" if len(labels) else "none"
        raise UserError(f"{path}: expected labels from 0 to {num_classes - 1}, found {found}")
    return pixels, labels


def _binary_batch(path: Path, cifar: _Cifar) -> tuple[np.ndarray, np.ndarray]:
    record = cifar.label_bytes + _PLANES
    size = path.stat().st_size
    if size == 0 or size % record:
        raise UserError(f"{path}: {size} bytes are no whole number of {record}-byte records; the file is cut off")
    records = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, record)
    return records[:, cifar.label_bytes :], records[:, cifar.label_bytes - 1].astype(np.int64)


def _pickled_batch(path: Path, cifar: _Cifar) -> tuple[np.ndarray, np.ndarray]:
    batch = read_plain_pickle(path)
    pixels, labels = batch.get(b"data"), batch.get(cifar.labels_key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PLANES,):
        raise UserError(f"{path}: `data` is not uint8 (n, {_PLANES})")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(type(label) is int for label in labels):
        raise UserError(f"{path}: {cifar.labels_key.decode()!r} is no list of {len(pixels)} class numbers")
    return pixels, np.array(labels, dtype=np.int64)


def _pickled_names(path: Path, cifar: _Cifar) -> tuple[str, ...]:
    names = read_plain_pickle(path).get(cifar.names_key)
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes) for name in names):
        raise UserError(f"{path}: {cifar.names_key.decode()!r} is no list of names")
    return tuple(name.decode("utf-8", "replace") for name in names)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """Planes uint8 (n, 3072) to RGB uint8 (n, 32, 32, 3)."""
    return pixels.reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(0, 2, 3, 1)


def _everyday(
    folder: Path,
    kind: str,
    *,
    labels: list[int],
    test_from: int,
    slugs: tuple[str, ...],
    names: tuple[str, ...],
    raw: RawImages,
    files: tuple[Path, ...],
    content: str,
    side: int,
) -> ImageSet:
    unknown = np.full(len(labels), np.nan)
    return ImageSet(
        source=str(folder.absolute()),
        kind=kind,
        labels=np.array(labels, dtype=np.int64),
        ra=unknown,
        dec=unknown,
        pixscale=unknown,
        rendering=RENDERING,
        raw=raw,
        class_slugs=slugs,
        class_names=names,
        files=files,
        content=content,
        field_pixels=side,
        official_test=np.arange(test_from, len(labels), dtype=np.int64),
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); it belongs to the published archive") from error
