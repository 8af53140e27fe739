"""Ways to mutilate good files, and what may sensibly become of an input then. Knows nothing of readers.

A mutilation is a function of the bytes and a random generator; its `outcomes` are `STAMP` and codes of `Reason`.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
from astropy.io import fits
from astropy.table import Table

from pipeline.core.errors import Reason

Rng = np.random.Generator
Damage = Callable[[bytes, Rng], bytes]
STAMP = "stamp"
BLOCK = 2880  # of FITS
ABSURD = 10**9
# What a damaged description may lead to: none that can be read, or a readable one of something else.
REFUSED = (Reason.UNREADABLE_FILE, Reason.WRONG_SHAPE, Reason.WRONG_BANDS, Reason.NO_WCS, Reason.TOO_LARGE)
DESCRIPTION = (STAMP, *REFUSED)


@dataclass(frozen=True)
class Mutilation:
    """A way to damage a file. With `same_pixels` a stamp, if there is one, must have those of the undamaged file."""

    damage: Damage
    outcomes: frozenset[str]
    same_pixels: bool = False


Ways = dict[str, Mutilation]


def way(damage: Damage, *outcomes: str, same_pixels: bool = False) -> Mutilation:
    return Mutilation(damage, frozenset(outcomes), same_pixels)


def allowing(ways: Mapping[str, Mutilation], *more: str) -> Ways:
    """The same ways where more outcomes make sense."""
    return {name: replace(one, outcomes=one.outcomes | set(more)) for name, one in ways.items()}


# Any file.


def cut(first: int = 1, last: float = 0.8) -> Damage:
    """Cut short somewhere between byte `first` and this share of the whole."""
    return lambda content, rng: content[: rng.integers(first, max(first + 1, int(last * len(content))))]


def flipped(first: int = 0, last: int | None = None, most: int = 12) -> Damage:
    """One to `most` bits flipped between the bytes `first` and `last`."""

    def damage(content: bytes, rng: Rng) -> bytes:
        damaged = bytearray(content)
        end = min(last or len(content), len(content))
        for place in rng.integers(min(first, end - 1), end, rng.integers(1, most + 1)):
            damaged[place] ^= 1 << int(rng.integers(8))
        return bytes(damaged)

    return damage


def blanked(content: bytes, rng: Rng) -> bytes:
    start = int(rng.integers(0, max(1, len(content) - 512)))
    return content[:start] + bytes(min(512, len(content) - start)) + content[start + 512 :]


def repeated(content: bytes, rng: Rng) -> bytes:
    start = int(rng.integers(0, len(content)))
    return content[:start] + content[start : start + 300] * 2 + content[start + 300 :]


def emptied(content: bytes, rng: Rng) -> bytes:
    return b""


def replaced(*others: bytes) -> Damage:
    """Something else under the name of the file."""
    return lambda content, rng: others[rng.integers(len(others))]


def packed(damage: Damage) -> Damage:
    """Damage to what is in a gzip'ed file."""
    return lambda content, rng: gzip.compress(damage(gzip.decompress(content), rng), 1)


TEXTS = (b"<html>404 Not Found</html>\n", b"no image\n" * 500, b"\0" * 6000, b"\x89PNG\r\n\x1a\n" + bytes(90), b"\xff")


# FITS.


def with_card(content: bytes, key: str, value: bytes | None) -> bytes:
    """The first card of this keyword with another value, or as a blank card."""
    start = content.index(f"{key:8}=".encode())
    card = b"" if value is None else f"{key:8}= ".encode() + value
    return content[:start] + card.ljust(80) + content[start + 80 :]


def without(*keys: str) -> Damage:
    """One of the keywords missing."""
    return lambda content, rng: with_card(content, str(rng.choice(keys)), None)


def of_another_type(*keys: str) -> Damage:
    """One of the keywords with a value of another type, or with none that can be parsed."""
    values = [b"'text'", b"T", b"", b"'unclosed", b"= =\xff", b"(1.0, 2.0)", b"1e400", b"nan"]
    return lambda content, rng: with_card(content, str(rng.choice(keys)), values[rng.integers(len(values))])


def claiming(**cards: int) -> Damage:
    """Absurd numbers in the header."""

    def damage(content: bytes, rng: Rng) -> bytes:
        for key, value in cards.items():
            content = with_card(content, key, str(value).encode())
        return content

    return damage


def hdus_of(content: bytes) -> list[bytes]:
    """The HDUs of a file as bytes."""
    with fits.open(io.BytesIO(content), disable_image_compression=True) as hdus:
        infos = [hdu.fileinfo() for hdu in hdus]
    return [content[info["hdrLoc"] : info["datLoc"] + info["datSpan"]] for info in infos]


def extensions_shuffled(content: bytes, rng: Rng) -> bytes:
    """The extensions in another order, an image before the rest."""
    first, second, *others = hdus_of(content)
    return b"".join([first, second, *(others[i] for i in rng.permutation(len(others)))])


def extension_dropped(content: bytes, rng: Rng) -> bytes:
    first, *others = hdus_of(content)
    others.pop(rng.integers(len(others)))
    return b"".join([first, *others])


def extension_doubled(content: bytes, rng: Rng) -> bytes:
    first, *others = hdus_of(content)
    return b"".join([first, *others, others[rng.integers(len(others))]])


def primary_last(content: bytes, rng: Rng) -> bytes:
    first, *others = hdus_of(content)
    return b"".join([*others, first]) if others else content[BLOCK:]


def of_shape(*shapes: tuple[int, ...]) -> Damage:
    """The header of an image with pixels of other dimensions."""

    def damage(content: bytes, rng: Rng) -> bytes:
        header = fits.Header.fromstring(content[:BLOCK])
        made = io.BytesIO()
        pixels = np.ones(shapes[rng.integers(len(shapes))], "f4")
        fits.PrimaryHDU(pixels, header).writeto(made, output_verify="ignore")
        return made.getvalue()

    return damage


_AXES = ("SIMPLE", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "NAXIS3")
_PLACE = ("CTYPE1", "CRVAL1", "CRVAL2", "CD1_1", "CD2_2")
_WORDS = ("SURVEY", "VERSION", "IMAGETYP")
WHOLE_FILE: Ways = {
    "cut": way(cut(), Reason.UNREADABLE_FILE),
    "emptied": way(emptied, Reason.EMPTY_FILE),
    "another type": way(replaced(*TEXTS), Reason.UNREADABLE_FILE),
}
CUTOUT: Ways = {
    **WHOLE_FILE,
    "cut at a block": way(lambda content, rng: content[: BLOCK * rng.integers(1, 4)], Reason.UNREADABLE_FILE),
    "flipped": way(flipped(), *DESCRIPTION),
    "header flipped": way(flipped(last=BLOCK), *DESCRIPTION),
    "pixels flipped": way(flipped(BLOCK, 9000), STAMP),
    "blanked": way(blanked, *DESCRIPTION),
    "repeated": way(repeated, *DESCRIPTION),
    "no axes": way(without(*_AXES), Reason.UNREADABLE_FILE),
    "odd axes": way(of_another_type(*_AXES), Reason.UNREADABLE_FILE, STAMP),  # SIMPLE = 'text' still begins as FITS
    "no place": way(without(*_PLACE), Reason.NO_WCS),
    "odd place": way(of_another_type(*_PLACE), Reason.NO_WCS, Reason.UNREADABLE_FILE),
    "no bands": way(without("BANDS"), Reason.WRONG_BANDS),
    "odd bands": way(of_another_type("BANDS"), Reason.WRONG_BANDS, Reason.UNREADABLE_FILE),
    "no words": way(without(*_WORDS), STAMP, same_pixels=True),
    "odd words": way(of_another_type(*_WORDS), STAMP, Reason.UNREADABLE_FILE, same_pixels=True),
    "absurd sides": way(claiming(NAXIS1=ABSURD, NAXIS2=ABSURD), Reason.TOO_LARGE),
    "absurd axes": way(claiming(NAXIS=ABSURD), Reason.UNREADABLE_FILE),
    "negative side": way(claiming(NAXIS1=-24), Reason.UNREADABLE_FILE),
    "no such depth": way(claiming(BITPIX=-31), Reason.UNREADABLE_FILE),
    "axes": way(of_shape((24,), (2, 3, 24, 24), (3, 1, 24, 0)), Reason.WRONG_SHAPE),
    "planes": way(of_shape((24, 24), (2, 24, 24), (7, 24, 24)), Reason.WRONG_BANDS),
}
_AFTER = 4 * BLOCK  # where the masks of a cutout of 24 pixels begin
MASKED: Ways = {
    "image cut": way(cut(1, 0.3), Reason.UNREADABLE_FILE),
    "masks cut": way(cut(_AFTER), STAMP, same_pixels=True),
    "masks flipped": way(flipped(_AFTER), STAMP, same_pixels=True),
    "mask headers flipped": way(flipped(_AFTER, _AFTER + BLOCK), STAMP, same_pixels=True),
    "shuffled": way(extensions_shuffled, STAMP, same_pixels=True),
    "dropped": way(extension_dropped, STAMP, same_pixels=True),
    "doubled": way(extension_doubled, STAMP, same_pixels=True),
    "primary last": way(primary_last, Reason.UNREADABLE_FILE),
    "flipped": way(flipped(), *DESCRIPTION),
    "repeated": way(repeated, *DESCRIPTION),
}
SUBIMAGE: Ways = {
    **WHOLE_FILE,
    "cut": way(cut(), STAMP, Reason.UNREADABLE_FILE),  # at the end of an HDU nothing seems to be missing
    "flipped": way(flipped(), *DESCRIPTION),
    "headers flipped": way(flipped(BLOCK, 2 * BLOCK, most=4), *DESCRIPTION),
    "blanked": way(blanked, *DESCRIPTION),
    "shuffled": way(extensions_shuffled, STAMP),
    "dropped": way(extension_dropped, STAMP),
    "doubled": way(extension_doubled, Reason.WRONG_SHAPE),
    "primary last": way(primary_last, Reason.UNREADABLE_FILE),
    "no place": way(without("CTYPE1", "CRVAL1"), Reason.NO_WCS, STAMP),
    "odd place": way(of_another_type("CRVAL1", "CRPIX2"), Reason.NO_WCS, Reason.UNREADABLE_FILE, STAMP),
    "no brick or band": way(without("BRICK", "BAND"), *DESCRIPTION),
    "absurd sides": way(claiming(NAXIS1=ABSURD, NAXIS2=ABSURD), Reason.TOO_LARGE),
}
GZIPPED: Ways = {  # its checksum tells every damage but to the name and time in its head
    **WHOLE_FILE,
    "flipped": way(flipped(), *DESCRIPTION, same_pixels=True),  # refused for what it unpacks to, or at its end
    "blanked": way(blanked, *REFUSED),
    "repeated": way(repeated, *REFUSED),
    **{f"packed: {name}": replace(one, damage=packed(one.damage)) for name, one in CUTOUT.items() if name != "emptied"},
    "packed: emptied": way(packed(emptied), Reason.UNREADABLE_FILE),
    "twice": way(lambda content, rng: gzip.compress(content), Reason.UNREADABLE_FILE),
}
COMPRESSED: Ways = {
    **WHOLE_FILE,
    "flipped": way(flipped(), *DESCRIPTION),
    "streams flipped": way(flipped(3 * BLOCK), STAMP, Reason.UNREADABLE_FILE),
    "blanked": way(blanked, *DESCRIPTION),
    "absurd sides": way(claiming(ZNAXIS1=ABSURD, ZNAXIS2=ABSURD), Reason.TOO_LARGE),
    "absurd table": way(claiming(NAXIS2=ABSURD), Reason.TOO_LARGE, Reason.UNREADABLE_FILE),
    "no words of compression": way(
        without("ZNAXIS1", "ZBITPIX", "ZCMPTYPE", "TFORM1", "PCOUNT"), Reason.UNREADABLE_FILE
    ),
    "odd words of compression": way(of_another_type("ZNAXIS", "ZBITPIX", "ZTILE1"), Reason.UNREADABLE_FILE),
}


# HDF5.


def in_hdf5(*changes: Callable[[h5py.File], None]) -> Damage:
    """One of the changes to a file that stays HDF5."""

    def damage(content: bytes, rng: Rng) -> bytes:
        held = io.BytesIO(content)
        with h5py.File(held, "r+") as file:
            changes[rng.integers(len(changes))](file)
        return held.getvalue()

    return damage


def column(name: str, values: Any, **how: Any) -> Callable[[h5py.File], None]:
    """A dataset replaced; by nothing where `values` is None."""

    def change(file: h5py.File) -> None:
        del file[name]
        if how:
            file.create_dataset(name, **how)
        elif values is not None:
            file[name] = values

    return change


def _nan_in_place(file: h5py.File) -> None:
    file["ra"][1] = np.nan
    file["dec"][2] = -999


def _group(file: h5py.File) -> None:
    del file["images"]
    file.create_group("images")


HDF5_ROWS = 5
_IN_DESCRIPTION = (*DESCRIPTION, Reason.MISSING_DATASET, Reason.ARRAYS_DIFFER, Reason.NO_POSITION)
HDF5: Ways = {
    **WHOLE_FILE,
    "flipped": way(flipped(), *_IN_DESCRIPTION),
    "head flipped": way(flipped(last=2000), *_IN_DESCRIPTION),
    "blanked": way(blanked, *_IN_DESCRIPTION),
    "repeated": way(repeated, *_IN_DESCRIPTION),
    "dataset missing": way(
        in_hdf5(*(column(name, None) for name in ("images", "ra", "dec")), _group, column("ra", h5py.SoftLink("/no"))),
        Reason.MISSING_DATASET,
    ),
    "lengths differ": way(
        in_hdf5(
            column("ra", np.zeros(3)), column("dec", np.zeros((5, 2))), column("ra", 1.0), column("pxscale", [0.2])
        ),
        Reason.ARRAYS_DIFFER,
    ),
    "wrong type": way(in_hdf5(column("ra", ["a"] * 5), column("dec", np.zeros(5, "c16,f4"))), Reason.UNREADABLE_FILE),
    "wrong images": way(
        in_hdf5(
            *(column("images", np.ones(shape, kind)) for shape, kind in (((5, 24, 24), "u1"), ((5, 24, 24, 3), "i4"))),
            column("images", np.ones((5, 3, 0, 24), "f4")),
            column("images", 1.0),
        ),
        Reason.WRONG_SHAPE,
    ),
    "planes": way(in_hdf5(column("images", np.ones((5, 4, 24, 24), "f4"))), Reason.WRONG_BANDS),
    "no position": way(in_hdf5(_nan_in_place), STAMP, Reason.NO_POSITION, same_pixels=True),
    "a link outside": way(in_hdf5(column("ra", h5py.ExternalLink("/etc/passwd", "/ra"))), Reason.UNSAFE_NAME),
    "absurd rows": way(
        in_hdf5(column("images", None, shape=(ABSURD, 24, 24, 3), dtype="u1", chunks=(1, 24, 24, 3))),
        Reason.TOO_LARGE,
    ),
    "absurd sides": way(
        in_hdf5(column("images", None, shape=(5, ABSURD, ABSURD, 3), dtype="u1", chunks=(1, 24, 24, 3))),
        Reason.TOO_LARGE,
    ),
}


# Pictures and their table.

_JPEG_SIZE = 5  # bytes from the marker of a frame to its height and width


def _absurd_jpeg(content: bytes, rng: Rng) -> bytes:
    frame = content.index(b"\xff\xc0") + _JPEG_SIZE
    return content[:frame] + b"\xff\xf0\xff\xf0" + content[frame + 4 :]


PICTURE: Ways = {
    **WHOLE_FILE,
    "flipped": way(flipped(), STAMP, Reason.UNREADABLE_FILE, Reason.TOO_LARGE),
    "head flipped": way(flipped(last=200), STAMP, Reason.UNREADABLE_FILE, Reason.TOO_LARGE),
    "blanked": way(blanked, STAMP, Reason.UNREADABLE_FILE),
    "repeated": way(repeated, STAMP, Reason.UNREADABLE_FILE),
    "absurd sides": way(_absurd_jpeg, Reason.TOO_LARGE),
}
PICTURE_TABLE: Ways = {
    "cut": way(cut(), STAMP, Reason.NO_POSITION),
    "emptied": way(emptied, Reason.NO_POSITION),
    "another type": way(replaced(b"\x89PNG\r\n\x1a\n" * 9, b"\xff\xfe" * 50), Reason.UNREADABLE_FILE),
    "text": way(replaced(TEXTS[0]), Reason.NO_POSITION),
    "flipped": way(flipped(), STAMP, Reason.NO_POSITION, Reason.UNREADABLE_FILE),
    "repeated": way(repeated, STAMP, Reason.NO_POSITION),
    "no numbers": way(lambda content, rng: content.replace(b"30", b"x"), STAMP, Reason.NO_POSITION),
    "no column": way(lambda content, rng: content.replace(b"dec", b"cde"), Reason.NO_POSITION),
    "no names": way(lambda content, rng: content.replace(b"file", b"elif"), Reason.NO_POSITION),
    "a cell without an end": way(lambda content, rng: content + b'"' + b"x" * 200_000, Reason.UNREADABLE_FILE),
    "more cells": way(lambda content, rng: content.replace(b"\r\n", b",1,2,3\r\n", 2), STAMP, Reason.NO_POSITION),
}


# Archives.


def in_directory(offset: int, value: bytes) -> Damage:
    """Bytes of the entry of one member in a zip's directory."""

    def damage(content: bytes, rng: Rng) -> bytes:
        entry = content.index(b"PK\x01\x02") + offset
        return content[:entry] + value + content[entry + len(value) :]

    return damage


def header_blanked(content: bytes, rng: Rng) -> bytes:
    """A tar whose second header is a block of zeros: what marks the end, in the middle."""
    second = 512 + -(-int(content[124:135], 8) // 512) * 512
    return content[:second] + bytes(512) + content[second + 512 :]


ARCHIVE: Ways = {
    **WHOLE_FILE,
    "another type": way(replaced(*TEXTS), Reason.UNREADABLE_FILE, Reason.EMPTY_FILE),  # zeros are an empty tar
    "cut": way(cut(), STAMP, Reason.UNREADABLE_FILE, same_pixels=True),
    "flipped": way(flipped(), *DESCRIPTION, Reason.UNSAFE_NAME, Reason.EMPTY_FILE),
    "repeated": way(repeated, *DESCRIPTION),
    "blanked": way(blanked, *DESCRIPTION),
}
TAR: Ways = {
    **ARCHIVE,
    "a header blanked": way(header_blanked, STAMP, Reason.UNREADABLE_FILE, same_pixels=True),
    "head flipped": way(flipped(last=512, most=3), *DESCRIPTION, Reason.UNSAFE_NAME),
}
TAR_GZ: Ways = {  # one checksum for all; damage that runs past the end looks like a cut, rarely with other pixels
    **ARCHIVE,
    "flipped": way(flipped(), STAMP, Reason.UNREADABLE_FILE, Reason.TOO_LARGE, same_pixels=True),
    "repeated": way(repeated, STAMP, Reason.UNREADABLE_FILE, Reason.TOO_LARGE, same_pixels=True),
    "blanked": way(blanked, STAMP, Reason.UNREADABLE_FILE, Reason.TOO_LARGE, same_pixels=True),
    "packed: cut": way(packed(cut()), STAMP, Reason.UNREADABLE_FILE, same_pixels=True),
    "packed: a header blanked": way(packed(header_blanked), STAMP, Reason.UNREADABLE_FILE, same_pixels=True),
}
ZIP: Ways = {  # a checksum for every member
    **ARCHIVE,
    "cut": way(cut(), Reason.UNREADABLE_FILE),
    "flipped": way(flipped(), STAMP, Reason.UNREADABLE_FILE, Reason.TOO_LARGE, Reason.UNSAFE_NAME, same_pixels=True),
    "repeated": way(repeated, STAMP, Reason.UNREADABLE_FILE, same_pixels=True),
    "blanked": way(blanked, STAMP, Reason.UNREADABLE_FILE, same_pixels=True),
    "encrypted": way(in_directory(8, b"\x01\0"), STAMP, Reason.UNREADABLE_FILE, same_pixels=True),
    "packed by what nobody has": way(in_directory(10, b"\x63\0"), STAMP, Reason.UNREADABLE_FILE, same_pixels=True),
    "absurd size": way(in_directory(24, b"\xfe\xff\xff\xff"), STAMP, Reason.TOO_LARGE, same_pixels=True),
    "a member elsewhere": way(in_directory(42, b"\xf0\xff\0\0"), STAMP, Reason.UNREADABLE_FILE, same_pixels=True),
}


# Tables of objects.


def columns_changed(*changes: Mapping[str, Callable[[np.ndarray], Any] | None]) -> Damage:
    """A table with one of the sets of changes; a column whose change is None is left out."""

    def damage(content: bytes, rng: Rng) -> bytes:
        table = Table.read(io.BytesIO(content), format="fits")
        for name, change in changes[rng.integers(len(changes))].items():
            if change is None:
                del table[name]
            else:
                table[name] = change(np.asarray(table[name]))
        made = io.BytesIO()
        table.write(made, format="fits")
        return made.getvalue()

    return damage
