"""Labelled images: their pixels in a file that is written once and mapped; their digest; their statistics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch

from models.preprocessing import Preprocessing
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import UserError
from pipeline.datasets import pixel_cache
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.datasets.image_set import ImageSet, channel_statistics
from pipeline.datasets.loading import ImageSource, open_images
from tests.pipeline.makers import hdf5_columns, picture, write_hdf5, write_pictures, write_table

RECIPE = Preprocessing(image_size=24, field_pixels=24)


def written(path: Path, count: int = 6, **columns: np.ndarray) -> ImageSet:
    write_hdf5(path, {**hdf5_columns(count), "ans": np.arange(count) % 10, **columns})
    return open_galaxy10(path, InputSettings())


def cached(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.u8"))


def mapped_file(pixels: torch.Tensor) -> str:
    """The file that the memory of a tensor is a mapping of; empty for anonymous memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= pixels.data_ptr() < last:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    raise AssertionError("memory of nobody")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
def test_pixels_are_no_memory_of_the_process(tmp_path: Path) -> None:
    pixels = written(tmp_path / "g.h5").pixels(RECIPE, tmp_path / "cache")
    (file,) = cached(tmp_path / "cache")
    assert mapped_file(pixels) == str(file) and file.stat().st_size == pixels.numel() == 6 * 3 * 24 * 24
    assert mapped_file(torch.zeros(2**20)) in ("", "[heap]")


def test_pixels_are_written_once_and_never_through_the_tensor(tmp_path: Path, as_was: Callable) -> None:
    images = written(tmp_path / "g.h5")
    pixels = images.pixels(RECIPE, tmp_path / "cache")
    with as_was(tmp_path / "cache"):
        again = written(tmp_path / "g.h5")  # the same content with another time of change …
        os.utime(tmp_path / "g.h5", ns=(0, 0))
        pixels[:] = 0
        assert images.labels.tolist() == again.labels.tolist()
    unchanged = open_galaxy10(tmp_path / "g.h5", InputSettings())
    first = unchanged.pixels(RECIPE, tmp_path / "cache")
    with as_was(tmp_path / "cache"):
        second = open_galaxy10(tmp_path / "g.h5", InputSettings()).pixels(RECIPE, tmp_path / "cache")
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[2].permute(1, 2, 0), picture(2))
    assert len(cached(tmp_path / "cache")) == 2  # … has pixels of its own


def test_pixels_that_the_digest_does_not_look_at_are_read_again_when_the_file_changed(tmp_path: Path) -> None:
    columns = hdf5_columns(40)
    images = written(tmp_path / "g.h5", 40)
    before = images.pixels(RECIPE, tmp_path / "cache").clone()
    columns["images"][1] = 255 - columns["images"][1]  # not among the sixteen
    other = written(tmp_path / "g.h5", 40, images=columns["images"])
    assert other.digest == images.digest
    after = other.pixels(RECIPE, tmp_path / "cache")
    assert (after[1] != before[1]).any() and (after[2:] == before[2:]).all()


def test_another_size_is_another_file_and_another_normalisation_is_not(tmp_path: Path) -> None:
    images = written(tmp_path / "g.h5")
    images.pixels(RECIPE, tmp_path / "cache")
    images.pixels(replace(RECIPE, mean=(0.5, 0.5, 0.5)), tmp_path / "cache")
    assert len(cached(tmp_path / "cache")) == 1
    assert images.pixels(replace(RECIPE, image_size=12), tmp_path / "cache").shape == (6, 3, 12, 12)
    assert len(cached(tmp_path / "cache")) == 2


def test_a_file_of_another_size_is_written_again_and_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    images = written(tmp_path / "g.h5")
    images.pixels(RECIPE, tmp_path / "cache")
    (file,) = cached(tmp_path / "cache")
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    left = file.with_name(f".{file.name}.0123456789ab")
    left.write_bytes(b"half")
    images.pixels(RECIPE, tmp_path / "cache")
    assert file.read_bytes() == whole and not left.exists()


def test_those_who_ask_at_once_wait_for_one_writer(tmp_path: Path) -> None:
    images = written(tmp_path / "g.h5")
    started = Barrier(3)
    reads = []

    def counted() -> Iterator[np.ndarray]:
        reads.append(1)
        yield from images.raw()

    def ask(_: int) -> int:
        started.wait()
        return int(replace(images, raw=counted).pixels(RECIPE, tmp_path / "cache").sum())

    with ThreadPoolExecutor(3) as threads:
        sums = list(threads.map(ask, range(3)))
    assert len(reads) == 1 and len(cached(tmp_path / "cache")) == 1
    assert set(sums) == {int(images.pixels(RECIPE, tmp_path / "cache").sum())}


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    images = written(tmp_path / "g.h5")

    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((2, 24, 24, 3), np.uint8)
        raise UserError("the third image cannot be read")

    with pytest.raises(UserError, match="third image"):
        replace(images, raw=broken).pixels(RECIPE, tmp_path / "cache")
    with pytest.raises(UserError, match="2 images, 6 when it was opened"):
        replace(images, raw=lambda: iter([np.zeros((2, 24, 24, 3), np.uint8)])).pixels(RECIPE, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_a_source_that_changes_while_it_is_read(tmp_path: Path) -> None:
    images = written(tmp_path / "g.h5")

    def slow() -> Iterator[np.ndarray]:
        yield np.zeros((6, 24, 24, 3), np.uint8)
        os.utime(tmp_path / "g.h5", ns=(1, 1))

    with pytest.raises(UserError, match="changed while it was read"):
        replace(images, raw=slow).pixels(RECIPE, tmp_path / "cache")
    (tmp_path / "g.h5").unlink()
    with pytest.raises(UserError, match="no longer there"):
        images.pixels(RECIPE, tmp_path / "cache")


def test_no_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"need 1000000000\.0 GB, .*folders\.cache"):
        pixel_cache.ensure_pixels(tmp_path / "huge.u8", (10**18,), lambda file: None)
    assert cached(tmp_path) == []


def test_the_digest_follows_classes_and_official_test_rows(tmp_path: Path) -> None:
    images = written(tmp_path / "g.h5")
    others = (
        replace(images, class_slugs=("other", *images.class_slugs[1:])),
        replace(images, official_test=np.array([4, 5])),
        replace(images, official_test=np.array([], dtype=np.int64), field_pixels=32),
        replace(images, rendering="other"),
    )
    assert len({images.digest, *(other.digest for other in others)}) == 5


# --- normalisation --------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_training_rows() -> None:
    rng = np.random.default_rng(0)
    levels = np.array([50, 100, 150])[:, None, None]
    pixels = torch.from_numpy((levels + rng.integers(-20, 21, (100, 3, 16, 16))).astype(np.uint8))
    pixels[50:] = 255
    mean, std = channel_statistics(pixels, np.arange(50))
    values = pixels[:50].double() / 255
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), atol=6e-5)
    np.testing.assert_allclose(std, values.permute(1, 0, 2, 3).flatten(1).std(1, correction=0), atol=6e-5)
    normalised = Preprocessing(image_size=16, mean=mean, std=std).to_input(pixels[:50])
    assert normalised.mean().abs() < 1e-2 and (normalised.std() - 1).abs() < 1e-2


def test_statistics_of_many_rows_are_those_of_some_spread_evenly() -> None:
    pixels = torch.arange(250, dtype=torch.uint8).repeat_interleave(40)[:, None, None, None].expand(-1, 3, 2, 2)
    mean, _ = channel_statistics(pixels, np.arange(10_000))
    np.testing.assert_allclose(mean, 124.5 / 255, atol=2e-3)


def test_statistics_without_contrast_or_rows() -> None:
    _, std = channel_statistics(torch.full((4, 3, 8, 8), 9, dtype=torch.uint8), np.arange(4))
    assert min(std) > 0
    with pytest.raises(UserError, match="no training images"):
        channel_statistics(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), np.array([], dtype=np.int64))


# --- sources --------------------------------------------------------------------------------------------------------


def test_a_source_is_opened_by_its_kind(tmp_path: Path) -> None:
    written(tmp_path / "g.h5")
    write_pictures(tmp_path / "pictures", 3)
    table = write_table(tmp_path / "labels.csv", [{"file": f"p{i:03d}.jpg", "morph": i} for i in range(3)])

    def opened(**source: object) -> ImageSet:
        travelled = ImageSource.model_validate(ImageSource.model_validate(source).model_dump(mode="json"))
        return open_images(travelled, InputSettings())

    assert opened(kind="galaxy10", path=tmp_path / "g.h5").kind == "galaxy10"
    pictures = opened(kind="pictures", path=tmp_path / "pictures", table=table, label_column="morph")
    assert pictures.kind.startswith("pictures:") and pictures.labels.tolist() == [0, 1, 2]
    for wrong, message in (
        ({"kind": "galaxy10", "path": tmp_path / "gone.h5"}, "gone.h5: no such file"),
        ({"kind": "pictures", "path": tmp_path / "gone", "table": table}, "gone: no such folder"),
        ({"kind": "pictures", "path": tmp_path / "pictures"}, "need a table of labels"),
        ({"kind": "cifar10", "path": tmp_path / "pictures"}, "batches.meta"),
        ({"kind": "tiny_imagenet", "path": tmp_path / "pictures"}, "wnids.txt cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            opened(**wrong)
