"""The board of a benchmark: what the cells of grids have measured on one frozen test split, added up over seeds.

Everything on it comes from the cards of the models and from the files of predictions that the cells left, so it can be
made again at any time. Cells that differ in nothing but the seed make a row. How it is written is known to
`pipeline.evaluation.leaderboard_report`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from catalogs.atomic import atomic_write
from models.artifacts.registry import ModelCard, load_card
from models.metrics import Evaluation, ReliabilityBin
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.evaluation.evaluate import PredictedSplit
from pipeline.evaluation.paired import AccuracyDifference, compare_accuracy
from pipeline.evaluation.published_results import benchmark_of, published_for

log = logging.getLogger(__name__)

_PREDICTIONS = "predictions"
_RECORD = "grid.json"
_BINS = 15  # of the reliability tables of the cards

METRICS = (
    "accuracy",
    "macro_f1",
    "ece_before",
    "ece",
    "brier_before",
    "brier",
    "nll_before",
    "nll",
    "coverage",
    "mean_set_size",
    "images_per_second",
    "training_images_per_second",
)
"""Numbers of a cell. `_before` is at temperature 1, the others as served; `images_per_second` is inference on the test
split, `training_images_per_second` the median epoch."""


def leaderboard_folder(workspace: Workspace, image_set: str, split: str) -> Path:
    """Where the board of one image set and one split lies."""
    return workspace.reports / f"board-{image_set}-{split}"


def predictions_file(folder: Path, model_id: str) -> Path:
    """Where a cell keeps the predictions of its model; it is done when this is there."""
    return folder / _PREDICTIONS / f"{model_id}.parquet"


# --- what a grid leaves beside the predictions --------------------------------------------------------------------


class ExperimentState(BaseModel):
    """How a cell of the last grid ended; `reason` says why it failed or was skipped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model_id: str
    state: Literal["done", "failed", "skipped"]
    reason: str = ""


class GridRecord(BaseModel):
    """The last grid that ran on an image set and a split: what they are, and its cells in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: str
    image_set: str
    split: str
    source: str
    kind: str
    simulated: bool
    images: int
    test_images: int
    cells: tuple[ExperimentState, ...]

    def save(self, folder: Path) -> None:
        """Write it into the folder of a board."""
        with atomic_write(folder / _RECORD) as beside:
            beside.write_text(self.model_dump_json(indent=1))

    @classmethod
    def load(cls, folder: Path) -> GridRecord:
        """Read it. Raises UserError when there is none or it is damaged."""
        try:
            return cls.model_validate_json((folder / _RECORD).read_bytes())
        except (FileNotFoundError, ValidationError) as error:
            raise UserError(f"{folder / _RECORD} cannot be read ({error}); run the benchmark grid again") from error


# --- a cell and a row ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasuredExperiment:
    """One trained network with what it says of the test split."""

    card: ModelCard
    run: PredictedSplit

    @property
    def recipe(self) -> str:
        return str(self.card.settings["preset"])

    @property
    def seed(self) -> int:
        return int(self.card.settings["seed"])

    @cached_property
    def evaluation(self) -> Evaluation:
        """Computed from the predictions."""
        return self.run.evaluation(self.card)

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether each test image is called right, bool (n,)."""
        return self.run.probabilities.argmax(axis=1) == self.run.labels

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The `METRICS`; NaN where one is not known."""
        before = self.card.calibration["test"].before
        speeds = [epoch["images_per_second"] for epoch in self.card.history]
        known = {
            **self.evaluation.to_dict(),
            **{f"{name}_before": before[name] for name in ("ece", "brier", "nll")},
            "images_per_second": self.run.images_per_second,
            "training_images_per_second": float(np.median(speeds)) if speeds else float("nan"),
        }
        return {name: float(known[name]) for name in METRICS}

    @cached_property
    def class_coverage(self) -> list[float]:
        """For each class the share of its images whose prediction set holds it; NaN without images."""
        sets, labels = self.card.conformal.sets(self.run.probabilities), self.run.labels
        held = sets[np.arange(len(labels)), labels]
        return [_share(held[labels == c]) for c in range(sets.shape[1])]

    @cached_property
    def scales(self) -> dict[float, tuple[int, float]]:
        """Images and accuracy at each pixel scale (arcsec, to three decimals); empty where no scale is known."""
        scale = np.round(self.run.pixscale, 3)
        known = np.unique(scale[np.isfinite(scale)])
        return {float(s): (int((scale == s).sum()), _share(self.correct[scale == s])) for s in known}


@dataclass(frozen=True)
class SeedSummary:
    """Mean over seeds and standard deviation (n - 1); the latter None for one seed."""

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> SeedSummary:
        """NaN is passed over; of nothing else the mean is NaN."""
        known = np.array([value for value in values if np.isfinite(value)])
        if len(known) == 0:
            return cls(float("nan"), None, 0)
        return cls(float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else None, len(known))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"mean": self.mean, "deviation": self.deviation, "n": self.n}


@dataclass(frozen=True)
class LeaderboardEntry:
    """The cells of one configuration, by seed. `against` compares it with the reference of the board; None for that.

    `reported` is the percentage that others published for this network on these images, None where nobody did.
    """

    label: str
    cells: tuple[MeasuredExperiment, ...]
    reported: float | None = None
    against: AccuracyDifference | None = None

    @property
    def card(self) -> ModelCard:
        """The card of the first seed, for what all have in common."""
        return self.cells[0].card

    @property
    def seeds(self) -> list[int]:
        return [cell.seed for cell in self.cells]

    def spread(self, metric: str) -> SeedSummary:
        """Mean and deviation over seeds of one of the `METRICS`."""
        return SeedSummary.of(cell.numbers[metric] for cell in self.cells)

    def recall(self) -> list[SeedSummary]:
        """For each class."""
        return [SeedSummary.of(values) for values in zip(*(cell.evaluation.recall for cell in self.cells), strict=True)]

    def class_coverage(self) -> list[SeedSummary]:
        """For each class: how often its prediction sets hold it."""
        return [SeedSummary.of(values) for values in zip(*(cell.class_coverage for cell in self.cells), strict=True)]

    def confusion(self) -> np.ndarray:
        """int64 (C, C), summed over seeds: true class by row, called class by column."""
        return np.array([cell.evaluation.confusion for cell in self.cells], dtype=np.int64).sum(axis=0)

    def scale_accuracy(self) -> dict[float, SeedSummary]:
        """Accuracy at each pixel scale in arcsec."""
        return {s: SeedSummary.of(cell.scales[s][1] for cell in self.cells) for s in self.cells[0].scales}

    def reliability(self, when: Literal["before", "after"]) -> list[ReliabilityBin]:
        """Confidence against accuracy on the test split, over all seeds, before or after temperature scaling."""
        tables = [getattr(cell.card.calibration["test"], when)["bins"] for cell in self.cells]
        return _pooled([ReliabilityBin(**each) for table in tables for each in table])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        card = self.card
        return {
            "label": self.label,
            "variant": card.variant,
            "layout": card.layout,
            "recipe": self.cells[0].recipe,
            "seeds": self.seeds,
            "models": [cell.card.model_id for cell in self.cells],
            "parameters": card.parameters,
            "image_size": card.image_size,
            "epochs": card.settings["epochs"],
            "batch_size": card.settings["batch_size"],
            "coverage_target": card.conformal.coverage,
            "devices": devices(self.cells),
            **{metric: self.spread(metric).to_dict() for metric in METRICS},
            "recall": [each.to_dict() for each in self.recall()],
            "class_coverage": [each.to_dict() for each in self.class_coverage()],
            "confusion": self.confusion().tolist(),
            "accuracy_by_pixscale": {str(s): each.to_dict() for s, each in self.scale_accuracy().items()},
            "reported_percent": self.reported,
            "against_reference": self.against and {**vars(self.against), "verdict": self.against.verdict},
        }


@dataclass(frozen=True)
class Leaderboard:
    """Rows, best mean accuracy first, and what became of the last grid. `reference` is the label of a row, or empty.

    `lost` says of predictions that stand in no row why not, by id of the model.
    """

    folder: Path
    record: GridRecord
    rows: tuple[LeaderboardEntry, ...]
    reference: str
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        return self.record.simulated

    @property
    def cells(self) -> list[MeasuredExperiment]:
        """All, row by row and seed by seed."""
        return [cell for row in self.rows for cell in row.cells]

    @property
    def failed(self) -> list[ExperimentState]:
        """Cells of the last grid that failed."""
        return [cell for cell in self.record.cells if cell.state == "failed"]

    @property
    def skipped(self) -> list[ExperimentState]:
        """Cells of the last grid that were not run."""
        return [cell for cell in self.record.cells if cell.state == "skipped"]

    def row(self, label: str) -> LeaderboardEntry:
        """The row of a label."""
        return next(row for row in self.rows if row.label == label)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; NaN is None."""
        record = self.record.model_dump(exclude={"cells"})
        return _plain(
            {
                "title": "SIMULATED images" if self.simulated else "",
                **record,
                "folder": str(self.folder),
                "classes": self.rows[0].card.class_slugs if self.rows else [],
                "reference": self.reference,
                "rows": [row.to_dict() for row in self.rows],
                "failed": [cell.model_dump() for cell in self.failed],
                "skipped": [cell.model_dump() for cell in self.skipped],
                "lost": self.lost,
            }
        )


def devices(cells: Sequence[MeasuredExperiment]) -> list[str]:
    """Names of the devices that the speeds of cells were measured on."""
    return sorted({cell.run.device for cell in cells})


# --- reading ------------------------------------------------------------------------------------------------------


def read_leaderboard(folder: Path, models: Path) -> Leaderboard:
    """Make the board of a folder from its files of predictions and the cards below `models`.

    Each row is compared with the one of the first cell of the last grid that is measured: who asks for a grid says by
    its order what to compare with, and nothing is chosen by the test split.

    Raises
    ------
    UserError : there is no record of a grid, or a file holds predictions of other images or another split.
    ModelError : the card of a model is damaged.
    """
    record = GridRecord.load(folder)
    cells: list[MeasuredExperiment] = []
    lost: dict[str, str] = {}
    for path in sorted((folder / _PREDICTIONS).glob("*.parquet")):
        if not (models / path.stem / "card.json").is_file():
            lost[path.stem] = "its predictions are here, but the model is gone"
            continue
        try:
            run = PredictedSplit.load(path)
        except UserError as error:  # of a grid that does not run now, or that one would have made it anew
            lost[path.stem] = str(error)
            continue
        cells.append(MeasuredExperiment(load_card(models, path.stem), run))
        _check_fits(path, cells[0], cells[-1], record)
    rows = _rows(cells, record)
    reference = _reference(rows, record)
    if reference:
        rows = [_compared(row, reference) for row in rows]
    return Leaderboard(folder, record, tuple(rows), reference.label if reference else "", lost)


def _check_fits(path: Path, first: MeasuredExperiment, cell: MeasuredExperiment, record: GridRecord) -> None:
    expected = (record.image_set, record.split)
    for found in ((cell.run.image_set, cell.run.split), (cell.card.data["digest"], cell.card.split_digest)):
        if found != expected:
            raise UserError(
                f"{path}: of images {found[0]} and split {found[1]}, the board is of {expected[0]} and {expected[1]}: "
                "different ones cannot stand on one board; move the file away"
            )
    if not (np.array_equal(cell.run.rows, first.run.rows) and np.array_equal(cell.run.labels, first.run.labels)):
        raise UserError(f"{path}: not the test images of {first.card.model_id}; delete it and run the benchmark again")


def _rows(cells: list[MeasuredExperiment], record: GridRecord) -> list[LeaderboardEntry]:
    """Cells that differ in nothing but the seed make a row."""
    groups: dict[str, list[MeasuredExperiment]] = {}
    for cell in cells:
        groups.setdefault(_configuration(cell), []).append(cell)
    public = benchmark_of(record.kind, record.images, simulated=record.simulated)
    rows = []
    for (_, group), label in zip(groups.items(), _labels([group[0] for group in groups.values()]), strict=True):
        card = group[0].card
        reported = published_for(public, card.variant, card.layout)
        rows.append(LeaderboardEntry(label, tuple(sorted(group, key=lambda cell: cell.seed)), reported))
    return sorted(rows, key=lambda row: (-row.spread("accuracy").mean, row.label))


def _configuration(cell: MeasuredExperiment) -> str:
    settings = {name: value for name, value in cell.card.settings.items() if name != "seed"}
    return json.dumps([settings, cell.card.recipe_digest], sort_keys=True)


def _labels(cells: Sequence[MeasuredExperiment]) -> list[str]:
    """Network, layout and recipe; where that does not tell rows apart, also the settings in which they differ."""
    short = [" ".join(p for p in (c.card.variant, c.card.layout, c.recipe) if p != "-") for c in cells]
    labels = []
    for cell, label in zip(cells, short, strict=True):
        alike = [other.card.settings for other, its in zip(cells, short, strict=True) if its == label]
        names = [n for n in cell.card.settings if n != "seed" and len({json.dumps(s.get(n)) for s in alike}) > 1]
        values = ", ".join(f"{name} {cell.card.settings[name]}" for name in names)
        labels.append(f"{label} ({values})" if values else label)
    return labels


def _reference(rows: Sequence[LeaderboardEntry], record: GridRecord) -> LeaderboardEntry | None:
    for state in record.cells:
        for row in rows:
            if state.model_id in (cell.card.model_id for cell in row.cells):
                return row
    return rows[0] if rows else None


def _compared(row: LeaderboardEntry, reference: LeaderboardEntry) -> LeaderboardEntry:
    if row is reference:
        return row
    theirs, ours = (np.stack([cell.correct for cell in each.cells]) for each in (reference, row))
    return LeaderboardEntry(row.label, row.cells, row.reported, compare_accuracy(ours, theirs))


def _pooled(bins: list[ReliabilityBin]) -> list[ReliabilityBin]:
    """Bins of several trainings as one table, those of the same confidence together."""
    which: dict[int, list[ReliabilityBin]] = {}
    for each in bins:
        which.setdefault(min(int(each.confidence * _BINS), _BINS - 1), []).append(each)
    return [_together(which[number]) for number in sorted(which)]


def _together(bins: list[ReliabilityBin]) -> ReliabilityBin:
    counts = [each.n for each in bins]
    return ReliabilityBin(
        confidence=float(np.average([each.confidence for each in bins], weights=counts)),
        accuracy=float(np.average([each.accuracy for each in bins], weights=counts)),
        n=sum(counts),
    )


def _share(yes: np.ndarray) -> float:
    return float(yes.mean()) if len(yes) else float("nan")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
