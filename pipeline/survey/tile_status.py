"""What became of the inputs of sky tiles: the one comparison of what was found with what is committed.

A sky tile is done, still to do, or still arriving (`TileStatuses`), and its last commit says what became of each of its
inputs (`last_commit`, `count_outcomes`). Whatever reports on tiles is a view of these: the plan of a run (`plan`), its
totals (`summary`), the list of files (`input_report`), the quarantine, and the state of a workspace
(`pipeline.inspection.status`). Reads only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.tiles import TileMetadata, read_tile_metadata, tile_path
from models.artifacts.registry import ModelCard
from pipeline.config.workspace import Workspace
from pipeline.ingest.planning import Plan, plan
from pipeline.ingest.readiness import ReadyPlan, ready_plan
from pipeline.tiles.sky_tile import SkyTile

CLASSIFIED, UNCLASSIFIED = "classified", "unclassified"  # outcomes of inputs that have a row


class TileState(StrEnum):
    """How far a sky tile is, as its inputs are now."""

    DONE = "done"
    TO_DO = "to_do"
    ARRIVING = "arriving"


class TileStatuses:
    """The state of every sky tile for one model.

    Parameters
    ----------
    card : the model whose commits count; None for none, then no tile is done.
    tiles : all that were found.
    now : seconds since 1970.
    again : reasons of quarantine; tiles with such an entry are to be done once more, all of them among `tiles`. No
        other tile is touched then, so that none is found to be gone.

    Raises
    ------
    UserError : a committed tile of the same name came from another place that is still there.
    """

    def __init__(
        self,
        workspace: Workspace,
        card: ModelCard | None,
        tiles: Sequence[SkyTile],
        now: float,
        again: frozenset[str] = frozenset(),
    ) -> None:
        self._catalog, self._model_id = workspace.catalog, card.model_id if card else ""
        if card is None:
            compared = Plan(list(tiles), [], [])
        else:
            compared = plan(tiles, workspace.catalog, card.model_id, card.recipe_digest, again)
        if again:
            compared = replace(compared, retired=[])
        self.plan: ReadyPlan = ready_plan(compared, workspace.settings.survey.settle_seconds, now)
        self._done = {tile.tile_id for tile in self.plan.done}

    def state(self, tile: SkyTile) -> TileState:
        """How far a tile is."""
        if tile.tile_id in self.plan.waiting:
            return TileState.ARRIVING
        return TileState.DONE if tile.tile_id in self._done else TileState.TO_DO

    def waiting_for(self, tile: SkyTile) -> str:
        """Why a tile that is still arriving cannot be taken yet; empty for any other."""
        return self.plan.waiting.get(tile.tile_id, "")

    def commit(self, tile: SkyTile) -> TileMetadata:
        """The metadata of a tile that is done."""
        metadata = last_commit(self._catalog, self._model_id, tile)
        assert metadata is not None  # the comparison has just read it
        return metadata

    def rows(self, tile: SkyTile, columns: list[str]) -> pa.Table:
        """Columns of the rows of a tile that is done."""
        return pq.read_table(tile_path(self._catalog, self._model_id, tile.tile_id), columns=columns)


def last_commit(catalog: Path, model_id: str, tile: SkyTile) -> TileMetadata | None:
    """The metadata of what a model has committed of a tile, whatever its inputs were then; None if there is nothing."""
    return read_tile_metadata(tile_path(catalog, model_id, tile.tile_id))


def current_commits(catalog: Path, model_id: str, tiles: Iterable[SkyTile]) -> list[TileMetadata]:
    """The metadata of the tiles whose last commit was made from their inputs as they are now."""
    commits = ((tile, last_commit(catalog, model_id, tile)) for tile in tiles)
    return [metadata for tile, metadata in commits if metadata and metadata.fingerprint == tile.fingerprint]


def count_outcomes(commits: Iterable[TileMetadata]) -> Counter[str]:
    """How many inputs have which outcome: `CLASSIFIED`, `UNCLASSIFIED`, or the reason why they have no row."""
    counts: Counter[str] = Counter({CLASSIFIED: 0, UNCLASSIFIED: 0})
    for metadata in commits:
        counts[CLASSIFIED] += metadata.classified
        counts[UNCLASSIFIED] += metadata.unclassified
        counts.update(entry.reason for entry in metadata.quarantine)
    return counts
