"""A hundred and fifty mutilated files: readers raise nothing but what they document, every input is accounted for."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits

from catalogs.tile_store import Quarantined
from pipeline.errors import BadInput, Reason
from pipeline.readers.settings import InputSettings
from pipeline.readers.tile import read_tile
from pipeline.sky_tiles import discover
from pipeline.stamps import Stamp
from tests.pipeline.makers import cutout_header, galaxy, hdf5_columns, write_cutout, write_hdf5, write_pictures

Rng = np.random.Generator


def flip_bits(content: bytes, rng: Rng) -> bytes:
    damaged = bytearray(content)
    for place in rng.integers(0, len(damaged), rng.integers(1, 30)):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def flip_early_bits(content: bytes, rng: Rng) -> bytes:
    """Damage where the structure is described, not the pixels."""
    return flip_bits(content[:2000], rng) + content[2000:]


def truncate(content: bytes, rng: Rng) -> bytes:
    return content[: rng.integers(0, len(content))]


def blank_block(content: bytes, rng: Rng) -> bytes:
    start = int(rng.integers(0, len(content)))
    return content[:start] + b"\0" * min(512, len(content) - start) + content[start + 512 :]


def repeat_block(content: bytes, rng: Rng) -> bytes:
    start = int(rng.integers(0, len(content)))
    return content[:start] + content[start : start + 300] * 2 + content[start + 300 :]


DAMAGE: list[Callable[[bytes, Rng], bytes]] = [flip_bits, flip_early_bits, truncate, blank_block, repeat_block]


def read_everything(root: Path, rows: int = 100) -> tuple[list[str], list[str]]:
    """Names of stamps and of refused inputs of all tiles; a tile that is refused as a whole gives its name."""
    settings = InputSettings()
    stamps: list[str] = []
    refused: list[Quarantined] = []
    for tile in discover([root], rows, salt=settings.salt):
        try:
            for batch in read_tile(tile, settings, 8):
                for stamp in batch.stamps:
                    assert isinstance(stamp, Stamp) and stamp.pixels.dtype in (np.float32, np.uint8)
                    assert min(stamp.pixels.shape) >= 1 and 0 <= stamp.ra < 360 and abs(stamp.dec) <= 90
                stamps += [s.source_name for s in batch.stamps]
                refused += batch.quarantine
        except BadInput as bad:
            refused.append(Quarantined(file=tile.path, source_name=tile.source, reason=bad.reason, detail=bad.detail))
    for entry in refused:
        assert entry.reason in set(Reason) and entry.detail and entry.model_dump_json()
    return stamps, [entry.source_name for entry in refused]


def test_damaged_cutouts(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    folder = tmp_path / "in" / "C"
    whole = write_cutout(folder / "whole.fits").read_bytes()
    for number in range(60):
        damaged = DAMAGE[number % len(DAMAGE)](whole, rng)
        if number % 4 == 3:
            (folder / f"d{number}.fits.gz").write_bytes(flip_bits(gzip.compress(damaged), rng))
        else:
            (folder / f"d{number}.fits").write_bytes(damaged)
    stamps, refused = read_everything(tmp_path / "in")
    assert len(stamps) + len(refused) == 61 == len(set(stamps) | set(refused))
    assert "in/C/whole.fits" in stamps and len(refused) > 25


@pytest.mark.parametrize("seed", range(3))
def test_headers_with_wrong_values(tmp_path: Path, seed: int) -> None:
    """Each card in turn missing, of another type, or not to be parsed."""
    rng = np.random.default_rng(seed)
    folder = tmp_path / "in" / "C"
    whole = write_cutout(folder / "whole.fits").read_bytes()
    names = ["BITPIX", "NAXIS", "NAXIS1", "NAXIS3", *cutout_header()]
    for name in names:
        start = whole.index(name.ljust(8).encode() + b"=") + 10
        value = rng.choice([b"'text'", b"-1", b"1e400", b"T", b"", b"'unclosed", b"= =\xff", b"nan", b"7"])
        (folder / f"{name}.fits").write_bytes(whole[:start] + value.ljust(70) + whole[start + 70 :])
    stamps, refused = read_everything(tmp_path / "in")
    assert len(stamps) + len(refused) == len(names) + 1 == len(set(stamps) | set(refused))


def test_damaged_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    folder = write_pictures(tmp_path / "in" / "P", 40)
    for number in range(39):
        path = folder / f"p{number:03d}.jpg"
        path.write_bytes(DAMAGE[number % len(DAMAGE)](path.read_bytes(), rng))
    stamps, refused = read_everything(tmp_path / "in")
    assert len(stamps) + len(refused) == 40 == len(set(stamps) | set(refused))
    assert "in/P/p039.jpg" in stamps


@pytest.mark.parametrize("flux", [False, True])
def test_damaged_hdf5(tmp_path: Path, flux: bool) -> None:
    """A file gives all of its rows, stamps or refused, or is refused as a whole; other files are not touched."""
    rng = np.random.default_rng(3)
    whole = write_hdf5(tmp_path / "in" / "whole.h5", hdf5_columns(6, flux=flux), bands="grz").read_bytes()
    for number in range(40):
        (tmp_path / "in" / f"d{number:02d}.h5").write_bytes(DAMAGE[number % len(DAMAGE)](whole, rng))
    stamps, refused = read_everything(tmp_path / "in")
    rejected = [name for name in refused if "#" not in name]
    rows: dict[str, set[str]] = {}
    for name in [*stamps, *refused]:
        if "#" in name:
            rows.setdefault(name.partition("#")[0], set()).add(name)
    assert len(rows) + len(rejected) == 41
    assert all(len(names) == 6 for names in rows.values())
    assert len(stamps) + len(refused) - len(rejected) == 6 * len(rows)
    assert "in/whole.h5" in rows and len(rejected) > 5


def test_files_of_one_kind_under_the_name_of_another(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in" / "M", 1)
    cutout = write_cutout(folder / "a.fits").read_bytes()
    hdf5 = write_hdf5(folder / "b.h5", hdf5_columns(2)).read_bytes()
    jpeg = (folder / "p000.jpg").read_bytes()
    (folder / "jpeg.fits").write_bytes(jpeg)
    (folder / "hdf5.fits").write_bytes(hdf5)
    (folder / "cutout.jpg").write_bytes(cutout)
    (folder / "jpeg.h5").write_bytes(jpeg)
    stamps, refused = read_everything(tmp_path / "in")
    assert sorted(stamps) == ["M/b.h5#0", "M/b.h5#1", "in/M/a.fits", "in/M/p000.jpg"]
    assert sorted(refused) == ["M/jpeg.h5", "in/M/cutout.jpg", "in/M/hdf5.fits", "in/M/jpeg.fits"]


def test_real_files_damaged(shared: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    whole = (shared / "data/fits/decals_grz_cutouts/temp_small.fits").read_bytes()
    (tmp_path / "C").mkdir()
    for number in range(15):
        (tmp_path / "C" / f"{number}.fits").write_bytes(DAMAGE[number % len(DAMAGE)](whole, rng))
    stamps, refused = read_everything(tmp_path)
    assert len(stamps) + len(refused) == 15


def test_the_makers_make_what_readers_expect(tmp_path: Path) -> None:
    """Else the tests above would only prove that everything is refused."""
    write_cutout(tmp_path / "C" / "a.fits")
    write_hdf5(tmp_path / "h.h5", hdf5_columns(3, flux=True), bands="grz")
    stamps, refused = read_everything(tmp_path)
    assert len(stamps) == 4 and not refused
    np.testing.assert_array_equal(fits.getdata(tmp_path / "C" / "a.fits"), galaxy())
    with h5py.File(tmp_path / "h.h5") as file:
        assert file["images"].shape == (3, 3, 24, 24)
