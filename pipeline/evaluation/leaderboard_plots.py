"""The figures of a board, as PNG. Nothing is computed here that `pipeline.evaluation.leaderboard` does not give."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.metrics import ReliabilityBin, calibration_gap
from pipeline.evaluation.leaderboard import Leaderboard, LeaderboardEntry

_DPI = 130
_MOST_CLASSES = 30  # whose names and counts are written into the confusion matrix
_BINS = 15


def plots(board: Leaderboard) -> dict[str, bytes]:
    """PNG files by name; none without a row."""
    if not board.rows:
        return {}
    figures = {
        "accuracy.png": _accuracy(board),
        "reliability.png": _reliability(board.rows[0]),
        "confusion.png": _confusion(board.rows[0]),
        "curves.png": _curves(board),
    }
    for figure in figures.values():
        if board.simulated:
            figure.text(0.995, 0.005, "SIMULATED images", ha="right", va="bottom", color="crimson", fontsize="small")
    return {name: _png(figure) for name, figure in figures.items()}


def _accuracy(board: Leaderboard) -> Figure:
    """Every seed as a dot, the mean with its deviation beside."""
    rows = board.rows
    figure = Figure(figsize=(8, 1.4 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        values = [100 * cell.numbers["accuracy"] for cell in row.cells]
        spread = row.spread("accuracy")
        colour = "tab:red" if row.label == board.reference else "tab:blue"
        axes.plot(values, [y] * len(values), "o", color=colour, alpha=0.35, markeredgewidth=0)
        axes.errorbar(100 * spread.mean, y, xerr=100 * (spread.deviation or 0.0), fmt="|", color=colour, capsize=4)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"accuracy on {board.record.test_images:,} test images, %")
    axes.set_title("Seeds, mean and standard deviation (reference in red)", fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _reliability(row: LeaderboardEntry) -> Figure:
    """Confidence against accuracy before and after temperature scaling, all seeds together."""
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    before, after = figure.subplots(1, 2, sharey=True)
    _reliability_panel(before, row.reliability("before"), "before calibration")
    _reliability_panel(after, row.reliability("after"), "after")
    before.set_ylabel("share called right")
    figure.suptitle(f"{row.label}: test images of {len(row.cells)} seeds", fontsize="medium")
    return figure


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
        label="share called right, ± 2 standard errors",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence")
    axes.set_title(f"{title}: mean gap {calibration_gap(bins):.3f}, seeds together", fontsize="medium")
    axes.legend(loc="upper left", fontsize="small", frameon=False)


def _confusion(row: LeaderboardEntry) -> Figure:
    """Shares of each true class in colour, counts in figures."""
    counts = row.confusion()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    slugs = row.card.class_slugs
    named = len(slugs) <= _MOST_CLASSES
    side = 2.6 + 0.5 * min(len(slugs), _MOST_CLASSES)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    axes.set(xlabel="called", ylabel="true")
    axes.set_title(f"{row.label}, {len(row.cells)} seeds together", fontsize="medium")
    if named:
        axes.set_xticks(range(len(slugs)), slugs, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(slugs)), slugs)
        for (true, called), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[true, called] > 0.5 else "black"
                axes.text(called, true, str(count), ha="center", va="center", color=colour, fontsize="small")
    return figure


def _curves(board: Leaderboard) -> Figure:
    """Validation loss and accuracy of each epoch: the mean over seeds, and each seed faintly."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for number, row in enumerate(board.rows):
        colour = f"C{number % 10}"
        style = "-" if number < 10 else "--"
        for axes, name, scale in ((losses, "validation_loss", 1.0), (accuracies, "validation_accuracy", 100.0)):
            curves = [[scale * epoch[name] for epoch in cell.card.history] for cell in row.cells]
            for curve in curves:
                axes.plot(range(1, len(curve) + 1), curve, style, color=colour, alpha=0.25, linewidth=0.8)
            if len({len(curve) for curve in curves}) == 1:
                mean = np.mean(curves, axis=0)
                axes.plot(range(1, len(mean) + 1), mean, style, color=colour, linewidth=1.6, label=row.label)
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
