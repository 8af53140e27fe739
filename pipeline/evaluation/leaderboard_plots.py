"""The figures of a leaderboard, as PNG."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.metrics import ReliabilityBin, calibration_gap
from pipeline.evaluation.leaderboard import Leaderboard, of_entry

_DPI = 130
_MOST_CLASSES = 30  # whose names and counts are written into the confusion matrix
_BINS = 15


def plots(board: Leaderboard) -> dict[str, bytes]:
    """PNG files by name; none without an entry."""
    if board.entries.empty:
        return {}
    figures = {
        "accuracy.png": _accuracy(board),
        "reliability.png": _reliability(board),
        "confusion.png": _confusion(board),
        "curves.png": _curves(board),
    }
    for figure in figures.values():
        if board.simulated:
            figure.text(0.995, 0.005, "SIMULATED images", ha="right", va="bottom", color="crimson", fontsize="small")
    return {name: _png(figure) for name, figure in figures.items()}


def _accuracy(board: Leaderboard) -> Figure:
    """Every seed as a dot, and the mean with its deviation."""
    entries, accuracy = board.entries, 100 * board.metric("accuracy").fillna(0.0)
    figure = Figure(figsize=(8, 1.4 + 0.42 * len(entries)), layout="constrained")
    axes = figure.subplots()
    for y, entry in enumerate(entries.index):
        seeds = 100 * of_entry(board.experiments, entry).accuracy
        colour = "tab:red" if entry == board.reference else "tab:blue"
        axes.plot(seeds, [y] * len(seeds), "o", color=colour, alpha=0.35, markeredgewidth=0)
        axes.errorbar(accuracy["mean"][entry], y, xerr=accuracy["deviation"][entry], fmt="|", color=colour, capsize=4)
    axes.set_yticks(range(len(entries)), list(entries.label))
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.set_xlabel(f"accuracy on {board.record.test_images:,} test images, %")
    axes.set_title("Seeds, mean and standard deviation (reference in red)", fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _reliability(board: Leaderboard) -> Figure:
    """Confidence against accuracy of the best entry, before and after temperature scaling, all seeds together."""
    best = of_entry(board.reliability, 1)
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    before, after = figure.subplots(1, 2, sharey=True)
    _reliability_panel(before, pooled_bins(best[best.calibration == "before"]), "before calibration")
    _reliability_panel(after, pooled_bins(best[best.calibration == "after"]), "after")
    before.set_ylabel("share classified correctly")
    figure.suptitle(f"{board.entries.label[1]}: test images of {best.seed.nunique()} seeds", fontsize="medium")
    return figure


def pooled_bins(bins: pd.DataFrame) -> list[ReliabilityBin]:
    """Reliability bins of several trainings (confidence, accuracy, n), those of like confidence as one."""
    number = (bins.confidence * _BINS).astype(int).clip(upper=_BINS - 1)
    n = bins.n.groupby(number.to_numpy()).sum()
    confidence, accuracy = (
        (values * bins.n).groupby(number.to_numpy()).sum() / n for values in (bins.confidence, bins.accuracy)
    )
    return [ReliabilityBin(*each) for each in zip(confidence.tolist(), accuracy.tolist(), n.tolist(), strict=True)]


def _reliability_panel(axes: Axes, bins: list[ReliabilityBin], title: str) -> None:
    total = sum(each.n for each in bins)
    centres = [(min(int(each.confidence * _BINS), _BINS - 1) + 0.5) / _BINS for each in bins]
    axes.bar(centres, [each.n / total for each in bins], width=0.9 / _BINS, color="lightgrey", label="share of images")
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    noise = [2 * np.sqrt(max(each.accuracy * (1 - each.accuracy), 0.25 / each.n) / each.n) for each in bins]
    axes.errorbar(
        [each.confidence for each in bins],
        [each.accuracy for each in bins],
        yerr=noise,
        fmt="o",
        markersize=4,
        linewidth=1,
        color="tab:blue",
        label="share classified correctly, ± 2 standard errors",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence")
    axes.set_title(f"{title}: mean gap {calibration_gap(bins):.3f}, seeds together", fontsize="medium")
    axes.legend(loc="upper left", fontsize="small", frameon=False)


def _confusion(board: Leaderboard) -> Figure:
    """The best entry: shares of each true class as colours, counts as text."""
    counts = board.confusion_matrix(1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    slugs = board.class_slugs
    named = len(slugs) <= _MOST_CLASSES
    side = 2.6 + 0.5 * min(len(slugs), _MOST_CLASSES)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{board.entries.label[1]}, {len(board.entries.seeds[1])} seeds together", fontsize="medium")
    if named:
        axes.set_xticks(range(len(slugs)), slugs, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(slugs)), slugs)
        for (true, predicted), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[true, predicted] > 0.5 else "black"
                axes.text(predicted, true, str(count), ha="center", va="center", color=colour, fontsize="small")
    return figure


def _curves(board: Leaderboard) -> Figure:
    """Validation loss and accuracy of each epoch: the mean over seeds, and each seed faintly."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for number, label in enumerate(board.entries.label):
        colour = f"C{number % 10}"
        style = "-" if number < 10 else "--"
        epochs = of_entry(board.epochs, number + 1)
        for axes, name, scale in ((losses, "validation_loss", 1.0), (accuracies, "validation_accuracy", 100.0)):
            curves = scale * epochs.pivot(index="epoch", columns="model_id", values=name)
            axes.plot(curves.index, curves, style, color=colour, alpha=0.25, linewidth=0.8)
            if curves.notna().all(axis=None):  # all of one length
                axes.plot(curves.index, curves.mean(axis=1), style, color=colour, linewidth=1.6, label=label)
    losses.set(xlabel="epoch", ylabel="validation loss (nats)")
    accuracies.set(xlabel="epoch", ylabel="validation accuracy, %")
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=_DPI, metadata={"Software": None})
    return image.getvalue()
