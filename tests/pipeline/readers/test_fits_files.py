"""Images and columns of FITS files: the same values as astropy gives, and nothing taken on trust."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from pipeline.core.errors import BadInput, Reason
from pipeline.readers.fits.files import plane, plane_header, read_columns

RNG = np.random.default_rng(0)
PIXELS = (RNG.normal(0, 1, (50, 70)) + 5).astype(np.float32)
COUNTS = RNG.integers(0, 9, (50, 70)).astype(np.int16)


def reason(path: Path, hdu: str = "") -> Reason:
    with pytest.raises(BadInput) as bad:
        plane(path, hdu)
    assert str(path) in bad.value.detail
    return bad.value.reason


def write_compressed(path: Path, pixels: np.ndarray, kind: str = "RICE_1", **more: Any) -> Path:
    header = fits.Header({"CRVAL1": 12.5})
    fits.HDUList(
        [fits.PrimaryHDU(), fits.CompImageHDU(pixels, header, compression_type=kind, tile_shape=(20, 32), **more)]
    ).writeto(path, overwrite=True)
    return path


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1"])
@pytest.mark.parametrize("pixels", [PIXELS, COUNTS])
def test_compressed_planes_and_windows_of_them(tmp_path: Path, kind: str, pixels: np.ndarray) -> None:
    path = write_compressed(tmp_path / "a.fits.fz", pixels, kind)
    header, found = plane(path)
    with fits.open(path) as hdus:
        np.testing.assert_array_equal(found, hdus[1].data)
        assert header["CRVAL1"] == 12.5 and header == hdus[1].header
    assert found.dtype == pixels.dtype and found.dtype.isnative
    window = np.s_[15:44, 30:70]
    np.testing.assert_array_equal(plane(path, window=window)[1], found[window])
    assert plane_header(path) == (header, (50, 70))


@pytest.mark.parametrize("kind", ["f4", "f8", "u1", "i2", "i4", "u2", "u4"])
def test_plain_planes_of_every_type(tmp_path: Path, kind: str) -> None:
    data = (PIXELS if kind.startswith("f") else COUNTS).astype(kind)
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(data).writeto(path)
    found = plane(path)[1]
    np.testing.assert_array_equal(found, data)
    assert found.dtype.isnative and found.dtype.kind == ("f" if kind.startswith("f") else found.dtype.kind)
    assert kind != "f8" or found.dtype == np.float32
    np.testing.assert_array_equal(plane(path, window=np.s_[3:9, 60:70])[1], data[3:9, 60:70])


def test_scaled_integers_and_their_blanks(tmp_path: Path) -> None:
    header = fits.PrimaryHDU(COUNTS).header
    header.update({"BSCALE": 0.5, "BZERO": 10.0, "BLANK": 3})
    content = header.tostring().encode() + COUNTS.astype(">i2").tobytes()
    (tmp_path / "a.fits").write_bytes(content + bytes(-len(content) % 2880))
    found = plane(tmp_path / "a.fits")[1]
    assert found.dtype == np.float32 and np.isnan(found[COUNTS == 3]).all()
    np.testing.assert_allclose(found[COUNTS != 3], COUNTS[COUNTS != 3] * 0.5 + 10)


def test_the_hdu_is_chosen_by_name_number_or_axes(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    cube = fits.ImageHDU(np.zeros((2, 4, 5), "f4"), name="CUBE")
    planes = [fits.ImageHDU(PIXELS + i, name=name) for i, name in enumerate(("SCI", "wht"))]
    fits.HDUList([fits.PrimaryHDU(), cube, *planes]).writeto(path)
    assert plane(path)[1][0, 0] == PIXELS[0, 0]
    assert plane(path, "WHT")[1][0, 0] == plane(path, "3")[1][0, 0] == PIXELS[0, 0] + 1
    assert reason(path, "cube") == reason(path, "0") == reason(path, "9") == Reason.WRONG_SHAPE
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert plane(path, "wht")[1][0, 0] == PIXELS[0, 0] + 1


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t") / "t.fits"
    columns = [
        fits.Column("RA", "D", array=np.arange(5) + 0.5),
        fits.Column("flux", "3E", array=np.arange(15, dtype="f4").reshape(5, 3)),
        fits.Column("Type", "4A", array=["PSF", "REX", "EXP", "", "SER"]),
        fits.Column("BRICK_PRIMARY", "L", array=[True, False, True, True, False]),
        fits.Column("BITS", "I", bzero=32768, array=np.array([0, 1, 65535, 7, 8], "u2")),
        fits.Column("bit", "11X", array=np.zeros((5, 11), bool)),
        fits.Column("varying", "PE()", array=np.array([[1.0], [2.0, 3.0], [], [], []], dtype=object)),
    ]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="OBJ")]).writeto(path)
    return path


def test_columns_by_name_whatever_its_case(table: Path) -> None:
    found = read_columns(table, ["ra", "FLUX", "type", "brick_primary", "bits", "gone", "bit"])
    assert set(found) == {"ra", "flux", "type", "brick_primary", "bits"}
    np.testing.assert_array_equal(found["ra"], np.arange(5) + 0.5)
    np.testing.assert_array_equal(found["flux"], np.arange(15).reshape(5, 3))
    assert found["type"].tolist() == ["PSF", "REX", "EXP", "", "SER"]
    assert found["brick_primary"].tolist() == [True, False, True, True, False]
    assert found["bits"].tolist() == [0, 1, 65535, 7, 8]
    assert all(values.dtype.isnative for values in found.values())
    assert read_columns(table, ["ra"], "obj")["ra"].tolist() == read_columns(table, ["ra"], "1")["ra"].tolist()


def test_large_tables_are_read_in_pieces(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_columns(table, ["ra", "flux"])
    monkeypatch.setattr("pipeline.readers.fits.files._CHUNK_BYTES", 100)
    for name, values in read_columns(table, ["ra", "flux"]).items():
        np.testing.assert_array_equal(values, whole[name])


def test_an_empty_table(tmp_path: Path, table: Path) -> None:
    with fits.open(table) as hdus:
        fits.BinTableHDU(hdus[1].data[:0]).writeto(tmp_path / "e.fits")
    found = read_columns(tmp_path / "e.fits", ["ra", "flux", "type"])
    assert [values.shape for values in found.values()] == [(0,), (0, 3), (0,)]


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"NAXIS2": 10**9}, Reason.TOO_LARGE),
        ({"NAXIS2": 10**7}, Reason.UNREADABLE_FILE),  # more than the file holds
        ({"NAXIS2": -1}, Reason.UNREADABLE_FILE),
        ({"NAXIS1": 10**9}, Reason.UNREADABLE_FILE),  # wider than its columns
        ({"TFORM1": "9" * 9 + "D"}, Reason.UNREADABLE_FILE),
        ({"TFORM1": "D" * 60}, None),  # what follows the letter is free
        ({"TFORM1": "?"}, Reason.UNREADABLE_FILE),
        ({"TFIELDS": 10**6}, Reason.UNREADABLE_FILE),
        ({"TZERO5": "x"}, Reason.UNREADABLE_FILE),
    ],
)
def test_tables_that_declare_what_cannot_be(
    tmp_path: Path, table: Path, cards: dict[str, Any], expected: Reason | None
) -> None:
    path = with_cards(table, tmp_path / "b.fits", cards)
    if expected is None:
        assert len(read_columns(path, ["ra"])["ra"]) == 5
        return
    with pytest.raises(BadInput) as bad:
        read_columns(path, ["ra", "bits"])
    assert bad.value.reason == expected


def with_cards(original: Path, path: Path, cards: dict[str, Any]) -> Path:
    """The file with cards of its extension written over."""
    content = original.read_bytes()
    for key, value in cards.items():
        start = content.index(f"{key:8}=".encode(), 2880)
        content = content[:start] + fits.Card(key, value).image.encode() + content[start + 80 :]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "cards", "expected"),
    [
        ("RICE_1", {"ZNAXIS1": 10**9, "ZNAXIS2": 10**9}, Reason.TOO_LARGE),
        ("RICE_1", {"ZNAXIS1": -70}, Reason.UNREADABLE_FILE),
        ("RICE_1", {"ZNAXIS2": 0}, Reason.WRONG_SHAPE),
        ("RICE_1", {"ZBITPIX": 7}, Reason.UNREADABLE_FILE),
        ("RICE_1", {"ZTILE1": 10**6}, Reason.UNREADABLE_FILE),
        ("RICE_1", {"ZTILE1": 0}, Reason.UNREADABLE_FILE),
        ("RICE_1", {"ZTILE2": 10}, Reason.UNREADABLE_FILE),  # another number of tiles
        ("RICE_1", {"ZVAL1": 0}, Reason.UNREADABLE_FILE),  # blocks of no pixels: unpacking them would not end
        ("RICE_1", {"ZCMPTYPE": "ZSTD"}, Reason.UNREADABLE_FILE),
        ("RICE_1", {"PCOUNT": 10**12}, Reason.TOO_LARGE),
        ("RICE_1", {"PCOUNT": 10}, Reason.UNREADABLE_FILE),  # tiles outside of the heap
        ("RICE_1", {"NAXIS2": 10**5}, Reason.UNREADABLE_FILE),
        ("HCOMPRESS_1", {"ZTILE1": 31}, Reason.UNREADABLE_FILE),  # the streams hold 32 columns
    ],
)
def test_compressed_images_that_declare_what_cannot_be(
    tmp_path: Path, kind: str, cards: dict[str, Any], expected: Reason
) -> None:
    whole = write_compressed(tmp_path / "a.fits.fz", COUNTS, kind)
    assert reason(with_cards(whole, tmp_path / "b.fits.fz", cards)) == expected


def test_a_damaged_stream_of_hcompress_is_not_handed_on(tmp_path: Path) -> None:
    """It says how many pixels it writes; a larger number would be written beyond the memory that is there."""
    path = write_compressed(tmp_path / "a.fits.fz", COUNTS, "HCOMPRESS_1")
    content = bytearray(path.read_bytes())
    start = content.index(b"\xdd\x99")
    content[start + 2 : start + 6] = (10**6).to_bytes(4)
    path.write_bytes(content)
    assert reason(path) == Reason.UNREADABLE_FILE


def test_a_tile_that_grows_beyond_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_compressed(tmp_path / "a.fits.fz", COUNTS, "GZIP_1")
    content = path.read_bytes()
    start = content.index(b"\x1f\x8b")
    bomb = gzip.compress(bytes(200_000))
    path.write_bytes(content[:start] + bomb + content[start + len(bomb) :])
    monkeypatch.setattr("pipeline.readers.fits.compressed._TRUSTED_TILE_BYTES", 10_000)
    assert reason(path) == Reason.TOO_LARGE


def test_a_bit_anywhere_does_not_crash(tmp_path: Path, table: Path) -> None:
    for kind in ("RICE_1", "HCOMPRESS_1", "GZIP_1"):
        whole = write_compressed(tmp_path / "a.fits.fz", COUNTS, kind).read_bytes()
        for place in RNG.integers(0, len(whole), 40):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(RNG.integers(8))
            (tmp_path / "b.fits.fz").write_bytes(damaged)
            try:
                assert plane(tmp_path / "b.fits.fz")[1].ndim == 2
            except BadInput as bad:
                assert bad.detail
