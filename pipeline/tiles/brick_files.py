"""Survey bricks on disk: which files belong to a brick, where its neighbours and its objects are.

Works on names and folders alone; opens no file. The surveys lay their files out as `coadd/AAA/<brick>/` beside
`tractor/AAA/` and `sweep/`, where AAA are the first three digits of the brick's name; a folder that holds the files of
one or more bricks is accepted as well.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from pipeline.tiles.brick_grid import bounds, neighbours
from pipeline.tiles.file_names import brick_of_file, product_of_file

_SWEEP = re.compile(r"sweep-(\d{3})([pm])(\d{3})-(\d{3})([pm])(\d{3})[\w.-]*\.fits(\.gz)?$")
_SUFFIXES = (".fits.fz", ".fits", ".fits.gz")


def brick_files(folder: Path, brick: str) -> list[Path]:
    """The coadd files of a brick in a folder, sorted by name."""
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return []
    return [folder / name for name in _by_brick(folder, changed).get(brick, ())]


@lru_cache(maxsize=64)
def _by_brick(folder: Path, changed: int) -> dict[str, list[str]]:
    """Names of the coadd files of each brick in a folder that was last changed at this time."""
    found: dict[str, list[str]] = {}
    for name in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ():
        found.setdefault(brick_of_file(name), []).append(name)
    return found


def plane_file(folder: Path, brick: str, product: str, band: str = "") -> Path | None:
    """The file of one product of a brick; None if there is none."""
    wanted = (product, band)
    found = [path for path in brick_files(folder, brick) if product_of_file(path.name) == wanted]
    return min(found, key=lambda path: _suffix_rank(path.name)) if found else None


def _suffix_rank(name: str) -> int:
    return next(rank for rank, suffix in enumerate(_SUFFIXES) if name.endswith(suffix))


def neighbour_folders(folder: Path, brick: str) -> dict[str, Path]:
    """Neighbouring bricks that exist, by name, with the folders they lie in."""
    found: dict[str, Path] = {}
    for other in neighbours(brick):
        places = (folder.parent.parent / other[:3] / other, folder.parent / other, folder)
        home = next((place for place in places if plane_file_of_any_band(place, other)), None)
        if home is not None:
            found[other] = home
    return found


def plane_file_of_any_band(folder: Path, brick: str) -> bool:
    """Whether a folder holds an image of a brick."""
    return any(product_of_file(path.name)[0] == "image" for path in brick_files(folder, brick))


def neighbour_files(folder: Path, brick: str) -> list[Path]:
    """The images of the neighbouring bricks that exist."""
    return [
        path
        for other, place in neighbour_folders(folder, brick).items()
        for path in brick_files(place, other)
        if product_of_file(path.name)[0] == "image"
    ]


def survey_root(folder: Path) -> Path:
    """The folder above `coadd` where the brick's folder lies in that layout, else the folder itself."""
    return folder.parents[2] if len(folder.parts) > 3 and folder.parents[1].name == "coadd" else folder


def source_of_brick(folder: Path, brick: str) -> str:
    """Stable name of a brick: that of the folder above `coadd`, or of its own folder, and the brick's."""
    return f"{survey_root(folder).name}/{brick}"


def tables_of_brick(folder: Path, brick: str) -> tuple[Path, ...]:
    """The catalogue of a brick's objects: its tractor file, else the sweeps that reach into it; none if neither."""
    root = survey_root(folder)
    tractor = [f"tractor-{brick}{suffix}" for suffix in _SUFFIXES]
    for place in (root / "tractor" / brick[:3], root / "tractor", folder, folder.parent):
        for name in tractor:
            if (place / name).is_file():
                return (place / name,)
    places = dict.fromkeys((root / "sweep", *sorted((root / "sweep").glob("*/")), folder, folder.parent))
    return tuple(
        path
        for place in places
        if place.is_dir()
        for path, box in _sweeps(place, place.stat().st_mtime_ns)
        if _overlap(box, bounds(brick))
    )


Box = tuple[float, float, float, float]


@lru_cache(maxsize=64)
def _sweeps(place: Path, changed: int) -> list[tuple[Path, Box]]:
    """Sweep files in a folder that was last changed at this time, with their bounds in ra and dec (degrees)."""
    found = []
    for path in sorted(place.glob("sweep-*.fits*")):
        match = _SWEEP.match(path.name)
        if match:
            ra1, s1, dec1, ra2, s2, dec2 = match.groups()[:6]
            box = (float(ra1), float(ra2), _signed(s1, dec1), _signed(s2, dec2))
            found.append((path, box))
    return found


def _signed(sign: str, digits: str) -> float:
    return float(digits) * (-1 if sign == "m" else 1)


def _overlap(one: Box, two: Box) -> bool:
    return one[0] < two[1] and two[0] < one[1] and one[2] < two[3] and two[2] < one[3]
