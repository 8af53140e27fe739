"""HDF5 files of cutouts: both layouts, damage, positions and survey keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from catalogs.schema import QualityFlag
from catalogs.tiles import QuarantineEntry
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.core.object_ids import hashed_id, survey_keys, target_id
from pipeline.readers import hdf5
from pipeline.readers.hdf5 import count_rows, read_hdf5
from pipeline.readers.stamps import Stamp
from tests.pipeline.makers import galaxy, hdf5_columns, picture, sorted_out, write_hdf5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.h5"


def read(path: Path, start: int = 0, stop: int | None = None) -> tuple[list[Stamp], list[QuarantineEntry]]:
    stop = count_rows(path) if stop is None else stop
    return sorted_out(read_hdf5(path, start, stop, "in/t.h5", InputSettings()))


def reason(path: Path) -> Reason:
    with pytest.raises(BadInput) as bad:
        read(path)
    assert str(path) in bad.value.detail
    return bad.value.reason


def test_rgb_images_of_the_galaxy10_layout(path: Path) -> None:
    columns = hdf5_columns(5)
    stamps, refused = read(write_hdf5(path, columns), 1, 4)
    assert not refused
    assert [s.source_name for s in stamps] == ["in/t.h5#1", "in/t.h5#2", "in/t.h5#3"]
    np.testing.assert_array_equal(stamps[0].pixels, picture(1))
    np.testing.assert_array_equal([s.ra for s in stamps], columns["ra"][1:4])
    assert stamps[0].pixscale == 0.262 and stamps[0].quality == 0
    assert stamps[0].survey_layer == "hdf5-rgb" and stamps[0].rendering == InputSettings().hdf5_rendering


@pytest.mark.parametrize("bands", ["grz", b"grz", ["g", "r", "z"], np.array([b"g", b"r", b"z"])])
def test_flux_images_with_their_bands(path: Path, bands: object) -> None:
    write_hdf5(path, hdf5_columns(2, flux=True), bands=bands)
    stamps, refused = read(path)
    assert not refused and stamps[0].survey_layer == "hdf5-grz"
    np.testing.assert_array_equal(stamps[1].pixels, galaxy(1))


def test_flux_is_brought_into_order_and_to_native_floats(path: Path) -> None:
    columns = hdf5_columns(1, flux=True)
    columns["images"] = columns["images"][:, ::-1].astype(">f8")
    (stamp,), _ = read(write_hdf5(path, columns, bands="zrg"))
    np.testing.assert_array_equal(stamp.pixels, galaxy(0))
    assert stamp.pixels.dtype == np.dtype("=f4")


def test_flags_of_single_rows(path: Path) -> None:
    columns = hdf5_columns(4, flux=True)
    columns["images"][0] = 0
    columns["images"][1, 2] = 0
    columns["images"][2, 1, 5, 5] = np.inf
    stamps, _ = read(write_hdf5(path, columns, bands="grz"))
    assert [QualityFlag(s.quality) for s in stamps] == [
        QualityFlag.MISSING_BAND | QualityFlag.UNCLASSIFIED,
        QualityFlag.MISSING_BAND,
        QualityFlag.NAN_PIXELS,
        QualityFlag(0),
    ]


def test_a_picture_of_one_colour_shows_nothing_to_classify(path: Path) -> None:
    columns = hdf5_columns(2)
    columns["images"][1] = 34
    stamps, _ = read(write_hdf5(path, columns))
    assert [s.quality for s in stamps] == [0, QualityFlag.UNCLASSIFIED]
    assert stamps[1].bad_pixel_fraction == 1


@pytest.mark.parametrize("missing", ["images", "ra", "dec"])
def test_a_missing_dataset(path: Path, missing: str) -> None:
    columns = hdf5_columns(2)
    del columns[missing]
    assert reason(write_hdf5(path, columns)) == Reason.MISSING_DATASET


def test_groups_and_broken_links_are_no_datasets(path: Path) -> None:
    write_hdf5(path, hdf5_columns(2))
    with h5py.File(path, "a") as file:
        del file["dec"]
        file.create_group("dec")
    assert reason(path) == Reason.MISSING_DATASET
    with h5py.File(path, "a") as file:
        del file["dec"]
        file["dec"] = h5py.SoftLink("/gone")
    assert reason(path) == Reason.MISSING_DATASET


def test_data_in_another_file_are_refused(path: Path, tmp_path: Path) -> None:
    """Whether by a link, by a link behind a link, or by storage that lies elsewhere."""
    write_hdf5(tmp_path / "other.h5", {"dec": np.zeros(2)})
    write_hdf5(path, hdf5_columns(2))
    with h5py.File(path, "a") as file:
        del file["dec"]
        file["dec"] = h5py.ExternalLink("other.h5", "/dec")
    assert reason(path) == Reason.UNSAFE_NAME
    with h5py.File(path, "a") as file:
        del file["dec"]
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/")
        file["dec"] = h5py.SoftLink("/elsewhere/dec")
    assert reason(path) == Reason.UNSAFE_NAME
    (tmp_path / "raw").write_bytes(bytes(16))
    with h5py.File(path, "a") as file:
        del file["dec"]
        file.create_dataset("dec", (2,), "f8", external=[(str(tmp_path / "raw"), 0, 16)])
    assert reason(path) == Reason.UNSAFE_NAME


@pytest.mark.parametrize("short", ["ra", "pxscale"])
def test_arrays_of_different_lengths(path: Path, short: str) -> None:
    columns = hdf5_columns(3)
    columns[short] = columns[short][:2]
    assert reason(write_hdf5(path, columns)) == Reason.ARRAYS_DIFFER


def test_a_key_of_another_length(path: Path) -> None:
    assert reason(write_hdf5(path, {**hdf5_columns(3), "objid": np.arange(4)})) == Reason.ARRAYS_DIFFER


@pytest.mark.parametrize(
    ("images", "attributes", "expected"),
    [
        (np.zeros((2, 8, 8), "u1"), {}, Reason.WRONG_SHAPE),
        (np.zeros((2, 8, 8, 4), "u1"), {}, Reason.WRONG_SHAPE),
        (np.zeros((2, 8, 8, 3), "i4"), {}, Reason.WRONG_SHAPE),
        (np.zeros((2, 3, 0, 8), "f4"), {"bands": "grz"}, Reason.WRONG_SHAPE),
        (np.zeros((2, 3, 1, 5000), "f4"), {"bands": "grz"}, Reason.WRONG_SHAPE),
        (np.zeros((2, 3, 8, 8), "f4"), {}, Reason.WRONG_BANDS),
        (np.zeros((2, 3, 8, 8), "f4"), {"bands": "gr"}, Reason.WRONG_BANDS),
        (np.zeros((2, 3, 8, 8), "f4"), {"bands": "ggg"}, Reason.WRONG_BANDS),
        (np.zeros((2, 3, 8, 8), "f4"), {"bands": b"\xff\xfe\xfd"}, Reason.WRONG_BANDS),
    ],
)
def test_images_of_another_shape(path: Path, images: np.ndarray, attributes: dict, expected: Reason) -> None:
    with h5py.File(path, "w") as file:
        file["images"], file["ra"], file["dec"] = images, [1.0, 2.0], [3.0, 4.0]
        file.attrs.update(attributes)
    assert reason(path) == expected


def test_numbers_that_are_none(path: Path) -> None:
    columns = hdf5_columns(2)
    for name in ("ra", "objid"):
        write_hdf5(path, {**columns, name: np.array([b"ten", b"eleven"])})
        assert reason(path) == Reason.UNREADABLE_FILE


def test_an_absurd_number_of_rows_does_not_become_absurdly_many_tiles(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("images", (10**9, 8, 8, 3), "u1", chunks=(1, 8, 8, 3))
        for name in ("ra", "dec"):
            file.create_dataset(name, (10**9,), "f8", chunks=(1024,))
    assert count_rows(path) == 0
    assert reason(path) == Reason.TOO_LARGE


def test_rows_without_a_position_are_refused_one_by_one(path: Path) -> None:
    columns = hdf5_columns(6)
    columns["ra"][:5] = [np.nan, -999, 10, 370, -1]
    columns["dec"][2] = -95
    stamps, refused = read(write_hdf5(path, columns))
    assert [r.source_name for r in refused] == [f"in/t.h5#{i}" for i in (0, 1, 2, 3)]
    assert {r.reason for r in refused} == {Reason.NO_POSITION}
    assert [s.ra for s in stamps] == [359, columns["ra"][5]]


@pytest.mark.parametrize("scale", [np.nan, 0.0, -1.0, np.inf])
def test_a_scale_that_is_none_is_unknown(path: Path, scale: float) -> None:
    columns = hdf5_columns(1)
    columns["pxscale"][0] = scale
    (stamp,), _ = read(write_hdf5(path, columns))
    assert np.isnan(stamp.pixscale)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_truncated_file_is_refused_as_a_whole(path: Path, share: float) -> None:
    whole = write_hdf5(path, hdf5_columns(20)).read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert count_rows(path) == 0
    assert reason(path) == Reason.UNREADABLE_FILE


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_damaged_chunk_costs_its_own_rows_only(path: Path, chunk: int) -> None:
    write_hdf5(path, hdf5_columns(12), chunk=chunk)
    with h5py.File(path) as file:
        where = file["images"].id.get_chunk_info_by_coord((4, 0, 0, 0))
    content = bytearray(path.read_bytes())
    middle = where.byte_offset + where.size // 2
    content[middle : middle + 40] = b"\0" * 40
    path.write_bytes(content)
    stamps, refused = read(path)
    lost = list(range(4, 4 + chunk))
    assert [r.source_name for r in refused] == [f"in/t.h5#{row}" for row in lost]
    assert {r.reason for r in refused} == {Reason.UNREADABLE_FILE}
    assert [s.source_name for s in stamps] == [f"in/t.h5#{row}" for row in range(12) if row not in lost]
    np.testing.assert_array_equal(stamps[-1].pixels, picture(11))


def test_large_images_are_read_few_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "_CHUNK_BYTES", 2 * picture().nbytes)
    reads: list[int] = []
    original = h5py.Dataset.__getitem__

    def spy(self: h5py.Dataset, key: object) -> object:
        values = original(self, key)
        if self.name == "/images":
            reads.append(len(values))
        return values

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    stamps, _ = read(write_hdf5(path, hdf5_columns(5)))
    assert len(stamps) == 5 and reads == [2, 2, 1]


def test_survey_keys_become_targetids(path: Path) -> None:
    keys = {
        "release": np.array([9010, 9010, 70000, 9011, -1]),
        "brickid": np.array([330368, 330368, 1, 0, 3]),
        "objid": np.array([4321, 1 << 22, 1, 0, 3]),
    }
    stamps, _ = read(write_hdf5(path, {**hdf5_columns(5), **keys}))
    by_hand = 9010 * 2**42 + 330368 * 2**22 + 4321
    assert stamps[0].object_id == by_hand and stamps[0].survey_keys == (9010, 330368, 4321)
    assert stamps[3].object_id == 9011 * 2**42
    for i in (1, 2, 4):  # a key does not fit or is unknown
        assert stamps[i].survey_keys == (-1, -1, -1)
        assert stamps[i].object_id == hashed_id(f"in/t.h5#{i}") >= 1 << 62


def test_the_layout_of_a_targetid() -> None:
    """DESI's desitarget.targets.encode_targetid: objid 0–21, brickid 22–41, release 42–57."""
    assert target_id(0, 0, 1) == 1
    assert target_id(0, 1, 0) == 1 << 22
    assert target_id(1, 0, 0) == 1 << 42
    assert target_id(2**16 - 1, 2**20 - 1, 2**22 - 1) == 2**58 - 1
    for wrong in ((2**16, 0, 0), (0, 2**20, 0), (0, 0, 2**22), (-1, 0, 0)):
        with pytest.raises(ValueError, match="do not fit"):
            target_id(*wrong)


def test_keys_that_are_no_whole_numbers_are_unknown() -> None:
    assert survey_keys(9010.0, 5.0, 7.0) == (9010, 5, 7)
    for odd in ((9010, 5.5, 7), (float("nan"), 5, 7), (9010, float("inf"), 7)):
        assert survey_keys(*odd) == (-1, -1, -1)


def test_a_file_that_is_being_written_is_a_failure_of_the_system(path: Path) -> None:
    """HDF5 locks a file that is open for writing: that is no damage, the next try may find it closed."""
    write_hdf5(path, hdf5_columns(2))
    script = (
        "import errno, sys\nfrom pathlib import Path\nfrom pipeline.readers.hdf5 import count_rows\n"
        "try:\n    print(count_rows(Path(sys.argv[1])))\nexcept BlockingIOError as error:\n    print('busy')\n"
    )

    with h5py.File(path, "a"):
        done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "busy"
