"""The Galaxy10 file: opened, and looked through before anything is trained on it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from models.preprocessing import Preprocessing, colour_rule
from pipeline.config.inputs import InputSettings
from pipeline.core.classes import CLASS_SLUGS
from pipeline.core.errors import UserError
from pipeline.datasets.galaxy10 import image_blocks, open_galaxy10
from pipeline.datasets.galaxy10_check import check_galaxy10
from pipeline.datasets.image_set import ImageSet
from pipeline.simulation import write_galaxy10
from tests.pipeline.makers import hdf5_columns, picture, write_hdf5

TWICE_TEN = [*range(10), *range(10)]


def galaxy10(path: Path, labels: list[int] | None = None, **columns: np.ndarray) -> Path:
    labels = [0, 1, 2, 9] if labels is None else labels
    return write_hdf5(path, {**hdf5_columns(len(labels)), "ans": np.array(labels, int), **columns})


def opened(path: Path) -> ImageSet:
    return open_galaxy10(path, InputSettings())


def test_a_galaxy10_file(tmp_path: Path) -> None:
    images = opened(galaxy10(tmp_path / "g.h5"))
    assert len(images) == 4 and images.labels.tolist() == [0, 1, 2, 9]
    assert images.labels.dtype == np.int64 and not images.simulated
    assert images.class_slugs == CLASS_SLUGS and images.field_pixels == 256 and images.official_test is None
    assert images.ra[1] == 10.02 and images.pixscale[0] == 0.262
    (chunk,) = images.raw()
    np.testing.assert_array_equal(chunk[2], picture(2))
    pixels = images.pixels(Preprocessing(image_size=24, field_pixels=24), tmp_path / "cache")
    assert pixels.dtype == torch.uint8 and pixels.shape == (4, 3, 24, 24)
    np.testing.assert_array_equal(pixels[3].permute(1, 2, 0).numpy(), picture(3))


@pytest.mark.parametrize(("rows_in_chunk", "blocks"), [(1, [64, 36]), (7, [63, 37]), (90, [90, 10])])
def test_a_chunk_of_the_file_is_unpacked_once(tmp_path: Path, rows_in_chunk: int, blocks: list[int]) -> None:
    columns = hdf5_columns(100)
    path = write_hdf5(tmp_path / "g.h5", {**columns, "ans": np.arange(100) % 10}, chunk=rows_in_chunk)
    found = list(image_blocks(path))
    assert [len(block) for block in found] == blocks
    np.testing.assert_array_equal(np.concatenate(found), columns["images"])


def test_positions_and_scales_may_be_missing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file["images"], file["ans"] = hdf5_columns(3)["images"], [1, 2, 3]
    images = opened(tmp_path / "g.h5")
    assert np.isnan(images.ra).all() and np.isnan(images.pixscale).all()


def test_the_digest_follows_labels_positions_and_pixels(tmp_path: Path) -> None:
    """Other pixels must give another model: training again what exists is a no-op."""
    path = tmp_path / "g.h5"
    columns = hdf5_columns(4)
    first = opened(galaxy10(path)).digest
    assert opened(galaxy10(tmp_path / "other.h5")).digest == first
    assert opened(galaxy10(path, [0, 1, 2, 8])).digest != first
    assert opened(galaxy10(path, ra=columns["ra"] + 1)).digest != first
    assert opened(galaxy10(path, images=255 - columns["images"])).digest != first


NAN = float("nan")


@pytest.mark.parametrize(
    ("labels", "columns", "message"),
    [
        ([0, 10], {}, "labels from 0 to 10, expected 0 to 9 (1 are outside)"),
        ([-1, 3], {}, "labels from -1 to 3"),
        ([], {}, "no labelled images"),
        ([1, 2], {"ans": np.array([1, 2, 3])}, "`ans` has shape"),
        ([1, 2], {"ans": np.array([1.0, 2.0])}, "`ans` is float64, expected class ids as integers"),
        ([1, 2], {"ra": np.array([1.0])}, "`ra` has shape"),
        ([1, 2], {"ra": np.array([1.0, NAN])}, "`ra` of 1 rows is not from 0 to 360 (row 1: nan)"),
        ([1, 2], {"dec": np.array([-91.0, 0])}, "`dec` of 1 rows is not from -90 to 90 (row 0: -91)"),
        ([1, 2], {"pxscale": np.array([0.262, 0])}, "`pxscale` of 1 rows"),
        ([1, 2], {"images": np.zeros((2, 8, 8, 4), "u1")}, "expected uint8"),
        ([1, 2], {"images": np.zeros((2, 8, 8), "u1")}, "expected uint8"),
        ([1, 2], {"images": np.zeros((2, 3, 8, 8), "f4")}, "expected uint8"),
    ],
)
def test_files_that_are_no_galaxy10(tmp_path: Path, labels: list[int], columns: dict, message: str) -> None:
    path = galaxy10(tmp_path / "g.h5", labels, **columns)
    with pytest.raises(UserError) as error:
        opened(path)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("missing", ["images", "ans"])
def test_a_missing_dataset(tmp_path: Path, missing: str) -> None:
    path = galaxy10(tmp_path / "g.h5")
    with h5py.File(path, "a") as file:
        del file[missing]
    with pytest.raises(UserError, match=r"cannot be read as a Galaxy10 file .*it needs `images`"):
        opened(path)


def damaged(path: Path) -> Path:
    """Bytes of the sixth image are other than they were; everything else can be read."""
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info_by_coord((5, 0, 0, 0))
    whole = path.read_bytes()
    path.write_bytes(whole[: chunk.byte_offset + 20] + b"\0" * 50 + whole[chunk.byte_offset + 70 :])
    return path


def test_unreadable_files_are_errors_for_a_person(tmp_path: Path) -> None:
    path = damaged(galaxy10(tmp_path / "g.h5", list(range(10))))
    with pytest.raises(UserError, match="cannot be read"):
        opened(path).pixels(Preprocessing(image_size=24, field_pixels=24), tmp_path / "cache")
    whole = galaxy10(tmp_path / "g.h5", list(range(10))).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read as a Galaxy10 file"):
        opened(path)


# --- check ----------------------------------------------------------------------------------------------------------


def test_what_is_remarkable_in_a_file(tmp_path: Path) -> None:
    columns = hdf5_columns(20)
    columns["images"][4], columns["images"][17] = 7, columns["images"][3]
    columns["ra"][11], columns["dec"][11] = columns["ra"][1], columns["dec"][1] + 0.5 / 3600  # both of class 1
    columns["ra"][12], columns["dec"][12] = columns["ra"][5], columns["dec"][5]  # classes 2 and 5
    columns["pxscale"][:3] = 0.524
    found = check_galaxy10(write_hdf5(tmp_path / "g.h5", {**columns, "ans": np.array(TWICE_TEN)}))
    assert found.usable and found.problems == [] and not found.published and not found.simulated
    assert found.images == 20 and set(found.counts.values()) == {2} and list(found.counts) == list(CLASS_SLUGS)
    assert (found.equal_positions, found.conflicting_positions) == (1, 1)
    assert found.blank == [4] and found.identical == [[3, 17]]
    assert found.scales == {"0.262": 17, "0.524": 3}
    assert found.datasets["images"] == "uint8 (20, 24, 24, 3)" and found.datasets["ans"] == "int64 (20,)"
    values = found.to_dict()
    assert values["counts_as_published"] is False and sum(values["published_counts"].values()) == 17736


def test_the_checksum_is_that_of_the_file(tmp_path: Path) -> None:
    import hashlib

    path = galaxy10(tmp_path / "g.h5", TWICE_TEN)
    assert check_galaxy10(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_simulated_file_says_so(tmp_path: Path) -> None:
    write_galaxy10(tmp_path / "g.h5", seed=1, images=10, render=colour_rule)
    found = check_galaxy10(tmp_path / "g.h5")
    assert found.simulated and found.usable


def test_what_makes_a_file_unusable(tmp_path: Path) -> None:
    path = galaxy10(tmp_path / "g.h5", [0, 1, 2, 12], ra=np.array([1, 2, 3, 400.0]))
    found = check_galaxy10(path)
    assert not found.usable and len(found.problems) == 3
    assert "labels from 0 to 12" in found.problems[0] and "`ra` of 1 rows" in found.problems[1]
    assert found.problems[2].startswith("no example of in_between_smooth, cigar_smooth")
    found = check_galaxy10(damaged(galaxy10(path, TWICE_TEN)))
    assert not found.usable and "cannot be read" in found.problems[0]
    path.write_bytes(b"no HDF5")
    found = check_galaxy10(path)
    assert not found.usable and found.datasets == {} and "cannot be read as a Galaxy10 file" in found.problems[0]
    with pytest.raises(UserError, match="no such file"):
        check_galaxy10(tmp_path / "gone.h5")
