"""The leaderboard of a benchmark: what experiments measured on one frozen test split, as pandas tables.

Everything on it comes from the cards of the models and from the predictions that experiments leave, so it can be made
again at any time. Experiments that differ only in the seed make one entry. `pipeline.evaluation.leaderboard_report`
writes the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.artifacts.registry import ModelCard, load_card
from pipeline.core.errors import UserError
from pipeline.evaluation.evaluate import PredictedSplit
from pipeline.evaluation.grid_record import PREDICTIONS, ExperimentState, GridRecord
from pipeline.evaluation.measured_experiment import METRICS, MeasuredExperiment
from pipeline.evaluation.published_results import public_benchmark
from pipeline.evaluation.statistics import AccuracyDifference, compare_accuracy

_ENTRY_COLUMNS = [
    "label",
    "variant",
    "layout",
    "recipe",
    "seeds",
    "models",
    "parameters",
    "image_size",
    "epochs",
    "batch_size",
    "coverage_target",
    "devices",
    "reported_percent",
]


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """What grids measured on one test split, and how the last of them ended.

    Every table is indexed by `entry`, the place of the configuration by mean accuracy, from 1 on. `experiments` has a
    row for each trained network, by entry and seed. The other tables have many rows for each network, with its
    `model_id`, `label` and `seed`.

    experiments : label, settings, `METRICS` and provenance of each network; its columns are those of `cells.parquet`.
    classes : class, slug, images, recall, coverage (share of images whose prediction set holds the true class).
    confusion : true, called, images.
    scales : pixscale (arcsec per pixel), images, accuracy; empty if no pixel scale is known.
    reliability : calibration ("before" or "after"), confidence, accuracy and n of each bin on the test split.
    epochs : epoch (from 1 on), validation_loss (nats), validation_accuracy.
    reference : the entry that the others are compared with; None without entries.
    comparisons : by entry, its accuracy against that of the reference.
    lost : by model, why its predictions are in no entry.
    """

    folder: Path
    record: GridRecord
    experiments: pd.DataFrame = field(default_factory=pd.DataFrame)
    classes: pd.DataFrame = field(default_factory=pd.DataFrame)
    confusion: pd.DataFrame = field(default_factory=pd.DataFrame)
    scales: pd.DataFrame = field(default_factory=pd.DataFrame)
    reliability: pd.DataFrame = field(default_factory=pd.DataFrame)
    epochs: pd.DataFrame = field(default_factory=pd.DataFrame)
    reference: int | None = None
    comparisons: Mapping[int, AccuracyDifference] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        return self.record.simulated

    @property
    def failed(self) -> list[ExperimentState]:
        """Experiments of the last grid that failed."""
        return [each for each in self.record.experiments if each.state == "failed"]

    @property
    def skipped(self) -> list[ExperimentState]:
        """Experiments of the last grid that were not run."""
        return [each for each in self.record.experiments if each.state == "skipped"]

    @cached_property
    def entries(self) -> pd.DataFrame:
        """One row for each configuration: what its experiments have in common, and lists of seeds, models, devices."""
        if self.experiments.empty:
            return self.experiments
        groups = self.experiments.groupby("entry")
        lists = {
            "seeds": groups.seed.agg(list),
            "models": groups.model_id.agg(list),
            "devices": groups.device.agg(lambda names: sorted(set(names))),
        }
        return groups.first().assign(**lists)[_ENTRY_COLUMNS]

    @property
    def reference_label(self) -> str:
        """The label of the reference, empty without entries."""
        return "" if self.reference is None else str(self.entries.label[self.reference])

    @property
    def class_slugs(self) -> list[str]:
        """Names of the classes in their order."""
        return [] if self.classes.empty else list(dict.fromkeys(self.classes.slug))

    def metric(self, name: str) -> pd.DataFrame:
        """The `seed_summary` of one of the `METRICS`, by entry."""
        return seed_summary(self.experiments, name)

    def class_metric(self, name: str) -> pd.DataFrame:
        """The `seed_summary` of "recall" or "coverage", by entry and class."""
        return seed_summary(self.classes, name, "class")

    def scale_accuracy(self) -> pd.DataFrame:
        """The `seed_summary` of accuracy, by entry and pixel scale (arcsec per pixel)."""
        return seed_summary(self.scales, "accuracy", "pixscale")

    def confusion_matrix(self, entry: int) -> np.ndarray:
        """int64 (C, C), summed over seeds: true class by row, predicted class by column."""
        counts = of_entry(self.confusion, entry).groupby(["true", "called"]).images.sum()
        return counts.unstack().to_numpy()

    def to_dict(self) -> dict[str, Any]:
        """Plain values; NaN is None."""
        return _plain(
            {
                "title": "SIMULATED images" if self.simulated else "",
                **self.record.model_dump(exclude={"experiments"}),
                "folder": str(self.folder),
                "classes": self.class_slugs,
                "reference": self.reference_label,
                "rows": self._entry_values(),
                "failed": [each.model_dump() for each in self.failed],
                "skipped": [each.model_dump() for each in self.skipped],
                "lost": self.lost,
            }
        )

    def _entry_values(self) -> list[dict[str, Any]]:
        """Each entry as plain values, best first."""
        if self.entries.empty:
            return []
        shared = self.entries.to_dict()
        reported = shared.pop("reported_percent")
        metrics = {name: self.metric(name).to_dict("records") for name in METRICS}
        recall, coverage = self.class_metric("recall"), self.class_metric("coverage")
        values = []
        for i, entry in enumerate(self.entries.index):
            difference = self.comparisons.get(entry)
            values.append(
                {
                    **{str(name): column[entry] for name, column in shared.items()},
                    **{name: summaries[i] for name, summaries in metrics.items()},
                    "recall": of_entry(recall, entry).to_dict("records"),
                    "class_coverage": of_entry(coverage, entry).to_dict("records"),
                    "confusion": self.confusion_matrix(entry).tolist(),
                    "accuracy_by_pixscale": self._scale_values(entry),
                    "reported_percent": reported[entry],
                    "against_reference": difference and {**vars(difference), "verdict": difference.verdict},
                }
            )
        return values

    def _scale_values(self, entry: int) -> dict[str, Any]:
        """The accuracy of an entry by pixel scale, as plain values."""
        if self.scales.empty:
            return {}
        summary = of_entry(self.scale_accuracy(), entry)
        scales = summary.index.get_level_values("pixscale")
        return {str(scale): values for scale, values in zip(scales, summary.to_dict("records"), strict=True)}


def of_entry(table: pd.DataFrame, entry: int) -> pd.DataFrame:
    """The rows of one entry."""
    return table[table.index.get_level_values("entry") == entry]


def seed_summary(table: pd.DataFrame, column: str, *by: str) -> pd.DataFrame:
    """`mean`, standard `deviation` (n - 1) and number `n` of a column over the seeds of each entry.

    With `by`, the same for each entry and value of these columns. NaN is left out; the deviation is NaN for one seed,
    and the mean as well where nothing is left.
    """
    summary = table.groupby(["entry", *by])[column].agg(["mean", "std", "count"])
    return summary.set_axis(["mean", "deviation", "n"], axis=1)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


# --- reading ------------------------------------------------------------------------------------------------------


def read_leaderboard(folder: Path, models: Path) -> Leaderboard:
    """Make the leaderboard of a folder from its files of predictions and the cards below `models`.

    Each entry is compared with the one of the first measured experiment of the last grid: whoever asks for a grid
    chooses the reference by its order, and nothing is chosen by the test split.

    Raises
    ------
    UserError : there is no record of a grid, or a file holds predictions of other images or another split.
    ModelError : the card of a model is damaged.
    """
    record = GridRecord.load(folder)
    measured, lost = _read_measured(folder, models, record)
    if not measured:
        return Leaderboard(folder, record, lost=lost)
    table = _experiment_table(measured, record)
    measured = [measured[position] for position in table["position"]]
    experiments = table.drop(columns="position")
    reference = _reference(experiments, record)
    correct = {
        entry: np.stack([measured[i].correct for i in np.flatnonzero(experiments.index == entry)])
        for entry in experiments.index.unique()
    }
    return Leaderboard(
        folder,
        record,
        experiments=experiments,
        classes=_joined(experiments, (each.classes() for each in measured)),
        confusion=_joined(experiments, (each.confusion() for each in measured)),
        scales=_joined(experiments, (each.scales() for each in measured)),
        reliability=_joined(experiments, (each.reliability() for each in measured)),
        epochs=_joined(experiments, (each.epochs() for each in measured)),
        reference=reference,
        comparisons={
            entry: compare_accuracy(ours, correct[reference]) for entry, ours in correct.items() if entry != reference
        },
        lost=lost,
    )


def _read_measured(folder: Path, models: Path, record: GridRecord) -> tuple[list[MeasuredExperiment], dict[str, str]]:
    """The experiments whose model and predictions can be read, and for the other models why not."""
    measured: list[MeasuredExperiment] = []
    lost: dict[str, str] = {}
    for path in sorted((folder / PREDICTIONS).glob("*.parquet")):
        if not (models / path.stem / "card.json").is_file():
            lost[path.stem] = "its predictions exist, but the model is gone"
            continue
        try:
            run = PredictedSplit.load(path)
        except UserError as error:  # of another grid than the last, which would have made the file again
            lost[path.stem] = str(error)
            continue
        measured.append(MeasuredExperiment(load_card(models, path.stem), run))
        _check_same_test_images(path, measured[0], measured[-1], record)
    return measured, lost


def _check_same_test_images(
    path: Path, first: MeasuredExperiment, experiment: MeasuredExperiment, record: GridRecord
) -> None:
    card, run = experiment.card, experiment.run
    expected = (record.image_set, record.split)
    for found in ((run.image_set, run.split), (card.data["digest"], card.split_digest)):
        if found != expected:
            raise UserError(
                f"{path}: of images {found[0]} and split {found[1]}, the leaderboard is of {expected[0]} and "
                f"{expected[1]}: different ones cannot share a leaderboard; move the file away"
            )
    if not (np.array_equal(run.rows, first.run.rows) and np.array_equal(run.labels, first.run.labels)):
        raise UserError(f"{path}: not the test images of {first.card.model_id}; delete it and run the benchmark again")


def _experiment_table(measured: Sequence[MeasuredExperiment], record: GridRecord) -> pd.DataFrame:
    """`Leaderboard.experiments`, and the `position` of each row in `measured`."""
    labels = _labels({each.configuration: each.card for each in measured})
    benchmark = public_benchmark(record.kind, record.images, simulated=record.simulated)
    rows = [each.numbers(labels[each.configuration], benchmark) for each in measured]
    table = pd.DataFrame(rows).assign(
        position=range(len(measured)), configuration=[each.configuration for each in measured]
    )
    table["mean"] = table.groupby("configuration").accuracy.transform("mean")
    table = table.sort_values(["mean", "label", "configuration", "seed"], ascending=[False, True, True, True])
    table.index = pd.Index((table.configuration != table.configuration.shift()).cumsum(), name="entry")
    return table.drop(columns=["mean", "configuration"])


def _labels(cards: Mapping[str, ModelCard]) -> dict[str, str]:
    """Network, layout and recipe of each configuration; where several share these, also the settings that differ."""
    short = {
        configuration: " ".join(part for part in (card.variant, card.layout, card.settings["preset"]) if part != "-")
        for configuration, card in cards.items()
    }
    labels = {}
    for configuration, card in cards.items():
        alike = [other.settings for key, other in cards.items() if short[key] == short[configuration]]
        names = [n for n in card.settings if n != "seed" and len({json.dumps(s.get(n)) for s in alike}) > 1]
        values = ", ".join(f"{name} {card.settings[name]}" for name in names)
        labels[configuration] = f"{short[configuration]} ({values})" if values else short[configuration]
    return labels


def _reference(experiments: pd.DataFrame, record: GridRecord) -> int:
    entry_of = dict(zip(experiments.model_id, experiments.index, strict=True))
    return next((entry_of[state.model_id] for state in record.experiments if state.model_id in entry_of), 1)


def _joined(experiments: pd.DataFrame, tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Tables of single experiments, in the order of `experiments`, as one."""
    names = experiments.reset_index()[["entry", "model_id", "label", "seed"]]
    parts = [names.iloc[[i]].merge(table, how="cross") for i, table in enumerate(tables)]
    return pd.concat(parts).set_index("entry")
