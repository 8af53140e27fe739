"""Archives of cutouts: read as a stream, nothing followed, everything accounted for."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from catalogs.tiles import QuarantineEntry
from pipeline.config.inputs import InputSettings, ReadingSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.ingest.discovery import discover
from pipeline.readers.archives import reader as archives
from pipeline.readers.archives import tar_stream
from pipeline.readers.archives.reader import list_members, read_archive
from pipeline.readers.dispatch import read_tile
from pipeline.readers.stamps import Item, Stamp, TileNote
from tests.pipeline.makers import galaxy, sorted_out, write_cutout

KINDS = ["a.tar", "a.tar.gz", "a.tgz", "a.zip"]


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("c")
    return [write_cutout(folder / f"{i}.fits", galaxy(i), ra=150 + i / 10).read_bytes() for i in range(5)]


def pack(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """An archive of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read(path: Path, start: int = 0, stop: int | None = None) -> list[Item]:
    stop = len(list_members(path)) if stop is None else stop
    return list(read_archive(path, start, stop, f"in/{path.name}", InputSettings()))


def refusals(path: Path) -> dict[str, str]:
    """Reasons by name of the refused inputs; every input is a stamp or one of them."""
    stamps, refused = sorted_out(iter(read(path)))
    assert len(stamps) + len(refused) == len(list_members(path))
    return {entry.source_name.removeprefix(f"in/{path.name}/"): entry.reason for entry in refused}


@pytest.mark.parametrize("name", KINDS)
def test_members_become_stamps_in_parts_by_name(tmp_path: Path, cutouts: list[bytes], name: str) -> None:
    long = "deep/" * 30 + "e.fits"
    names = ["b/2.fits", "./b/1.FITS", "c.fits.gz", long, "a.fit"]
    contents = [*cutouts[:2], gzip.compress(cutouts[2]), *cutouts[3:]]
    path = pack(tmp_path / name, list(zip(names, contents, strict=True)))
    order = ["a.fit", "b/1.FITS", "b/2.fits", "c.fits.gz", long]
    assert [member.name for member in list_members(path)] == order
    stamps = {item.source_name: item for item in read(path) if isinstance(item, Stamp)}
    assert sorted(stamps) == [f"in/{name}/{member}" for member in order]
    for member, seed in (("b/2.fits", 0), ("b/1.FITS", 1), ("c.fits.gz", 2), (long, 3), ("a.fit", 4)):
        np.testing.assert_array_equal(stamps[f"in/{name}/{member}"].pixels, galaxy(seed))
    parts = [item.source_name for part in ((0, 2), (2, 4), (4, 5)) for item in read(path, *part)]
    assert sorted(parts) == sorted(stamps)


@pytest.mark.parametrize("name", KINDS)
def test_other_files_are_counted_once(tmp_path: Path, cutouts: list[bytes], name: str) -> None:
    others = [("README", b"x"), ("t.csv", b"x"), ("u.csv", b"x"), ("legacysurvey-1498p020-image-g.fits.fz", b"x")]
    path = pack(tmp_path / name, [*others, ("a.fits", cutouts[0]), ("b.fits", cutouts[1])])
    (note,) = (item for item in read(path) if isinstance(item, TileNote))
    assert note.remarks == ["4 members are no FITS cutouts: 2 .csv, 1 .fz, 1 without extension"]
    assert not any(isinstance(item, TileNote) for item in read(path, 1, 2))


@pytest.mark.parametrize("name", KINDS)
def test_a_bad_member_among_good_ones(tmp_path: Path, cutouts: list[bytes], name: str) -> None:
    members = [("a.fits", cutouts[0]), ("b.fits", b""), ("c.fits", b"x" * 9000), ("d.fits", cutouts[1][:9000])]
    path = pack(tmp_path / name, [*members, ("e.fits", cutouts[2])])
    assert refusals(path) == {
        "b.fits": Reason.EMPTY_FILE,
        "c.fits": Reason.UNREADABLE_FILE,
        "d.fits": Reason.UNREADABLE_FILE,
    }
    (entry,) = (i for i in read(path) if isinstance(i, QuarantineEntry) and i.source_name.endswith("d.fits"))
    assert entry.file == str(path / "d.fits") and entry.file in entry.detail


@pytest.mark.parametrize("name", KINDS)
def test_names_that_lead_out_and_doubles(tmp_path: Path, cutouts: list[bytes], name: str) -> None:
    names = ["../a.fits", "/etc/b.fits", "x/../../c.fits", "..\\d.fits", "C:\\e.fits", "../../.ssh/keys", "good.fits"]
    path = pack(tmp_path / "in" / name, [(n, cutouts[0]) for n in names] + [("./good.fits", cutouts[1])])
    bad = refusals(path)
    assert bad.pop("good.fits") == Reason.DUPLICATE_OBJECT_ID
    assert len(bad) == 6 and set(bad.values()) == {Reason.UNSAFE_NAME}
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(["in", name])  # nothing was unpacked anywhere


def test_links_and_devices_in_tar_are_not_followed(tmp_path: Path, cutouts: list[bytes]) -> None:
    outside = tmp_path / "outside.fits"
    outside.write_bytes(cutouts[0])
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"l{number}.fits")
            info.type, info.linkname, info.size = kind, str(outside), 0
            tar.addfile(info)
        tar.add(outside, "good.fits")
        tar.add(tmp_path, "folder", recursive=False)
    assert refusals(path) == {f"l{i}.fits": Reason.UNSAFE_NAME for i in range(4)}


def test_links_in_zip_and_members_that_need_a_password(tmp_path: Path, cutouts: list[bytes]) -> None:
    path = tmp_path / "a.zip"
    link = zipfile.ZipInfo("link.fits")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("secret.fits", cutouts[0])
        archive.writestr("good.fits", cutouts[1])
    content = bytearray(path.read_bytes())
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the header of the second member, and its entry
        content[content.index(magic, content.index(magic) + 1) + flags] |= 1
    path.write_bytes(content)
    assert refusals(path) == {"link.fits": Reason.UNSAFE_NAME, "secret.fits": Reason.UNREADABLE_FILE}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_truncated_tar_gives_what_comes_before(tmp_path: Path, cutouts: list[bytes], name: str) -> None:
    path = pack(tmp_path / name, [(f"{i}.fits", content) for i, content in enumerate(cutouts)])
    whole = path.read_bytes()
    found = []
    for share in (0.25, 0.4, 0.6):
        path.write_bytes(whole[: int(len(whole) * share)])
        stamps, refused = sorted_out(iter(read(path)))
        assert refused[0].source_name.endswith("(the rest of the archive)") and len(refused) <= 2
        assert len(stamps) + len(refused) == len(list_members(path))
        found.append(len(stamps))
    assert found == sorted(found) and found[0] >= 1 and found[-1] >= 2


@pytest.mark.parametrize("name", KINDS)
def test_damage_anywhere_is_accounted_for(tmp_path: Path, cutouts: list[bytes], name: str) -> None:
    path = pack(tmp_path / name, [(f"{i}.fits", content) for i, content in enumerate(cutouts)])
    whole = path.read_bytes()
    rng = np.random.default_rng(7)
    for number in range(30):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 1 + number % 5):
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        archives._listing.cache_clear()  # the same size within one tick of the clock
        try:
            refusals(path)
        except BadInput as bad:
            assert str(path) in bad.detail


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tar", b"", Reason.EMPTY_FILE),
        ("a.tar", b"no archive" * 200, Reason.UNREADABLE_FILE),
        ("a.tar.gz", b"\x1f\x8b" + b"x" * 500, Reason.UNREADABLE_FILE),
        ("a.zip", b"PK\x03\x04" + b"x" * 500, Reason.UNREADABLE_FILE),
        ("a.zip", b"PK\x03\x04" + b"x" * 500 + b"PK\x05\x06" + b"\xff" * 18, Reason.UNREADABLE_FILE),
    ],
)
def test_what_is_no_archive_is_refused_as_a_whole(tmp_path: Path, name: str, content: bytes, expected: Reason) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as bad:
        list_members(tmp_path / name)
    assert bad.value.reason == expected


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as bad:
        list_members(tmp_path / "gone.tar")
    assert bad.value.reason == Reason.UNREADABLE_FILE


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tar", "a.zip"):
        path = pack(tmp_path / name, [(f"{i}.txt", b"") for i in range(12)])
        monkeypatch.setattr(archives, "_MOST_MEMBERS", 11)
        with pytest.raises(BadInput) as bad:
            list_members(path)
        assert bad.value.reason == Reason.TOO_LARGE


def test_a_gzipped_tar_is_gone_through_once(
    tmp_path: Path, cutouts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "a.tar.gz", [(f"{i}.fits", content) for i, content in enumerate(cutouts)])
    count = len(list_members(path))
    opened: list[Path] = []
    original = tar_stream.opened_tar

    def counted(place: Path):  # type: ignore[no-untyped-def]
        opened.append(place)
        return original(place)

    monkeypatch.setattr(archives, "opened_tar", counted)
    assert len(read(path, 0, count)) == 5 and opened == [path]


def test_archives_through_the_front_door(tmp_path: Path, cutouts: list[bytes]) -> None:
    members = [(f"{i}.fits", content) for i, content in enumerate(cutouts)]
    pack(tmp_path / "in" / "a.zip", members)
    pack(tmp_path / "in" / "b.tar.gz", members)
    pack(tmp_path / "in" / "only.tar", [("README", b"x")])
    (tmp_path / "in" / "broken.zip").write_bytes(b"PK\x03\x04")
    reading = ReadingSettings()
    tiles = discover([tmp_path / "in"], 2, reading).tiles
    sources: list[str] = []
    for tile in tiles:
        try:
            batches = list(read_tile(tile, reading, 8))
        except BadInput as bad:
            assert tile.source == "in/broken.zip" and bad.reason == Reason.UNREADABLE_FILE
            continue
        sources += [stamp.source_name for batch in batches for stamp in batch.stamps]
    assert len(tiles) == 8
    assert sorted(sources) == [f"in/{a}/{i}.fits" for a in ("a.zip", "b.tar.gz") for i in range(5)]
