"""The files of a leaderboard: Markdown and figures for people, JSON and Parquet for programs.

`cells.parquet` has a row for each trained network with every number; `recall.parquet`, `confusion.parquet` and
`scales.parquet` are long tables of classes, pairs of classes and pixel scales. The predictions are in the same folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.atomic import atomic_write
from pipeline.core.templates import render
from pipeline.evaluation.leaderboard import Leaderboard
from pipeline.evaluation.leaderboard_plots import plots
from pipeline.evaluation.published_results import TITLES, public_benchmark, published_results

_MOST_CLASSES = 30  # in the report's table of recall; with more it would fill pages


def write_leaderboard(board: Leaderboard, folder: Path) -> None:
    """Write every file of a leaderboard, each atomically."""
    tables = {
        "cells": board.experiments,
        "recall": board.classes,
        "confusion": board.confusion,
        "scales": board.scales,
    }
    for name, table in tables.items():
        path = folder / f"{name}.parquet"
        if table.empty:
            path.unlink(missing_ok=True)
            continue
        marked = pa.Table.from_pandas(table.assign(simulated=board.simulated), preserve_index=False)
        with atomic_write(path) as temporary:
            pq.write_table(marked, temporary, compression="zstd")
    texts = {"board.json": json.dumps(board.to_dict(), indent=1), "board.md": to_markdown(board)}
    contents = {**{name: text.encode() for name, text in texts.items()}, **plots(board)}
    for name, content in contents.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)


def to_markdown(board: Leaderboard) -> str:
    """The report for people."""
    record = board.record
    tables = {}
    if not board.entries.empty:
        tables = {
            "devices": sorted(set(board.experiments.device)),
            "results": _results(board),
            "comparison": _comparison(board),
            "recall": _recall(board),
            "scales": _scales(board),
        }
    return render(
        "pipeline.evaluation",
        "leaderboard.md.j2",
        board=board,
        most_classes=_MOST_CLASSES,
        published=_published(record.kind),
        is_public=public_benchmark(record.kind, record.images, simulated=record.simulated) is not None,
        title=TITLES.get(record.kind, ""),
        **tables,
    )


# --- tables of text -----------------------------------------------------------------------------------------------


def _results(board: Leaderboard) -> pd.DataFrame:
    """The main table, a row for each entry."""
    entries = board.entries
    targets = " and ".join(sorted({f"{100 * target:g}" for target in entries.coverage_target}))
    ece_before, ece = (_mean_and_deviation(board.metric(name), 3) for name in ("ece_before", "ece"))
    return pd.DataFrame(
        {
            "#": entries.index,
            "network, layout, recipe": entries.label,
            "seeds": entries.seeds.str.len(),
            "accuracy %": _percent(board.metric("accuracy")),
            "macro-F1 %": _percent(board.metric("macro_f1")),
            "calibration error, before → after": ece_before + " → " + ece,
            "Brier": _mean_and_deviation(board.metric("brier"), 3),
            f"coverage % (target {targets})": _percent(board.metric("coverage")),
            "classes in a set": _mean_and_deviation(board.metric("mean_set_size"), 2),
            "images/s": board.metric("images_per_second")["mean"].map("{:,.0f}".format),
            "parameters": entries.parameters.map("{:,}".format),
            "epochs": entries.epochs,
            "px": entries.image_size,
            "reported %": entries.reported_percent.map(lambda percent: "" if np.isnan(percent) else f"{percent:.2f}"),
        }
    )


def _comparison(board: Leaderboard) -> pd.DataFrame:
    """Each entry but the reference against the reference."""
    rows = []
    for entry, difference in board.comparisons.items():
        note = "" if difference.over_seeds else " (a single seed: the interval leaves out the chance of seeds)"
        rows.append(
            {
                "#": entry,
                "network, layout, recipe": board.entries.label[entry],
                "accuracy, points": f"{100 * difference.mean:+.2f}",
                "95 % interval": f"{100 * difference.low:+.2f} … {100 * difference.high:+.2f}",
                "verdict": difference.verdict + note,
            }
        )
    return pd.DataFrame(rows)


def _recall(board: Leaderboard) -> pd.DataFrame:
    """Recall of each class by entry."""
    first = board.classes[board.classes.model_id == board.experiments.model_id.iloc[0]].set_index("class")
    by_entry = _percent(board.class_metric("recall")).unstack("entry").add_prefix("#")
    return pd.concat([first[["slug", "images"]].rename(columns={"slug": "class"}), by_entry], axis=1)


def _scales(board: Leaderboard) -> pd.DataFrame:
    """Accuracy at each pixel scale by entry; empty if no scale is known."""
    if board.scales.empty:
        return board.scales
    first = board.scales[board.scales.model_id == board.experiments.model_id.iloc[0]].set_index("pixscale")
    by_entry = _percent(board.scale_accuracy()).unstack("entry").add_prefix("#")
    table = pd.concat([first[["images"]], by_entry], axis=1)
    table.insert(0, "arcsec a pixel", table.index.map("{:g}".format))
    return table


def _published(kind: str) -> pd.DataFrame:
    """What others have published on the benchmark of this kind of image set."""
    results = published_results()
    table = results.loc[results.benchmark == kind, ["network", "accuracy", "source", "trust"]]
    table["accuracy"] = table.accuracy.map("{:.2f}".format)
    return table.set_axis(["network", "top-1 %", "source", "how far to trust it"], axis=1)


def _percent(summary: pd.DataFrame) -> pd.Series:
    return _mean_and_deviation(summary[["mean", "deviation"]] * 100, 1)


def _mean_and_deviation(summary: pd.DataFrame, digits: int) -> pd.Series:
    """ "12.3 ± 0.4" for each row; the mean alone for one seed, and "–" if there is none."""

    def text(mean: float, deviation: float) -> str:
        if np.isnan(mean):
            return "–"
        return f"{mean:.{digits}f}" + ("" if np.isnan(deviation) else f" ± {deviation:.{digits}f}")

    texts = [text(*row) for row in zip(summary["mean"], summary["deviation"], strict=True)]
    return pd.Series(texts, index=summary.index)
