"""Files made to do harm: refused with a reason, in bounded memory, without a look outside."""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits

from pipeline.config.inputs import ReadingSettings
from pipeline.core.errors import Reason
from pipeline.ingest.discovery import discover
from pipeline.readers.dispatch import read_tile
from tests.pipeline.makers import cutout_header, galaxy, write_cutout
from tests.pipeline.readers.test_fits_files import with_cards, write_compressed

_MOST_MIB = 200  # the one member that is read, of 64 MiB, and copies of it


def claimed(sides: list[int], *, extension: str = "", bitpix: int = -32, **more: Any) -> bytes:
    """A FITS header that claims sides, with nothing after it."""
    cards: list[tuple[str, Any]] = [("XTENSION", extension) if extension else ("SIMPLE", True)]
    cards += [("BITPIX", bitpix), ("NAXIS", len(sides)), *((f"NAXIS{i + 1}", side) for i, side in enumerate(sides))]
    return fits.Header([*cards, *more.items()]).tostring().encode()


def gzip_of_zeros(head: bytes, mebibytes: int) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    parts = [packer.compress(head), *(packer.compress(bytes(1 << 20)) for _ in range(mebibytes)), packer.flush()]
    return b"".join(parts)


def tar_of(path: Path, name: str, size: int, kind: bytes = tarfile.REGTYPE, *, packed: bool = False) -> None:
    """A tar whose only member claims a size, with a few zeros after it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    head = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(gzip_of_zeros(head, 64) if packed else head + bytes(2048))


def png_of(side: int) -> bytes:
    chunks = (b"IHDR" + struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100)))
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def make_fits(bad: Path) -> dict[str, list[str]]:
    brick = {"BRICK": "1498p020", "BAND": "g", "IMAGETYP": "image"}
    kind = {"extension": "BINTABLE", "bitpix": 8}
    table: dict[str, Any] = {**kind, "PCOUNT": 0, "GCOUNT": 1, "TFIELDS": 1, "TTYPE1": "RA", "TFORM1": "D"}
    empty = fits.PrimaryHDU().header.tostring().encode()
    files = {
        "cutout.fits": (claimed([10**9, 10**9, 3], **cutout_header()), "too_large"),
        "cutout-i8.fits": (claimed([2**62, 2**62], bitpix=64, **cutout_header()), "too_large"),
        "cutout-4096.fits": (claimed([4096, 4096, 3], **cutout_header()), "unreadable_file"),  # allowed, not there
        "subimage.fits": (empty + claimed([10**9, 10**9], extension="IMAGE", **brick), "too_large"),
        "masks.fits": (b"", "stamp"),
        "plane.fits": (claimed([10**9, 10**9]), "too_large"),
        "table.fits": (empty + claimed([8, 10**9], **table), "too_large"),
        "table-rows.fits": (
            empty + claimed([8, 4 * 10**7], **table),
            "unreadable_file",
        ),
        "cutout-bomb.fits": (gzip_of_zeros(claimed([4096, 4096, 4096]), 64), "too_large"),
        "cutout-zeros.fits": (gzip_of_zeros(b"", 64), "unreadable_file"),
        "cutout-endless.fits": (gzip_of_zeros(b"SIMPLE  =" + b" " * 71, 64), "unreadable_file"),
        "table-bomb.fits": (
            gzip_of_zeros(empty + claimed([8, 10**12], **table), 1),
            "too_large",
        ),
    }
    for name, (content, _) in files.items():
        (bad / name).write_bytes(content)
    whole = write_cutout(bad / "masks.fits").read_bytes()
    (bad / "masks.fits").write_bytes(whole + claimed([10**9, 10**9], extension="IMAGE", IMAGETYP="maskbits"))
    packed = write_compressed(bad.parent / "packed.fits.fz", np.ones((50, 70), "i2"))
    with_cards(packed, bad / "plane-packed.fits", {"ZNAXIS1": 10**9, "ZNAXIS2": 10**9})
    return {name: [reason] for name, (_, reason) in files.items()} | {"plane-packed.fits": ["too_large"]}


def make_archives(bad: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(bad / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("a.fits", "b.fits"):
            archive.writestr(name, b"SIMPLE  =" + bytes(150 << 20))
    with zipfile.ZipFile(bad / "member.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a.fits", claimed([4096, 4096, 4096]) + bytes(64 << 20))
    with zipfile.ZipFile(bad / "lies.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a.fits", b"SIMPLE  =" + bytes(64 << 20))
    content = bytearray((bad / "lies.zip").read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (5000).to_bytes(4, "little")  # it says that it is small
    (bad / "lies.zip").write_bytes(content)
    tar_of(bad / "huge.tar", "a.fits", 10**12)
    tar_of(bad / "huge.tgz", "a.fits", 10**12, packed=True)
    tar_of(bad / "name.tar", "././@LongLink", 10**10, tarfile.GNUTYPE_LONGNAME)
    tar_of(bad / "pax.tgz", "p", 10**10, tarfile.XHDTYPE, packed=True)
    tar_of(bad / "sparse.tar", "a.fits", 0, tarfile.GNUTYPE_SPARSE)
    return {
        "bomb.zip": ["too_large"],
        "member.zip": ["too_large"],
        "lies.zip": ["unreadable_file"],
        "huge.tar": ["too_large", "unreadable_file"],
        "huge.tgz": ["too_large", "too_large"],
        "name.tar": ["too_large"],
        "pax.tgz": ["too_large"],
        "sparse.tar": ["unreadable_file"],
    }


def make_others(bad: Path) -> dict[str, list[str]]:
    with h5py.File(bad / "rows.h5", "w") as file:
        file.create_dataset("images", (10**8, 4096, 4096, 3), "u1", chunks=(1, 64, 64, 3))
    with h5py.File(bad / "chunk.h5", "w") as file:
        file.create_dataset("images", (4, 4000, 4000, 3), "u1", chunks=(4, 4000, 4000, 3), compression="gzip")
    (bad / "picture.png").write_bytes(png_of(10**6))
    (bad / "picture-less.png").write_bytes(png_of(5000))
    return {name: ["too_large"] for name in ("rows.h5", "chunk.h5", "picture.png", "picture-less.png")}


def test_memory_stays_bounded_whatever_files_claim(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    expected = make_fits(bad) | make_archives(bad) | make_others(bad)
    driver = [sys.executable, "-m", "tests.pipeline.hostile_driver", str(tmp_path)]
    result = subprocess.run(driver, capture_output=True, text=True, check=True, timeout=60)
    answer = json.loads(result.stdout)
    assert answer["found"] == expected
    assert answer["grown"] < _MOST_MIB


def test_loops_and_links_to_nowhere_are_inputs_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "C"
    write_cutout(folder / "good.fits")
    (folder / "loop.fits").symlink_to("loop.fits")
    (folder / "gone.fits").symlink_to("nowhere")
    (folder / "up").symlink_to("..")  # folders in a ring
    (tmp_path / "in" / "ring.zip").symlink_to("ring.zip")
    reading = ReadingSettings()
    tiles = {tile.source: tile for tile in discover([tmp_path / "in"], 10, reading).tiles}
    assert set(tiles) <= {"in/C", "in/ring.zip"}
    (batch,) = read_tile(tiles["in/C"], reading, 8)
    assert [stamp.source_name for stamp in batch.stamps] == ["in/C/good.fits"]
    reasons = {entry.source_name: entry.reason for entry in batch.quarantine}
    assert reasons == dict.fromkeys(("in/C/gone.fits", "in/C/loop.fits"), Reason.UNREADABLE_FILE)


@pytest.mark.parametrize(
    "name", ["x..%2f..%2fescape.fits", "a\nb.fits", "tab\there.fits", "$(touch x).fits", "-rf.fits"]
)
def test_odd_names_are_only_names(tmp_path: Path, name: str) -> None:
    write_cutout(tmp_path / "in" / "C" / name)
    reading = ReadingSettings()
    (tile,) = discover([tmp_path / "in"], 10, reading).tiles
    (batch,) = read_tile(tile, reading, 8)
    assert len(batch.stamps) == 1 and not batch.quarantine
    np.testing.assert_array_equal(batch.stamps[0].pixels, galaxy())


def test_an_archive_within_an_archive_is_not_opened(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.fits", write_cutout(tmp_path / "a.fits").read_bytes())
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "outer.zip", "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
        archive.writestr("inner.fits", inner.getvalue())
        archive.writestr("twice.fits.gz", gzip.compress(gzip.compress(bytes(10**6))))
    reading = ReadingSettings()
    (tile,) = discover([tmp_path / "in"], 10, reading).tiles
    (batch,) = read_tile(tile, reading, 8)
    assert not batch.stamps and [note.remarks for note in batch.notes] == [["1 members are no FITS cutouts: 1 .zip"]]
    assert [entry.reason for entry in batch.quarantine] == [Reason.UNREADABLE_FILE] * 2
