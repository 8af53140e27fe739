"""A thousand mutilated files: no reader raises but what it documents, every input is accounted for, with a reason that
makes sense for what was done to the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalogs.tiles import QuarantineEntry
from pipeline.config.inputs import BrickSettings, ReadingSettings
from pipeline.core.errors import BadInput, Reason, UserError
from pipeline.core.object_ids import printable
from pipeline.ingest.discovery import discover
from pipeline.ingest.position_list import for_positions
from pipeline.readers.bricks.positions import read_list
from pipeline.readers.dispatch import read_tile
from pipeline.readers.stamps import Stamp
from pipeline.survey.classify import ClassifyJob
from pipeline.tiles.sky_tile import SkyTile
from tests.conftest import Small
from tests.pipeline import damaged_files as made
from tests.pipeline.damaged_files import BrickCase, Case, Good
from tests.pipeline.makers import hdf5_columns, write_cutout, write_cutouts, write_hdf5, write_pictures
from tests.pipeline.mutilations import BLOCK, CUTOUT, STAMP
from tests.pipeline.survey.test_classify import run

COUNTS = {"cutouts": 400, "archives": 130, "hdf5": 140, "pictures": 80, "tables": 40, "bricks": 120, "lists": 90}
READING = ReadingSettings(bricks=BrickSettings(stamp_pixels=32, large_radius=0))


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Good]:
    return made.good_cutouts(tmp_path_factory.mktemp("forms"))


def test_a_thousand() -> None:
    assert sum(COUNTS.values()) == 1000


@dataclass
class Became:
    """What became of one tile: `whole` holds the refusal of a tile of which nothing can be used."""

    tile: SkyTile
    stamps: list[Stamp] = field(default_factory=list)
    refused: list[QuarantineEntry] = field(default_factory=list)
    whole: BadInput | None = None
    set_aside: int = 0
    remarks: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.stamps) + len(self.refused)

    @property
    def fates(self) -> dict[str, Any]:
        """Stamps and reasons by source name, each of which is there once."""
        found: dict[str, Any] = {stamp.source_name: stamp for stamp in self.stamps}
        found |= {entry.source_name: entry.reason for entry in self.refused}
        assert len(found) == self.count
        return found

    @property
    def outcomes(self) -> set[str]:
        whole = {self.whole.reason} if self.whole else set()
        return {STAMP for _ in self.stamps} | {entry.reason for entry in self.refused} | whole


def became(tiles: Iterable[SkyTile], reading: ReadingSettings = READING) -> list[Became]:
    """Read tiles; whatever is raised but `BadInput` ends the test."""
    return [_became(tile, reading) for tile in tiles]


def _became(tile: SkyTile, reading: ReadingSettings) -> Became:
    found = Became(tile)
    named = (printable(tile.path), tile.brick or tile.path, *tile.tables)
    try:
        for batch in read_tile(tile, reading, 8):
            found.stamps += batch.stamps
            found.refused += batch.quarantine
            found.set_aside += sum(sum(note.set_aside.values()) for note in batch.notes)
            found.remarks += [remark for note in batch.notes for remark in note.remarks]
    except BadInput as bad:
        found.whole = bad
        assert not found.count
        assert bad.reason in set(Reason) and any(name in printable(bad.detail) for name in named), bad
    for stamp in found.stamps:
        check_stamp(stamp)
    for entry in found.refused:
        assert entry.reason in set(Reason) and any(name in entry.detail for name in (entry.file, *named)), entry
        assert entry.file.startswith(printable(tile.path)) and entry.model_dump_json()
    return found


def check_stamp(stamp: Stamp) -> None:
    """What is documented of every stamp."""
    pixels, rgb = stamp.pixels, stamp.pixels.dtype == np.uint8
    assert (pixels.dtype == np.float32 and pixels.dtype.isnative) or rgb
    assert pixels.ndim == 3 and pixels.shape[2 if rgb else 0] == 3 and min(pixels.shape) >= 1
    assert 0 <= stamp.ra < 360 and -90 <= stamp.dec <= 90
    assert math.isnan(stamp.pixscale) or 0 < stamp.pixscale < math.inf
    assert 0 <= stamp.bad_pixel_fraction <= 1 + 1e-6 and stamp.quality >= 0 and -1 <= stamp.maskbits < 1 << 31
    assert 0 <= stamp.object_id < 1 << 63 and stamp.source_name == printable(stamp.source_name)


def objections(case: Case, found: Became) -> list[str]:
    """What is not sensible about the outcomes of a tile that is one case."""
    said = [found.whole.detail] if found.whole else [entry.detail for entry in found.refused]
    more = found.outcomes - case.outcomes
    wrong = [f"{found.tile.source}, {case.what}: {sorted(more)}, {said[:2]}"] if more else []
    return wrong + [text for stamp in found.stamps for text in _changed(case, stamp)]


def _changed(case: Case, stamp: Stamp) -> list[str]:
    same = [np.array_equal(stamp.pixels, good) for end, good in case.pixels.items() if stamp.source_name.endswith(end)]
    return [] if all(same) else [f"{case.what}: {stamp.source_name} has other pixels"]


def objections_by_name(cases: dict[str, Case], fates: dict[str, Any]) -> list[str]:
    """The same where every input is a case."""
    assert fates.keys() == cases.keys()
    outcomes = {name: STAMP if isinstance(fate, Stamp) else fate for name, fate in fates.items()}
    bad = {name: outcome for name, outcome in outcomes.items() if outcome not in cases[name].outcomes}
    wrong = [f"{name}, {cases[name].what}: {outcome}" for name, outcome in bad.items()]
    stamps = ((case, fates[name]) for name, case in cases.items() if outcomes[name] == STAMP)
    return wrong + [text for case, stamp in stamps for text in _changed(case, stamp)]


def test_cutouts(forms: dict[str, Good], tmp_path: Path) -> None:
    folder = write_cutouts(tmp_path / "in" / "C", 3)
    cases = made.damaged_cutouts(folder, forms, COUNTS["cutouts"], np.random.default_rng(1))
    cases |= {f"g{i:03d}.fits": Case("good", frozenset({STAMP})) for i in range(3)}
    tiles = became(discover([tmp_path / "in"], 100, READING).tiles)
    assert len(tiles) == 5 and not any(found.whole for found in tiles)
    fates = {name: fate for found in tiles for name, fate in found.fates.items()}
    wrong = objections_by_name({f"in/C/{name}": case for name, case in cases.items()}, fates)
    assert not wrong, "\n".join(wrong)


def test_archives(forms: dict[str, Good], tmp_path: Path) -> None:
    """Each member is a stamp, refused, or counted as another file, or there is an entry for the rest."""
    kinds = made.good_archives(tmp_path, forms)
    cases = made.damaged_files(tmp_path / "in" / "A", kinds, COUNTS["archives"], np.random.default_rng(2))
    tiles = became(discover([tmp_path / "in"], 100, READING).tiles)
    assert {found.tile.source for found in tiles} == {f"A/{name}" for name in cases}
    wrong: list[str] = []
    for found in tiles:
        case = cases[found.tile.source.removeprefix("A/")]
        wrong += objections(case, found)
        names = {name.removeprefix(f"{found.tile.source}/") for name in found.fates}
        others = sum(int(remark.split()[0]) for remark in found.remarks)
        if not found.whole and len(names) + others < made.MEMBERS and "(the rest of the archive)" not in names:
            wrong.append(f"{found.tile.source}, {case.what}: only {sorted(names)} and {others} others")
    assert not wrong, "\n".join(wrong)


def test_hdf5(tmp_path: Path) -> None:
    """A file gives all of its rows, stamps or refused, or is refused as a whole."""
    kinds = made.good_hdf5(tmp_path)
    cases = made.damaged_files(tmp_path / "in", kinds, COUNTS["hdf5"], np.random.default_rng(3))
    tiles = became(discover([tmp_path / "in"], 100, READING).tiles)
    assert {found.tile.source for found in tiles} == {f"in/{name}" for name in cases}
    for found in tiles:
        if not found.whole:
            assert found.fates.keys() == {f"{found.tile.source}#{row}" for row in range(found.tile.stop)}
    wrong = [text for found in tiles for text in objections(cases[found.tile.source.removeprefix("in/")], found)]
    assert not wrong, "\n".join(wrong)


def test_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    kinds = made.good_pictures(tmp_path / "good")
    pictures = made.damaged_pictures(tmp_path / "in" / "P", kinds, COUNTS["pictures"], rng)
    tables = made.damaged_tables(tmp_path / "in", COUNTS["tables"], rng)
    cases = {f"in/P/{name}": case for name, case in pictures.items()}
    cases |= {f"in/{name}/p00{i}.jpg": case for name, case in tables.items() for i in range(2)}
    fates: dict[str, Any] = {}
    for found in became(discover([tmp_path / "in"], 100, READING).tiles):
        fates |= found.fates
        if found.whole:  # of a table that cannot be used
            fates |= {f"{found.tile.source}/p00{i}.jpg": found.whole.reason for i in range(2)}
    wrong = objections_by_name(cases, fates)
    assert not wrong, "\n".join(wrong)


def test_bricks(tmp_path: Path) -> None:
    """Rows of the catalogue = stamps + refused + set aside."""
    whole = made.good_brick(tmp_path / "good")
    cases = made.damaged_bricks(tmp_path / "in", whole, COUNTS["bricks"], np.random.default_rng(5))
    tiles = became(discover([tmp_path / "in"], 100, READING).tiles)
    assert {found.tile.source.partition("/")[0] for found in tiles} == cases.keys() and len(tiles) == len(cases)
    wrong: list[str] = []
    for found in tiles:
        case = cases[found.tile.source.partition("/")[0]]
        wrong += objections(case, found)
        count = found.count + found.set_aside
        if not found.whole and count != _rows_of_brick(case, count):
            wrong.append(f"{found.tile.source}, {case.what}: {found.count} + {found.set_aside} rows")
    assert not wrong, "\n".join(wrong)


def _rows_of_brick(case: BrickCase, found: int) -> int:
    """Rows of the catalogue, as its header says; those of a sweep whose brick is damaged are no brick's."""
    match = re.search(rb"XTENSION.{80,640}?NAXIS2  = +(\d+)", case.table[BLOCK:], re.DOTALL)
    rows = int(match[1]) if match else -1
    elsewhere = case.is_sweep and ("flipped" in case.what or "another brick" in case.what)
    return min(rows, found) if elsewhere else rows


@pytest.mark.filterwarnings("ignore")  # what astropy says of damaged FITS
def test_lists(tmp_path: Path) -> None:
    """A list is refused with an error for the user that names it, or each of its rows is accounted for."""
    rng = np.random.default_rng(6)
    made.good_brick(tmp_path / "in" / "B")
    bricks = discover([tmp_path / "in"], 100, READING).tiles
    files = made.good_lists(tmp_path)
    reading = READING.model_copy(update={"bricks": READING.bricks.model_copy(update={"catalogue": "list"})})
    wrong: list[str] = []
    for number in range(COUNTS["lists"]):
        good = files[number % len(files)]
        bad, case = made.mutilated(good, number // len(files), rng)
        path = tmp_path / f"{number}{good.ending}"
        path.write_bytes(bad)
        try:
            found = became(for_positions(bricks, path, tmp_path / "cut", reading), reading)
        except UserError as error:
            assert str(path) in str(error)
            wrong += [] if made.REFUSED in case.outcomes else [f"{path.name}, {case.what}: {error}"]
            continue
        wrong += [text for one in found for text in objections(case, one)]
        assert sum(one.count for one in found) == len(read_list(path))
    assert not wrong, "\n".join(wrong)


def test_files_of_one_kind_under_the_name_of_another(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in" / "M", 1)
    cutout = write_cutout(folder / "a.fits").read_bytes()
    hdf5 = write_hdf5(folder / "b.h5", hdf5_columns(2)).read_bytes()
    jpeg = (folder / "p000.jpg").read_bytes()
    for name, content in {"j.fits": jpeg, "h.fits": hdf5, "c.jpg": cutout, "j.h5": jpeg, "c.zip": cutout}.items():
        (folder / name).write_bytes(content)
    tiles = became(discover([tmp_path / "in"], 100, READING).tiles)
    stamps = sorted(stamp.source_name for found in tiles for stamp in found.stamps)
    assert stamps == ["M/b.h5#0", "M/b.h5#1", "in/M/a.fits", "in/M/p000.jpg"]
    assert sorted(entry.source_name for found in tiles for entry in found.refused) == [
        "in/M/c.jpg",
        "in/M/h.fits",
        "in/M/j.fits",
    ]
    wholes = {found.tile.source: found.whole.reason for found in tiles if found.whole}
    assert wholes == dict.fromkeys(("M/j.h5", "M/c.zip"), Reason.UNREADABLE_FILE)


def test_a_real_cutout_damaged(shared: Path, tmp_path: Path) -> None:
    content = (shared / "data/fits/decals_grz_cutouts/temp_small.fits").read_bytes()
    anywhere = {name: CUTOUT[name] for name in ("cut", "emptied", "flipped", "header flipped", "blanked", "repeated")}
    cases = made.damaged_cutouts(
        tmp_path / "in" / "C", {"real": Good(content, ".fits", anywhere)}, 18, np.random.default_rng(8)
    )
    (found,) = became(discover([tmp_path / "in"], 100, READING).tiles)
    wrong = objections_by_name({f"in/C/{name}": case for name, case in cases.items()}, found.fates)
    assert not wrong, "\n".join(wrong)


def test_what_the_mutilations_are_made_from_is_good(forms: dict[str, Good], tmp_path: Path) -> None:
    """Else the tests above would only prove that everything is refused."""
    (tmp_path / "in" / "C").mkdir(parents=True)
    for form, good in forms.items():
        (tmp_path / "in" / "C" / f"{form}{good.ending}").write_bytes(good.content)
    for number, good in enumerate([*made.good_archives(tmp_path, forms), *made.good_hdf5(tmp_path)]):
        (tmp_path / "in" / f"{number}{good.ending}").write_bytes(good.content)
    made.good_pictures(tmp_path / "in" / "P")
    made.good_brick(tmp_path / "in" / "B")
    tiles = became(discover([tmp_path / "in"], 100, READING).tiles)
    assert not any(found.whole or found.refused for found in tiles)
    assert sum(found.count for found in tiles) == 5 + 3 * (made.MEMBERS - 1) + 2 * 5 + 1 + 3
    (brick,) = (found for found in tiles if found.tile.brick)
    assert brick.set_aside == 2 and not brick.remarks


def test_a_run_among_good_ones(small: Small, tmp_path: Path) -> None:
    """Sixty mutilated files through classification: every tile is committed, and its sum closes."""
    rng, root = np.random.default_rng(7), tmp_path / "in"
    forms = made.good_cutouts(tmp_path)
    counted: dict[str, int] = {}  # inputs by source, where no damage can change their number
    cutouts = made.damaged_cutouts(write_cutouts(root / "C", 4), forms, 25, rng)
    counted["in/C"] = 4 + len(cutouts)
    pictures = made.damaged_pictures(root / "P", made.good_pictures(tmp_path / "good"), 9, rng)
    counted["in/P"] = len(pictures)
    made.damaged_files(root / "H", made.good_hdf5(tmp_path), 8, rng)
    made.damaged_files(root / "A", made.good_archives(tmp_path, forms), 9, rng)
    bricks = made.damaged_bricks(root / "B", made.good_brick(tmp_path / "whole"), 9, rng)
    found: dict[str, int] = {}
    for tile in discover([root], 20, READING).tiles:
        job = ClassifyJob(
            tile=tile,
            models=str(small.workspace.models),
            model_id=small.card.model_id,
            catalog=str(tmp_path / "catalog"),
            run_id="run",
            mjd=60000.0,
            device="cpu",
            batch=8,
            reading=READING,
        )
        rows, stamp = run(job)
        parts = (stamp.classified, stamp.unclassified, stamp.quarantined, stamp.out_of_footprint, stamp.duplicates)
        names = [*rows["source_name"], *(entry.source_name for entry in stamp.quarantine)]
        assert sum(parts) == stamp.inputs == len(names) == len(set(names))
        assert stamp.rejected == "" or rows.empty
        found[tile.source] = found.get(tile.source, 0) + stamp.inputs
    assert {source: found[source] for source in counted} == counted
    assert len(found) == 2 + 8 + 9 + len(bricks)
