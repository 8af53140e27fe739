"""File by file, what became of everything that lies where sky arrives: no file is left out.

Put together from the walk, the plan, and what is committed; changes nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from catalogs.schema import flag_names
from catalogs.tiles import DUPLICATE, OUTSIDE, read_tile_metadata, tile_path
from models.artifacts.registry import ModelCard
from pipeline.config.workspace import Workspace
from pipeline.core.object_ids import printable
from pipeline.ingest.discovery import walked
from pipeline.ingest.planning import Plan, plan
from pipeline.ingest.readiness import ReadyPlan, ready_plan
from pipeline.survey.run import places, tiles_in
from pipeline.tiles.file_names import FOLDER_KINDS, TileKind, brick_of_file, kind_of, role_of
from pipeline.tiles.sky_tile import SkyTile, names_of, table_of

_PENDING = "not surveyed yet"


@dataclass(frozen=True)
class InputStatus:
    """What became of one file. `tile` is the id of its sky tile, empty where it belongs to none or to several."""

    file: str
    tile: str
    kind: str
    outcome: str


def input_statuses(
    workspace: Workspace, roots: Sequence[Path], card: ModelCard | None, now: float
) -> Iterator[InputStatus]:
    """One entry for every file under the roots, hidden ones aside, in the order of folders and names.

    Files are named relative to their root. `card` is the model whose rows count, None for none; `now` is in seconds
    since 1970.

    Raises
    ------
    UserError : a root does not exist, or cannot be read.
    """
    tiles = tiles_in(workspace, roots)
    teller = _StatusLookup(workspace, card, tiles, _planned(workspace, card, tiles, now))
    seen: set[str] = set()
    for root in places(workspace, roots):
        for folder, names in _folders(root.resolve(), seen):
            outcomes = teller.of_folder(folder, names)
            for name in names:
                yield InputStatus(_relative(folder / name, root.resolve()), *outcomes[name])


def _planned(workspace: Workspace, card: ModelCard | None, tiles: list[SkyTile], now: float) -> ReadyPlan:
    whole = plan(tiles, workspace.catalog, card.model_id, card.recipe_digest) if card else Plan(tiles, [], [])
    return ready_plan(whole, workspace.settings.survey.settle_seconds, now)


def _folders(root: Path, seen: set[str]) -> Iterator[tuple[Path, list[str]]]:
    """Folders as discovery walks them, each once, with the names of the files that are not hidden, sorted."""
    if root.is_file():
        yield root.parent, [root.name]
        return
    for folder, names in walked(root, seen):
        yield folder, sorted(name for name in names if not name.startswith("."))


def _relative(path: Path, root: Path) -> str:
    return printable(path.name if path == root else str(path.relative_to(root)))


Told = tuple[str, str, str]  # tile, kind, outcome


class _StatusLookup:
    """Tells what became of the files of a folder; holds the rows of one tile at a time."""

    def __init__(self, workspace: Workspace, card: ModelCard | None, tiles: list[SkyTile], todo: ReadyPlan) -> None:
        self.catalog, self.model_id = workspace.catalog, card.model_id if card else ""
        self.waiting, self.done = todo.waiting, {tile.tile_id for tile in todo.done}
        self.catalogue = (workspace.root / workspace.settings.bricks.catalogue).resolve()
        self.tiles: dict[str, list[SkyTile]] = defaultdict(list)
        for tile in tiles:
            self.tiles[tile.path].append(tile)

    def of_folder(self, folder: Path, names: list[str]) -> dict[str, Told]:
        """What became of each of these files of a folder."""
        here = self.tiles.get(str(folder), [])
        told = {name: self._aside(folder, name) for name in names}
        for tile in here:
            if tile.kind in FOLDER_KINDS:
                told |= self._of_names(tile)
        bricks = {tile.brick: tile for tile in here if tile.kind is TileKind.BRICK}
        for brick, tile in bricks.items():
            fate: Told = (tile.tile_id, tile.kind, f"brick {brick}: {self._counts([tile])}")
            told |= {name: fate for name in names if brick_of_file(name) == brick}
        for name in names:
            if kind_of(name) in (TileKind.HDF5, TileKind.ARCHIVE) and (parts := self.tiles.get(str(folder / name))):
                tile_id = parts[0].tile_id if len(parts) == 1 else ""
                told[name] = (tile_id, parts[0].kind, self._counts(parts))
        return {name: told[name] for name in names}

    def _aside(self, folder: Path, name: str) -> Told:
        """A file that is in no tile, by its name."""
        role = role_of(name)
        if role == "catalogue":
            brick = name.partition("-")[2].partition(".")[0]
            return "", role, f"catalogue of brick {brick}" if name.startswith("tractor-") else "catalogue of bricks"
        if role:
            return "", role, {"manifest": "list of checksums"}.get(role, "table of the survey, without images")
        if (folder / name).resolve() == self.catalogue:
            return "", "positions", "list of positions to cut"
        if name.lower().endswith(".csv") and table_of(folder) == folder / name:
            return "", "table", "table of positions"
        if brick := brick_of_file(name):
            return "", TileKind.BRICK, f"brick {brick}: no position of the list is cut from it"
        return "", "", "passed over: no input by its name"

    def _of_names(self, tile: SkyTile) -> dict[str, Told]:
        """What became of each file of a folder's tile; a file that holds several objects has their counts."""
        pending = self._pending(tile)
        if pending:
            return dict.fromkeys(names_of(tile), (tile.tile_id, tile.kind, pending))
        outcomes: dict[str, list[str]] = defaultdict(list)
        for source_name, outcome in self._outcomes(tile):
            outcomes[source_name.partition("#")[0]].append(outcome)
        told: dict[str, Told] = {}
        for name in names_of(tile):
            got = outcomes[printable(f"{tile.source}/{name}").partition("#")[0]]
            told[name] = (tile.tile_id, tile.kind, got[0] if len(got) == 1 else _summed(o.split(":")[0] for o in got))
        return told

    def _outcomes(self, tile: SkyTile) -> Iterator[tuple[str, str]]:
        """Source name and outcome of every input of a tile that is done."""
        path = tile_path(self.catalog, self.model_id, tile.tile_id)
        rows = pq.read_table(path, columns=["source_name", "label", "confidence", "quality_flags"])
        for row in rows.to_pylist():
            flags = ", ".join(f for f in flag_names(row["quality_flags"]) if f != "unclassified")
            said = f"classified: {row['label']} {row['confidence']:.2f}" if row["label"] else "unclassified"
            yield row["source_name"], said + (f" ({flags})" if flags else "")
        stamp = read_tile_metadata(path)
        for entry in stamp.quarantine if stamp else ():
            yield entry.source_name, f"quarantined: {entry.reason}"

    def _counts(self, tiles: list[SkyTile]) -> str:
        """What became of the inputs of tiles, in numbers, from their stamps alone."""
        found: Counter[str] = Counter()
        pending: Counter[str] = Counter()
        for tile in tiles:
            if why := self._pending(tile):
                pending[why] += 1
                continue
            stamp = read_tile_metadata(tile_path(self.catalog, self.model_id, tile.tile_id))
            assert stamp is not None  # the plan found it a moment ago
            found.update({"classified": stamp.classified, "unclassified": stamp.unclassified})
            found.update(
                {DUPLICATE: "duplicates", OUTSIDE: "out of footprint"}.get(entry.reason, f"quarantined: {entry.reason}")
                for entry in stamp.quarantine
            )
        parts = [f"{count} {what}" for what, count in found.items() if count]
        parts += [
            why if count == len(tiles) else f"{count} of {len(tiles)} tiles {why}" for why, count in pending.items()
        ]
        return ", ".join(parts) or "no objects"

    def _pending(self, tile: SkyTile) -> str:
        """Why nothing is known of a tile as it is now; empty when it is done."""
        if tile.tile_id in self.waiting:
            return f"waiting: {self.waiting[tile.tile_id]}"
        return "" if tile.tile_id in self.done else _PENDING


def _summed(outcomes: Iterator[str]) -> str:
    counts = Counter(outcomes)
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or _PENDING
