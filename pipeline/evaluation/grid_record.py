"""What a grid leaves on disk for the leaderboard: predictions of each experiment, and a record of the last grid.

All of it lies in one folder per image set and split, so that only experiments with the same test images meet there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catalogs.atomic import atomic_write
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError

PREDICTIONS = "predictions"
_RECORD = "grid.json"


def leaderboard_folder(workspace: Workspace, image_set: str, split: str) -> Path:
    """The folder of the leaderboard of one image set and one split, both given by their digests."""
    return workspace.reports / f"board-{image_set}-{split}"


def predictions_file(folder: Path, model_id: str) -> Path:
    """The file of an experiment's predictions; the experiment is done once this exists."""
    return folder / PREDICTIONS / f"{model_id}.parquet"


class ExperimentState(BaseModel):
    """How an experiment of the last grid ended; `reason` says why it failed or was skipped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model_id: str
    state: Literal["done", "failed", "skipped"]
    reason: str = ""


class GridRecord(BaseModel):
    """The last grid that ran on an image set and a split: what these are, and its experiments in their order.

    In the file the experiments are named `cells`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    grid: str
    image_set: str
    split: str
    source: str
    kind: str
    simulated: bool
    images: int
    test_images: int
    experiments: tuple[ExperimentState, ...] = Field(alias="cells")

    def save(self, folder: Path) -> None:
        """Write the record into the folder of a leaderboard."""
        with atomic_write(folder / _RECORD) as temporary:
            temporary.write_text(self.model_dump_json(indent=1, by_alias=True))

    @classmethod
    def load(cls, folder: Path) -> GridRecord:
        """Read the record of a folder. Raises UserError when there is none or it is damaged."""
        try:
            return cls.model_validate_json((folder / _RECORD).read_bytes())
        except (FileNotFoundError, ValidationError) as error:
            raise UserError(f"{folder / _RECORD} cannot be read ({error}); run the benchmark grid again") from error
