"""File by file, what became of everything under the roots of a survey: no file is left out.

A view of `tile_status` for files, put together with a walk through the roots; changes nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from catalogs.schema import flag_names
from catalogs.tiles import DUPLICATE, OUTSIDE
from models.artifacts.registry import ModelCard
from pipeline.config.workspace import Workspace
from pipeline.core.object_ids import printable
from pipeline.ingest.discovery import walked
from pipeline.survey.plan import input_roots, tiles_in
from pipeline.survey.tile_status import CLASSIFIED, UNCLASSIFIED, TileState, TileStatuses, count_outcomes
from pipeline.tiles.file_names import FOLDER_KINDS, TileKind, brick_of_file, kind_of, role_of
from pipeline.tiles.sky_tile import SkyTile, names_of, table_of

_NOT_SURVEYED = "not surveyed yet"
_OUTCOME_NAMES = {outcome: outcome for outcome in (CLASSIFIED, UNCLASSIFIED)} | {
    DUPLICATE: "duplicates",
    OUTSIDE: "out of footprint",
}


@dataclass(frozen=True)
class InputStatus:
    """What became of one file. `tile` is the id of its sky tile, empty if it belongs to none or to several."""

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
    lookup = _StatusLookup(workspace, tiles, TileStatuses(workspace, card, tiles, now))
    seen: set[str] = set()
    for root in input_roots(workspace, roots):
        for folder, names in _folders(root.resolve(), seen):
            statuses = lookup.of_folder(folder, names)
            for name in names:
                yield InputStatus(_relative(folder / name, root.resolve()), *statuses[name])


def _folders(root: Path, seen: set[str]) -> Iterator[tuple[Path, list[str]]]:
    """Folders as discovery walks them, each once, with the names of the files that are not hidden, sorted."""
    if root.is_file():
        yield root.parent, [root.name]
        return
    for folder, names in walked(root, seen):
        yield folder, sorted(name for name in names if not name.startswith("."))


def _relative(path: Path, root: Path) -> str:
    return printable(path.name if path == root else str(path.relative_to(root)))


FileStatus = tuple[str, str, str]  # tile, kind, outcome


class _StatusLookup:
    """The status of the files of a folder; holds the rows of one tile at a time."""

    def __init__(self, workspace: Workspace, tiles: list[SkyTile], statuses: TileStatuses) -> None:
        self._statuses = statuses
        self._position_list = (workspace.root / workspace.settings.bricks.catalogue).resolve()
        self._tiles: dict[str, list[SkyTile]] = defaultdict(list)
        for tile in tiles:
            self._tiles[tile.path].append(tile)

    def of_folder(self, folder: Path, names: list[str]) -> dict[str, FileStatus]:
        """The status of each of these files of a folder."""
        tiles = self._tiles.get(str(folder), [])
        statuses = {name: self._without_tile(folder, name) for name in names}
        for tile in tiles:
            if tile.kind in FOLDER_KINDS:
                statuses |= self._of_inputs(tile)
        bricks = {tile.brick: tile for tile in tiles if tile.kind is TileKind.BRICK}
        for brick, tile in bricks.items():
            status: FileStatus = (tile.tile_id, tile.kind, f"brick {brick}: {self._counts([tile])}")
            statuses |= {name: status for name in names if brick_of_file(name) == brick}
        for name in names:
            if kind_of(name) in (TileKind.HDF5, TileKind.ARCHIVE) and (parts := self._tiles.get(str(folder / name))):
                tile_id = parts[0].tile_id if len(parts) == 1 else ""
                statuses[name] = (tile_id, parts[0].kind, self._counts(parts))
        return {name: statuses[name] for name in names}

    def _without_tile(self, folder: Path, name: str) -> FileStatus:
        """The status of a file that is in no tile, by its name."""
        role = role_of(name)
        if role == "catalogue":
            brick = name.partition("-")[2].partition(".")[0]
            return "", role, f"catalogue of brick {brick}" if name.startswith("tractor-") else "catalogue of bricks"
        if role:
            return "", role, {"manifest": "list of checksums"}.get(role, "table of the survey, without images")
        if (folder / name).resolve() == self._position_list:
            return "", "positions", "list of positions to cut"
        if name.lower().endswith(".csv") and table_of(folder) == folder / name:
            return "", "table", "table of positions"
        if brick := brick_of_file(name):
            return "", TileKind.BRICK, f"brick {brick}: no position of the list is cut from it"
        return "", "", "passed over: no input by its name"

    def _of_inputs(self, tile: SkyTile) -> dict[str, FileStatus]:
        """The status of each file of a folder's tile; a file that holds several objects has their counts."""
        if pending := self._pending(tile):
            return dict.fromkeys(names_of(tile), (tile.tile_id, tile.kind, pending))
        outcomes: dict[str, list[str]] = defaultdict(list)
        for source_name, outcome in self._outcomes(tile):
            outcomes[source_name.partition("#")[0]].append(outcome)
        statuses: dict[str, FileStatus] = {}
        for name in names_of(tile):
            of_file = outcomes[printable(f"{tile.source}/{name}").partition("#")[0]]
            statuses[name] = (tile.tile_id, tile.kind, of_file[0] if len(of_file) == 1 else _without_details(of_file))
        return statuses

    def _outcomes(self, tile: SkyTile) -> Iterator[tuple[str, str]]:
        """Source name and outcome of every input of a tile that is done."""
        rows = self._statuses.rows(tile, ["source_name", "label", "confidence", "quality_flags"])
        for row in rows.to_pylist():
            flags = ", ".join(f for f in flag_names(row["quality_flags"]) if f != "unclassified")
            outcome = f"{CLASSIFIED}: {row['label']} {row['confidence']:.2f}" if row["label"] else UNCLASSIFIED
            yield row["source_name"], outcome + (f" ({flags})" if flags else "")
        for entry in self._statuses.commit(tile).quarantine:
            yield entry.source_name, f"quarantined: {entry.reason}"

    def _counts(self, tiles: list[SkyTile]) -> str:
        """What became of the inputs of tiles, in numbers, from the metadata of their commits alone."""
        done = [tile for tile in tiles if self._statuses.state(tile) is TileState.DONE]
        outcomes = count_outcomes(self._statuses.commit(tile) for tile in done)
        pending = Counter(why for tile in tiles if (why := self._pending(tile)))
        parts = [
            f"{count} {_OUTCOME_NAMES.get(outcome, f'quarantined: {outcome}')}"
            for outcome, count in outcomes.items()
            if count
        ]
        parts += [
            why if count == len(tiles) else f"{count} of {len(tiles)} tiles {why}" for why, count in pending.items()
        ]
        return ", ".join(parts) or "no objects"

    def _pending(self, tile: SkyTile) -> str:
        """Why nothing is known of a tile as it is now; empty when it is done."""
        match self._statuses.state(tile):
            case TileState.ARRIVING:
                return f"waiting: {self._statuses.waiting_for(tile)}"
            case TileState.TO_DO:
                return _NOT_SURVEYED
            case TileState.DONE:
                return ""


def _without_details(outcomes: Iterable[str]) -> str:
    """How many objects of a file have which outcome."""
    counts = Counter(outcome.partition(":")[0] for outcome in outcomes)
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or _NOT_SURVEYED
