"""Folders of pictures with a table of positions."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catalogs.schema import QualityFlag
from catalogs.tiles import QuarantineEntry
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import BadInput, Reason
from pipeline.readers.images import read_picture, read_pictures, read_table
from pipeline.readers.stamps import Stamp
from pipeline.tiles.file_names import TileKind, inputs_in
from pipeline.tiles.sky_tile import table_of
from tests.pipeline.makers import picture, sorted_out, write_pictures, write_table


def read(folder: Path, **settings: object) -> tuple[list[Stamp], list[QuarantineEntry]]:
    names = inputs_in(folder, TileKind.PICTURES)
    return sorted_out(read_pictures(folder, names, table_of(folder), folder.name, InputSettings(**settings)))


def test_pixels_and_positions(tmp_path: Path) -> None:
    stamps, refused = read(write_pictures(tmp_path / "P", 3))
    assert not refused
    assert [s.source_name for s in stamps] == [f"P/p00{i}.jpg" for i in range(3)]
    assert [(s.ra, s.dec, s.pixscale) for s in stamps] == [(30.0, 0.0, 0.262), (30.1, 0.1, 0.262), (30.2, 0.2, 0.262)]
    assert stamps[0].pixels.dtype == np.uint8 and stamps[0].pixels.shape == (24, 24, 3)
    assert np.abs(stamps[1].pixels.astype(int) - picture(1)).mean() < 8
    assert {s.rendering for s in stamps} == {"unknown"} and {s.quality for s in stamps} == {0}


def test_png_keeps_every_pixel_and_grey_becomes_rgb(tmp_path: Path) -> None:
    Image.fromarray(picture(4)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), picture(4))
    Image.fromarray(picture(4)[..., 0]).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "b.png"), np.repeat(picture(4)[..., :1], 3, axis=2))


def test_the_table_may_lie_in_the_folder_above(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set" / "images", 2, table=None)
    (folder / "positions.csv").rename(tmp_path / "set" / "positions.csv")
    assert len(read(folder)[0]) == 2
    (tmp_path / "set" / "positions.csv").unlink()
    stamps, refused = read(folder)
    assert not stamps and {r.reason for r in refused} == {Reason.NO_POSITION}
    assert "no CSV" in refused[0].detail


@pytest.mark.parametrize("prefix", ["", "a/", "/elsewhere/set/a/"])
def test_a_table_above_serves_the_folder_its_rows_name(tmp_path: Path, prefix: str) -> None:
    """The same file name in two folders: a row of one must not give its position to the other."""
    for name in ("a", "b"):
        (write_pictures(tmp_path / "set" / name, 1) / "positions.csv").unlink()
    write_table(tmp_path / "set" / "t.csv", [{"file": f"{prefix}p000.jpg", "ra": 5, "dec": 6}])
    a, b = read(tmp_path / "set" / "a"), read(tmp_path / "set" / "b")
    if prefix.startswith("/"):
        assert not a[0] and not b[0]
    else:
        assert len(a[0]) == 1 and len(b[0]) == (0 if prefix else 1)


def test_rows_that_do_not_help(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "P", 6)
    write_table(
        folder / "positions.csv",
        [
            {"file": "p000.jpg", "ra": "", "dec": 1},
            {"file": "p001.jpg", "ra": "10h", "dec": 1},
            {"file": "p002.jpg", "ra": 3, "dec": 91},
            {"file": "p003.jpg", "ra": 3, "dec": 1},
            {"file": "p003.jpg", "ra": 4, "dec": 1},
            {"file": "p004.jpg", "ra": -10, "dec": 1},
            {"file": "p004.jpg", "ra": -10, "dec": 1},
        ],
    )
    stamps, refused = read(folder)
    assert [s.source_name for s in stamps] == ["P/p004.jpg"]
    assert stamps[0].ra == 350
    assert [r.source_name for r in refused] == [f"P/p00{i}.jpg" for i in (0, 1, 2, 3, 5)]
    assert {r.reason for r in refused} == {Reason.NO_POSITION}


@pytest.mark.parametrize("column", ["pixscale", "pxscale", "Pixel_Scale"])
def test_the_pixel_scale_comes_from_the_table_or_the_settings(tmp_path: Path, column: str) -> None:
    folder = write_pictures(tmp_path / "P", 2)
    rows = [{"File": f"p00{i}.jpg", "RA": 1, "Dec": 2, column: scale} for i, scale in enumerate(["0.4", ""])]
    write_table(folder / "positions.csv", rows)
    assert [s.pixscale for s in read(folder, picture_pixscale=0.3)[0]] == [0.4, 0.3]
    assert np.isnan(read(folder)[0][1].pixscale)


def test_survey_keys_of_the_table(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "P", 1)
    row = {"file": "p000.jpg", "ra": 1, "dec": 2, "release": 9010, "brickid": 7, "objid": 3}
    write_table(folder / "positions.csv", [row])
    assert read(folder)[0][0].object_id == 9010 << 42 | 7 << 22 | 3


def test_damaged_pictures(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "P", 5)
    (folder / "p000.jpg").write_bytes(b"")
    whole = (folder / "p001.jpg").read_bytes()
    (folder / "p001.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "p002.jpg").write_bytes(b"<html>not found</html>")
    Image.new("RGB", (5000, 2)).save(folder / "p003.jpg")
    stamps, refused = read(folder)
    assert [s.source_name for s in stamps] == ["P/p004.jpg"]
    assert [r.reason for r in refused] == [
        Reason.EMPTY_FILE,
        Reason.UNREADABLE_FILE,
        Reason.UNREADABLE_FILE,
        Reason.TOO_LARGE,
    ]


def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header(tmp_path: Path) -> None:
    """A PNG of a few bytes that claims 60,000 × 60,000 pixels."""
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadInput) as bad:
        read_picture(tmp_path / "a.png")
    assert bad.value.reason == Reason.TOO_LARGE


@pytest.mark.parametrize("form", ["GIF", "TIFF", "BMP"])
def test_other_formats_are_not_even_tried(tmp_path: Path, form: str) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg", format=form)
    with pytest.raises(BadInput) as bad:
        read_picture(tmp_path / "a.jpg")
    assert bad.value.reason == Reason.UNREADABLE_FILE


def test_a_picture_of_one_colour_shows_nothing(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "P", 2)
    Image.new("RGB", (24, 24), (9, 9, 9)).save(folder / "p001.jpg")
    assert [s.quality for s in read(folder)[0]] == [0, QualityFlag.UNCLASSIFIED]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", Reason.NO_POSITION),
        (b"object,ra,dec\na,1,2\n", Reason.NO_POSITION),
        (b"file,ra\xff\xfe,dec\n", Reason.UNREADABLE_FILE),
        (b"file,ra,dec\n\0,1,2\n" + b'"' + b"x" * 200_000, Reason.UNREADABLE_FILE),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, content: bytes, expected: Reason) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(BadInput) as bad:
        read_table(tmp_path / "t.csv")
    assert bad.value.reason == expected and str(tmp_path / "t.csv") in bad.value.detail


def test_only_the_rows_of_a_tile_are_kept(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", [{"file": f"{i}.jpg", "ra": i, "dec": 0} for i in range(50)])
    assert len(read_table(table)) == 50
    assert list(read_table(table, tmp_path, {"7.jpg", "x.jpg"})) == ["7.jpg"]


def test_real_pictures(shared: Path) -> None:
    folder = shared / "data/gz_decals/zoobot_rings/images"
    stamps, refused = read(folder, picture_pixscale=0.262)
    assert not refused and len(stamps) == 235
    assert {s.pixels.shape for s in stamps} == {(424, 424, 3)}
    first = next(s for s in stamps if s.source_name.endswith("J000411.19+020924.0.jpg"))
    assert (first.ra, first.dec) == (1.046625, 2.156667)
