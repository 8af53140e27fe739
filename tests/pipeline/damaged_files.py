"""Folders of mutilated files, each with what was done to it and what may become of it; made by code from good ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.table import Table
from PIL import Image

from pipeline.config.inputs import InputSettings
from pipeline.core.errors import Reason
from pipeline.core.object_ids import printable
from pipeline.readers.cutouts.reader import read_cutout
from pipeline.tiles.file_names import MANIFEST
from tests.pipeline import mutilations as m
from tests.pipeline.brick_makers import (
    BRICK,
    mosaic,
    plane_path,
    rows,
    tangent_plane,
    tractor_path,
    write_brick,
    write_plane,
    write_rows,
)
from tests.pipeline.makers import (
    cutout_header,
    galaxy,
    hdf5_columns,
    picture,
    write_cutout,
    write_hdf5,
    write_pictures,
    write_table,
)
from tests.pipeline.mutilations import STAMP, Rng, Ways
from tests.pipeline.readers.test_subimages import piece

_ODD = (b"\xff", b"\n", b"..%2f", b"'; rm -rf ;'", b" ", "ü".encode() * 60, b"\\", b"%s{0}", b"\x7f\xc3")
_LISTED = 9  # one in so many has the checksum of the undamaged file beside it
_SWEEP = "sweep-140m005-160p005.fits"
_SIDE = 64  # of the bricks
REFUSED = "refused as a whole"


@dataclass(frozen=True)
class Good:
    """An undamaged file: the ways to mutilate it, and the pixels of the stamps in it by the end of their names."""

    content: bytes
    ending: str
    ways: Ways
    pixels: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """What was done to an input, and the outcomes that make sense; `pixels` that its stamps must have, if any."""

    what: str
    outcomes: frozenset[str]
    pixels: dict[str, np.ndarray] = field(default_factory=dict)


def mutilated(good: Good, turn: int, rng: Rng, *, listed: bool = False) -> tuple[bytes, Case]:
    """The file mutilated in the way whose turn it is; `listed` where its undamaged checksum lies beside it."""
    what = list(good.ways)[turn % len(good.ways)]
    way = good.ways[what]
    bad = way.damage(good.content, rng)
    if listed and bad != good.content:
        return bad, Case(f"{what}, listed", frozenset({Reason.CHECKSUM_DIFFERS}))
    return bad, Case(what, way.outcomes, good.pixels if way.same_pixels else {})


def line_of_sum(content: bytes, name: str) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n"


def _bytes_of(hdus: list[fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU]) -> bytes:
    made = io.BytesIO()
    fits.HDUList(hdus).writeto(made)
    return made.getvalue()


def good_cutouts(folder: Path) -> dict[str, Good]:
    """A cutout in every form."""
    plain = write_cutout(folder / "plain.fits").read_bytes()
    header = fits.Header(cutout_header())
    invvar, bits = np.ones((3, 24, 24), "f4"), np.zeros((24, 24), "i2")
    masks = [fits.ImageHDU(invvar, fits.Header({"IMAGETYP": "invvar"}))]
    masks += [fits.ImageHDU(bits, fits.Header({"IMAGETYP": "maskbits"}))]
    pieces = [*piece("1500p300", (0, 28)), *piece("1502p300", (20, 40))]
    rice = fits.CompImageHDU(galaxy(), header, compression_type="RICE_1", quantize_level=16, tile_shape=(1, 24, 24))
    forms = {
        "plain": (plain, ".fits", m.CUTOUT),
        "masked": (_bytes_of([fits.PrimaryHDU(galaxy(), header), *masks]), ".fits", m.MASKED),
        "subimage": (_bytes_of([fits.PrimaryHDU(), *pieces]), ".fits", m.SUBIMAGE),
        "gzipped": (gzip.compress(plain, 1), ".fits.gz", m.GZIPPED),
        "compressed": (_bytes_of([fits.PrimaryHDU(), rice]), ".fits.fz", m.COMPRESSED),
    }
    good: dict[str, Good] = {}
    for form, (content, ending, ways) in forms.items():
        stamp = read_cutout(Path(f"good{ending}"), form, InputSettings(), io.BytesIO(content))
        good[form] = Good(content, ending, ways, {ending: stamp.pixels})
    return good


def damaged_cutouts(folder: Path, forms: dict[str, Good], count: int, rng: Rng) -> dict[str, Case]:
    """As many cutouts, some under odd names, by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    cases: dict[str, Case] = {}
    sums: list[str] = []
    for number in range(count):
        form, turn = list(forms)[number % len(forms)], number // len(forms)
        odd = os.fsdecode(_ODD[turn // 10 % len(_ODD)]) if turn % 10 == 0 else ""
        listed = turn % _LISTED == _LISTED - 1 and not odd
        bad, case = mutilated(forms[form], turn, rng, listed=listed)
        name = f"{form}-{number:03d}{odd}{forms[form].ending}"
        sums += [line_of_sum(forms[form].content, name)] if listed else []
        (folder / name).write_bytes(bad)
        cases[printable(name)] = case
    (folder / MANIFEST).write_text("".join(sums))
    return cases


MEMBERS = 5  # of the archives; the last is no cutout


def _tar_of(members: dict[str, bytes], mode: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def _zip_of(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def good_archives(folder: Path, forms: dict[str, Good]) -> list[Good]:
    """An archive of every kind."""
    others = {f"c{i}.fits": write_cutout(folder / "c.fits", galaxy(i)).read_bytes() for i in (1, 2)}
    members = {"a.fits": forms["plain"].content, "b/b.fits.gz": forms["gzipped"].content}
    members |= others | {"README": b"x" * 700}
    pixels = {"/a.fits": galaxy(), "/b/b.fits.gz": galaxy(), "/c1.fits": galaxy(1), "/c2.fits": galaxy(2)}
    return [
        Good(_tar_of(members, "w"), ".tar", m.TAR, pixels),
        Good(_tar_of(members, "w:gz"), ".tar.gz", m.TAR_GZ, pixels),
        Good(_zip_of(members), ".zip", m.ZIP, pixels),
    ]


def good_hdf5(folder: Path) -> list[Good]:
    """Files of five images, RGB and flux."""
    files = []
    for flux in (False, True):
        columns = hdf5_columns(m.HDF5_ROWS, flux=flux)
        content = write_hdf5(folder / "good.h5", columns, chunk=2, bands="grz").read_bytes()
        files.append(Good(content, ".h5", m.HDF5, {f"#{i}": image for i, image in enumerate(columns["images"])}))
    return files


def damaged_files(folder: Path, kinds: Sequence[Good], count: int, rng: Rng) -> dict[str, Case]:
    """As many files of these kinds, each a tile or more by itself, by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    cases: dict[str, Case] = {}
    for number in range(count):
        good, turn = kinds[number % len(kinds)], number // len(kinds)
        name, listed = f"{number:03d}{good.ending}", turn % _LISTED == _LISTED - 1
        bad, cases[name] = mutilated(good, turn, rng, listed=listed)
        (folder / name).write_bytes(bad)
        if listed:
            (folder / f"{name}.sha256").write_text(line_of_sum(good.content, name))
    return cases


def good_pictures(folder: Path) -> list[Good]:
    """A JPEG and a PNG."""
    jpeg, png = (write_pictures(folder, 1) / "p000.jpg").read_bytes(), io.BytesIO()
    Image.fromarray(picture()).save(png, "PNG")
    of_png = {name: way for name, way in m.PICTURE.items() if name != "absurd sides"}
    return [Good(jpeg, ".jpg", m.PICTURE), Good(png.getvalue(), ".png", of_png)]


def damaged_pictures(folder: Path, kinds: Sequence[Good], count: int, rng: Rng) -> dict[str, Case]:
    """As many pictures in a folder with a good table, by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    cases: dict[str, Case] = {}
    sums: list[str] = []
    for number in range(count):
        good, turn = kinds[number % len(kinds)], number // len(kinds)
        name, listed = f"m{number:03d}{good.ending}", turn % _LISTED == _LISTED - 1
        bad, cases[name] = mutilated(good, turn, rng, listed=listed)
        sums += [line_of_sum(good.content, name)] if listed else []
        (folder / name).write_bytes(bad)
    write_table(folder / "positions.csv", [{"file": name, "ra": 30, "dec": i / 2} for i, name in enumerate(cases)])
    (folder / MANIFEST).write_text("".join(sums))
    return cases


def damaged_tables(root: Path, count: int, rng: Rng) -> dict[str, Case]:
    """As many folders of two good pictures with a mutilated table, by their names."""
    cases: dict[str, Case] = {}
    for number in range(count):
        table = write_pictures(root / f"T{number}", 2, side=8) / "positions.csv"
        bad, cases[f"T{number}"] = mutilated(Good(table.read_bytes(), ".csv", m.PICTURE_TABLE), number, rng)
        table.write_bytes(bad)
    return cases


def good_brick(folder: Path) -> dict[str, bytes]:
    """A small brick with its catalogue, by file name: three galaxies, a star, and one that is not primary."""
    header = tangent_plane(side=_SIDE)
    sky = mosaic(_SIDE)
    write_brick(folder, BRICK, sky, header, bands="gr")
    header["BRICKNAM"] = BRICK
    write_plane(plane_path(folder, BRICK, "image", "z", ".fits.fz"), sky[2], header, packed="lossless")
    for product, kind in (("invvar", "f4"), ("nexp", "i2")):
        write_plane(plane_path(folder, BRICK, product, "r"), np.ones((_SIDE, _SIDE), kind), header)
    write_plane(plane_path(folder, BRICK, "maskbits"), np.zeros((_SIDE, _SIDE), "i2"), header)
    places = np.array([20.0, 40.0, 3.0, 30.0, 31.0])
    types, primary = np.array(["EXP", "DEV", "SER", "PSF", "EXP"]), np.array([1, 1, 1, 1, 0], bool)
    more = {"brickname": np.full(5, BRICK), "type": types, "brick_primary": primary}
    write_rows(tractor_path(folder), rows(places, places[::-1], header, **more))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


PLANE: Ways = {  # the other bands are there
    "cut": m.way(m.cut(), STAMP),
    "emptied": m.way(m.emptied, STAMP),
    "another type": m.way(m.replaced(*m.TEXTS), STAMP),
    "flipped": m.way(m.flipped(), STAMP),
    "header flipped": m.way(m.flipped(last=m.BLOCK), STAMP),
    "blanked": m.way(m.blanked, STAMP),
    "repeated": m.way(m.repeated, STAMP),
    "primary last": m.way(m.primary_last, STAMP),
    "elsewhere": m.way(m.claiming(CRVAL1=158), STAMP),
    "of another scale": m.way(m.claiming(CD1_1=-1), STAMP),
    "absurd sides": m.way(m.claiming(NAXIS1=m.ABSURD, NAXIS2=m.ABSURD), STAMP),
    "other sides": m.way(m.of_shape((_SIDE, 50), (_SIDE - 1, _SIDE), (_SIDE,), (2, _SIDE, _SIDE)), STAMP),
}


def _as(value: object) -> object:
    return lambda values: np.full(len(values), value)


CATALOGUE: Ways = {
    **m.WHOLE_FILE,
    "flipped": m.way(m.flipped(), *m.DESCRIPTION, Reason.NO_POSITION, Reason.BRICK_MISMATCH, Reason.OUT_OF_FOOTPRINT),
    "headers flipped": m.way(
        m.flipped(last=3 * m.BLOCK),
        *m.DESCRIPTION,
        *(Reason.NO_POSITION, Reason.BRICK_MISMATCH, Reason.OUT_OF_FOOTPRINT, Reason.MISSING_DATASET),
    ),
    "no table": m.way(lambda content, rng: m.hdus_of(content)[0], Reason.MISSING_DATASET),
    "no position": m.way(m.columns_changed({"ra": None}, {"dec": None}), Reason.NO_POSITION),
    "no other column": m.way(
        m.columns_changed(*({name: None} for name in ("type", "flux_r", "shape_r", "objid", "psfdepth_g"))), STAMP
    ),
    "text for numbers": m.way(
        m.columns_changed(*({name: _as("x")} for name in ("ra", "flux_r", "objid", "maskbits", "psfdepth_g"))),
        Reason.WRONG_SHAPE,
    ),
    "numbers for text": m.way(m.columns_changed({"type": _as(1)}, {"brickname": _as(2.5)}), Reason.WRONG_SHAPE),
    "several numbers for one": m.way(
        m.columns_changed(
            *({name: lambda v: np.stack([v, v], 1)} for name in ("dec", "flux_r", "maskbits", "psfdepth_g"))
        ),
        Reason.WRONG_SHAPE,
    ),
    "nowhere": m.way(m.columns_changed({"ra": _as(np.nan)}, {"dec": _as(-999.0)}), Reason.NO_POSITION),
    "odd numbers": m.way(
        m.columns_changed(
            {"maskbits": _as(np.nan)},
            {"release": _as(1e30), "brickid": _as(-5)},
            {"mw_transmission_r": _as(0.0), "shape_r": _as(np.inf), "psfsize_r": _as(-1.0), "psfdepth_g": _as(-1e30)},
            {"flux_r": _as(np.inf)},
        ),
        STAMP,
    ),
    "odd mask bits": m.way(m.columns_changed({"maskbits": _as(2**40)}), STAMP),
    "odd numbers of objects": m.way(
        m.columns_changed({"objid": lambda values: np.where(np.arange(len(values)), values, np.inf)}), STAMP
    ),
    "elsewhere": m.way(m.columns_changed({"ra": _as(3.0)}), Reason.OUT_OF_FOOTPRINT),
    "of another brick": m.way(m.columns_changed({"brickname": _as("0001p000")}), Reason.BRICK_MISMATCH),
    "absurd rows": m.way(m.claiming(TFIELDS=3), Reason.UNREADABLE_FILE),
}
SWEEP: Ways = {name: way for name, way in CATALOGUE.items() if name != "of another brick"} | {
    "of another brick": m.way(m.columns_changed({"brickname": _as("0001p000")})),  # not of this one: no objects
    "no bricks": m.way(m.columns_changed({"brickname": None}), Reason.WRONG_SHAPE),
}


@dataclass(frozen=True)
class BrickCase(Case):
    """A brick of which one file is mutilated; `table` is the content of its catalogue."""

    table: bytes = b""
    is_sweep: bool = False


def damaged_bricks(root: Path, whole: dict[str, bytes], count: int, rng: Rng) -> dict[str, BrickCase]:
    """As many bricks, each with one mutilated image, plane beside the images, or catalogue, by the names of folders.

    From round to round of the ways there is a plane of maskbits, or there is none and the catalogue's bits count.
    """
    planes, tractor = sorted(name for name in whole if "tractor" not in name), tractor_path(Path()).name
    turns = dict.fromkeys(("plane", "tractor", "sweep"), 0)
    cases: dict[str, BrickCase] = {}
    for number in range(count):
        group = ("plane", "tractor", "tractor", "plane", "tractor", "sweep")[number % 6]
        turn, turns[group] = turns[group], turns[group] + 1
        ways = {"plane": PLANE, "tractor": CATALOGUE, "sweep": SWEEP}[group]
        victim = planes[(turn + turn // len(ways)) % len(planes)] if group == "plane" else tractor
        listed = turn % _LISTED == _LISTED - 1
        bad, case = mutilated(Good(whole[victim], ".fits", ways), turn, rng, listed=listed)
        folder = root / f"{number:03d}"
        folder.mkdir(parents=True)
        for name, content in (whole | {victim: bad}).items():
            if group == "plane" or turn // len(ways) % 2 == 0 or "maskbits" not in name:
                (folder / (_SWEEP if (name, group) == (tractor, "sweep") else name)).write_bytes(content)
        named = _SWEEP if group == "sweep" else victim
        (folder / MANIFEST).write_text(line_of_sum(whole[victim], named) if listed else "")
        table = whole[tractor] if group == "plane" else bad
        cases[folder.name] = BrickCase(f"{named}: {case.what}", case.outcomes, {}, table, group == "sweep")
    return cases


_FOUND = (STAMP, Reason.OUT_OF_FOOTPRINT, Reason.NO_POSITION, REFUSED)
LIST: Ways = {
    "cut": m.way(m.cut(), *_FOUND),  # of text whole lines are left
    "emptied": m.way(m.emptied, REFUSED),
    "another type": m.way(m.replaced(*m.TEXTS), REFUSED),
    "flipped": m.way(m.flipped(), *_FOUND),
    "blanked": m.way(m.blanked, *_FOUND),
    "repeated": m.way(m.repeated, *_FOUND),
    "no column": m.way(lambda content, rng: content.replace(b"dec", b"xyz"), REFUSED),
}
LIST_CSV: Ways = {
    "a column twice": m.way(lambda content, rng: content.replace(b"name", b" RA "), REFUSED),
    "a name twice": m.way(lambda content, rng: content.replace(b"n4", b"n3"), *_FOUND),
    "a cell without an end": m.way(lambda content, rng: content + b'"' + b"x" * 200_000, *_FOUND),
    "more cells": m.way(lambda content, rng: content.replace(b"\n", b",1,2,3\n", 3), *_FOUND),
    "words": m.way(lambda content, rng: content.replace(b"0", b"x"), *_FOUND),
}


def good_lists(folder: Path) -> list[Good]:
    """A list of ten positions in every format; the first three lie in the brick, the last is none."""
    ra = np.array([150.0, 150.001, 149.999, *range(10, 16), np.nan])
    columns = {"name": [f"n{i}" for i in range(10)], "ra": ra, "dec": np.linspace(0.0995, 0.1005, 10)}
    files: list[Good] = []
    for ending, form in ((".csv", "ascii.csv"), (".fits", "fits"), (".vot", "votable"), (".parquet", "parquet")):
        path = folder / f"list{ending}"
        if ending == ".parquet":
            pd.DataFrame(columns).to_parquet(path)
        else:
            Table(columns).write(path, format=form)
        files.append(Good(path.read_bytes(), ending, LIST | (LIST_CSV if ending == ".csv" else {})))
    return files
