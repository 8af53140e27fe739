"""CIFAR and Tiny ImageNet in the layouts in which they are published, with a few images of random colours."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from models.preprocessing import Preprocessing
from pipeline.core.errors import UserError
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.reference_sets import open_cifar10, open_cifar100, open_tiny_imagenet
from pipeline.datasets.safe_pickle import read_plain_pickle
from pipeline.datasets.splits import split

CIFAR10_NAMES = [f"kind {i}" for i in range(10)]
CIFAR100_NAMES = [f"fine_{i}" for i in range(100)]


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote, as in the published files: byte strings, and numpy's names of that time."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(value)) + value)

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{value.__name__}\n".encode())

    dispatch[bytes] = save_bytes
    dispatch[str] = lambda self, value: self.save_bytes(value.encode("latin1"))
    dispatch[type(np.ndarray)] = save_global
    dispatch[type(len)] = save_global
    dispatch[type(lambda: 0)] = save_global


def python2_pickle(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    path.write_bytes(buffer.getvalue())


def planes(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def cifar10_python(folder: Path, count: int = 10) -> Path:
    place = folder / "cifar-10-batches-py"
    meta = {"num_cases_per_batch": count, "label_names": CIFAR10_NAMES, "num_vis": 3072}
    python2_pickle(place / "batches.meta", meta)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        labels = [(i + k) % 10 for k in range(count)]
        python2_pickle(place / name, {"data": planes(i, count), "labels": labels, "batch_label": name})
    return folder


def cifar10_binary(folder: Path, count: int = 10) -> Path:
    place = folder / "cifar-10-batches-bin"
    place.mkdir(parents=True)
    (place / "batches.meta.txt").write_text("\n".join(CIFAR10_NAMES) + "\n\n")
    for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        labels = np.array([[(i + k) % 10] for k in range(count)], dtype=np.uint8)
        (place / name).write_bytes(np.hstack([labels, planes(i, count)]).tobytes())
    return folder


def cifar100_python(folder: Path) -> Path:
    python2_pickle(folder / "meta", {"fine_label_names": CIFAR100_NAMES, "coarse_label_names": ["c"] * 20})
    for i, (name, count) in enumerate((("train", 300), ("test", 100))):
        fine = [k % 100 for k in range(count)]
        content = {"data": planes(i, count), "fine_labels": fine, "coarse_labels": [0] * count, "filenames": ["x"]}
        python2_pickle(folder / name, content)
    return folder


def cifar100_binary(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "fine_label_names.txt").write_text("\n".join(CIFAR100_NAMES))
    for i, (name, count) in enumerate((("train.bin", 300), ("test.bin", 100))):
        labels = np.array([[7, k % 100] for k in range(count)], dtype=np.uint8)
        (folder / name).write_bytes(np.hstack([labels, planes(i, count)]).tobytes())
    return folder


def tiny_imagenet(folder: Path) -> Path:
    wnids = ["n02", "n01", "n03"]
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tbee\nn99\tunused\n")
    rng = np.random.default_rng(0)

    def save(path: Path, mode: str = "RGB") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        image.convert(mode).save(path, format="JPEG")

    for wnid in wnids:
        for i in range(4):
            save(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", "L" if i == 3 else "RGB")
    lines = []
    for i in range(6):
        save(folder / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{wnids[i % 3]}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    save(folder / "test" / "images" / "test_0.JPEG")
    return folder


def raw(images: ImageSet) -> np.ndarray:
    return np.concatenate(list(images.raw()))


@pytest.mark.parametrize("make", [cifar10_python, cifar10_binary])
def test_cifar10(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    images = open_cifar10(make(tmp_path / "set"))
    assert len(images) == 60 and images.kind == "cifar10" and images.rendering == "srgb" and images.field_pixels == 32
    assert images.class_names == tuple(CIFAR10_NAMES) and images.class_slugs[3] == "kind_3"
    assert images.labels[:12].tolist() == [*range(10), 1, 2]
    assert images.official_test is not None and images.official_test.tolist() == list(range(50, 60))
    assert np.isnan(images.ra).all() and np.isnan(images.pixscale).all()
    found = raw(images)
    assert found.shape == (60, 32, 32, 3)
    red, green, blue = planes(5, 10)[3].reshape(3, 32, 32)  # of the test batch
    np.testing.assert_array_equal(found[53], np.stack([red, green, blue], axis=-1))
    pixels = images.pixels(Preprocessing(image_size=32, field_pixels=32, rendering="srgb"), tmp_path / "cache")
    np.testing.assert_array_equal(pixels[53, 0], red)
    parts = split(images, validation=0.1, test=0.5, seed=0)
    assert parts.test.tolist() == list(range(50, 60)) and len(parts.validation) == 10


@pytest.mark.parametrize("make", [cifar100_python, cifar100_binary])
def test_cifar100(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    images = open_cifar100(make(tmp_path / "set"))
    assert len(images) == 400 and len(images.class_slugs) == 100 and images.labels[205] == 5
    assert images.official_test is not None and images.official_test.tolist() == list(range(300, 400))
    np.testing.assert_array_equal(raw(images)[301, :, :, 2].ravel(), planes(1, 100)[1, 2048:])


def test_both_versions_of_cifar_are_the_same_images(tmp_path: Path) -> None:
    one, other = open_cifar10(cifar10_python(tmp_path / "a")), open_cifar10(cifar10_binary(tmp_path / "b"))
    np.testing.assert_array_equal(raw(one), raw(other))
    assert one.digest == other.digest
    assert open_cifar10(tmp_path / "a" / "cifar-10-batches-py").digest == one.digest


def test_tiny_imagenet(tmp_path: Path) -> None:
    images = open_tiny_imagenet(tiny_imagenet(tmp_path / "tiny"))
    assert len(images) == 18 and images.class_slugs == ("n02", "n01", "n03") and images.field_pixels == 64
    assert images.class_names == ("bee", "goldfish, Carassius auratus", "n03")
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [0, 1, 2] * 2
    assert images.official_test is not None and images.official_test.tolist() == list(range(12, 18))
    found = raw(images)
    assert found.shape == (18, 64, 64, 3)
    assert (found[3] == found[3][..., :1]).all()  # a grey picture
    assert images.pixels(Preprocessing(image_size=32, field_pixels=64), tmp_path / "cache").shape == (18, 3, 32, 32)


# --- what is not as it should be ------------------------------------------------------------------------------------


def test_cifar_files_that_are_missing_cut_off_or_mislabelled(tmp_path: Path) -> None:
    folder = cifar10_binary(tmp_path / "set") / "cifar-10-batches-bin"
    batch = folder / "data_batch_2.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"data_batch_2\.bin: 30729 bytes .* 3073-byte records"):
        open_cifar10(folder)
    batch.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(UserError, match=r"data_batch_2\.bin: expected labels from 0 to 9, found 0 to 10"):
        open_cifar10(folder)
    batch.unlink()
    with pytest.raises(UserError, match=r"data_batch_2\.bin missing"):
        open_cifar10(folder)
    with pytest.raises(UserError, match=r"fine_label_names\.txt, as the published archives of cifar100 do"):
        open_cifar100(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": planes(0, 2)[:, :100], "labels": [1, 2]}, "`data` is not uint8"),
        ({"labels": [1, 2]}, "`data` is not uint8"),
        ({"data": planes(0, 2), "labels": [1]}, "no list of 2 class numbers"),
        ({"data": planes(0, 2), "labels": [1, "x"]}, "no list of 2 class numbers"),
        ({"data": planes(0, 2).astype("f4"), "labels": [1, 2]}, "expected bytes"),
        ([1, 2], "expected a dict, found list"),
    ],
)
def test_pickles_that_hold_something_else(tmp_path: Path, content: object, message: str) -> None:
    folder = cifar10_python(tmp_path)
    python2_pickle(folder / "cifar-10-batches-py" / "test_batch", content)
    with pytest.raises(UserError, match=message) as error:
        open_cifar10(folder)
    assert "test_batch" in str(error.value)


class Hostile:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.how = (function, arguments)

    def __reduce__(self) -> Any:
        return self.how


@pytest.mark.parametrize("function", [os.mkdir, eval, getattr, np.load, np.ndarray.tofile, __import__])
def test_a_hostile_pickle_does_nothing(tmp_path: Path, function: Callable[..., object]) -> None:
    trace = tmp_path / "trace"
    argument = f"__import__('os').mkdir({str(trace)!r})" if function is eval else str(trace)
    (tmp_path / "batch").write_bytes(pickle.dumps({b"data": Hostile(function, argument)}, protocol=2))
    with pytest.raises(UserError, match=r"batch cannot be read as plain values and arrays \(it asks for"):
        read_plain_pickle(tmp_path / "batch")
    assert not trace.exists()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_pickle_that_is_cut_off(tmp_path: Path, kept: float) -> None:
    python2_pickle(tmp_path / "batch", {"data": planes(0, 3), "labels": [1, 2, 3]})
    whole = (tmp_path / "batch").read_bytes()
    (tmp_path / "batch").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UserError, match="cannot be read as plain values"):
        read_plain_pickle(tmp_path / "batch")


def test_what_is_wrong_in_a_tiny_imagenet(tmp_path: Path) -> None:
    folder = tiny_imagenet(tmp_path / "tiny")
    table = folder / "val" / "val_annotations.txt"
    lines = table.read_text()
    table.write_text(lines + "val_6.JPEG\tn77\t0\t0\t1\t1\n")
    with pytest.raises(UserError, match=r"val_6\.JPEG has the class 'n77'"):
        open_tiny_imagenet(folder)
    table.write_text(lines + "val_6.JPEG\tn01\t0\t0\t1\t1\n")
    with pytest.raises(UserError, match=r"names val_6\.JPEG, which is not in"):
        open_tiny_imagenet(folder)
    table.write_text(lines)
    (folder / "train" / "n01" / "images" / "n01_2.JPEG").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"n01_2\.JPEG"):
        raw(open_tiny_imagenet(folder))
