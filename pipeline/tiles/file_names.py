"""What a file is by its name: which kind of sky tile it belongs to, which brick, or which part it plays otherwise.

All rules about names stand here. Nothing is opened; `inputs_in` alone looks into a folder.
"""

from __future__ import annotations

import os
import re
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from pipeline.tiles.brick_grid import brick_id

_EXTENSIONS = {
    ".fits": "cutouts",
    ".fits.gz": "cutouts",
    ".fits.fz": "cutouts",
    ".fit": "cutouts",
    ".jpg": "pictures",
    ".jpeg": "pictures",
    ".png": "pictures",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".tar": "archive",
    ".tar.gz": "archive",
    ".tgz": "archive",
    ".zip": "archive",
}
# Files of the survey that hold no image of the sky to cut from.
_CATALOGUE = re.compile(r"(tractor-\d{4}[pm]\d{3}|sweep-\d{3}[pm]\d{3}-\d{3}[pm]\d{3}[\w.-]*)\.fits(\.gz|\.fz)?$")
_SURVEY_TABLE = re.compile(r"(survey-bricks|survey-ccds|ccds-annotated|blobs-\d{4}[pm]\d{3})[\w.-]*\.fits(\.gz|\.fz)?$")
_PREVIEW = re.compile(r"[A-Za-z0-9]+-\d{4}[pm]\d{3}-[\w-]+\.(jpe?g|png)$")  # of a whole brick, for people
MANIFEST = "manifest.sha256"
_BRICK = r"(?P<brick>\d{4}[pm]\d{3})"
_FILE = re.compile(
    rf"(?!tractor-|blobs-|sweep-)[A-Za-z0-9]+-{_BRICK}"
    r"-(?P<product>[a-z0-9]+)(-(?P<band>[A-Za-z0-9]+))?\.fits(\.fz|\.gz)?$"
)


class TileKind(StrEnum):
    """What a sky tile is made of. `positions` holds what a list of positions asks for if there is no brick."""

    BRICK = "brick"
    CUTOUTS = "cutouts"
    PICTURES = "pictures"
    ARCHIVE = "archive"
    HDF5 = "hdf5"
    POSITIONS = "positions"


FOLDER_KINDS = (TileKind.CUTOUTS, TileKind.PICTURES)


def kind_of(name: str) -> TileKind | None:
    """The kind of tile a file belongs to by its name; None for files that are no input (tables, hidden files)."""
    lower = name.lower()
    if lower.startswith(".") or role_of(name):
        return None
    if brick_of_file(name):
        return TileKind.BRICK
    for extension, kind in _EXTENSIONS.items():
        if lower.endswith(extension):
            return TileKind(kind)
    return None


def role_of(name: str) -> str:
    """What a file that is no input is by its name: catalogue, survey table, preview, manifest; empty for all others."""
    if _CATALOGUE.match(name):
        return "catalogue"
    if _SURVEY_TABLE.match(name):
        return "survey table"
    if _PREVIEW.match(name):
        return "preview"
    return "manifest" if name.endswith((".sha256", ".sha256sum")) else ""


def inputs_in(folder: Path, kind: TileKind) -> list[str]:
    """Names of the input files of a kind in a folder, sorted. A link to nothing is one: it will be quarantined."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if kind_of(e.name) == kind and _is_input(e)]
    return sorted(names)


def _is_input(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a file or a link to nothing."""
    path = Path(entry.path)  # whose `is_file` is false for a link to itself, where that of the entry raises
    return path.is_file() or (entry.is_symlink() and not path.exists())


def brick_of_file(name: str) -> str:
    """The brick that a coadd file such as legacysurvey-1498p020-image-g.fits.fz belongs to; empty for other files."""
    match = _FILE.match(name)
    return match["brick"] if match and is_brick(match["brick"]) else ""


@lru_cache(maxsize=4096)
def is_brick(brick: str) -> bool:
    """Whether the survey's grid has a brick of this name."""
    try:
        return brick_id(brick) > 0
    except ValueError:
        return False


def product_of_file(name: str) -> tuple[str, str]:
    """Product and band of a coadd file, such as ("image", "g") or ("maskbits", ""). Empty for other files."""
    match = _FILE.match(name)
    return (match["product"], match["band"] or "") if match else ("", "")


def bricks_in(names: list[str]) -> list[str]:
    """The bricks that have files among these names, sorted."""
    return sorted({brick_of_file(name) for name in names} - {""})
