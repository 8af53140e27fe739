"""A board as files: Markdown and plots for people, JSON and Parquet for programs.

`cells.parquet` has a row for each trained network with every number; `recall.parquet`, `confusion.parquet` and
`scales.parquet` are long tables of classes, pairs of classes and pixel scales. The predictions lie beside them already.
Nothing is computed here that `pipeline.evaluation.leaderboard` does not give.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.atomic import atomic_write
from pipeline.evaluation.leaderboard import Leaderboard, LeaderboardEntry, MeasuredExperiment, SeedSummary, devices
from pipeline.evaluation.leaderboard_plots import plots
from pipeline.evaluation.published_results import REPORTED, TITLES, benchmark_of

_MOST_CLASSES = 30  # of a table of recall for people; with more it would fill pages


def write_leaderboard(board: Leaderboard, folder: Path) -> None:
    """Write every file of a board, each of them whole."""
    for name, rows in (
        ("cells", [_cell_numbers(row, cell) for row in board.rows for cell in row.cells]),
        ("recall", _long(board, _recall)),
        ("confusion", _long(board, _confusion)),
        ("scales", _long(board, _scales)),
    ):
        _write_table(folder / f"{name}.parquet", rows, board)
    texts = {"board.json": json.dumps(board.to_dict(), indent=1), "board.md": to_markdown(board)}
    contents = {**{name: text.encode() for name, text in texts.items()}, **plots(board)}
    for name, content in contents.items():
        with atomic_write(folder / name) as beside:
            beside.write_bytes(content)


# --- for programs -------------------------------------------------------------------------------------------------


def _write_table(path: Path, rows: list[dict[str, Any]], board: Leaderboard) -> None:
    """One table; where there are no rows, none, and one from before goes."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    frame = pd.DataFrame(rows).assign(simulated=board.simulated)
    with atomic_write(path) as beside:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), beside, compression="zstd")


def _cell_numbers(row: LeaderboardEntry, cell: MeasuredExperiment) -> dict[str, Any]:
    card = cell.card
    return {
        "model_id": card.model_id,
        "label": row.label,
        "variant": card.variant,
        "layout": card.layout,
        "recipe": cell.recipe,
        "seed": cell.seed,
        "epochs": card.settings["epochs"],
        "batch_size": card.settings["batch_size"],
        "image_size": card.image_size,
        "views": card.views,
        "parameters": card.parameters,
        "test_images": cell.evaluation.n,
        **cell.numbers,
        "temperature": card.temperature,
        "coverage_target": card.conformal.coverage,
        "validation_accuracy": card.validation["accuracy"] if card.validation else float("nan"),
        "device": cell.run.device,
        "reported_percent": float("nan") if row.reported is None else row.reported,
        "image_set": cell.run.image_set,
        "split": cell.run.split,
    }


def _long(board: Leaderboard, of_cell: Callable[[MeasuredExperiment], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {"model_id": cell.card.model_id, "label": row.label, "seed": cell.seed, **values}
        for row in board.rows
        for cell in row.cells
        for values in of_cell(cell)
    ]


def _recall(cell: MeasuredExperiment) -> list[dict[str, Any]]:
    numbers = zip(cell.evaluation.confusion, cell.evaluation.recall, cell.class_coverage, strict=True)
    return [
        {"class": c, "slug": slug, "images": sum(counts), "recall": recall, "coverage": coverage}
        for c, (slug, (counts, recall, coverage)) in enumerate(zip(cell.card.class_slugs, numbers, strict=True))
    ]


def _confusion(cell: MeasuredExperiment) -> list[dict[str, Any]]:
    return [
        {"true": true, "called": called, "images": images}
        for true, counts in enumerate(cell.evaluation.confusion)
        for called, images in enumerate(counts)
    ]


def _scales(cell: MeasuredExperiment) -> list[dict[str, Any]]:
    return [{"pixscale": s, "images": images, "accuracy": accuracy} for s, (images, accuracy) in cell.scales.items()]


# --- for people ---------------------------------------------------------------------------------------------------


def to_markdown(board: Leaderboard) -> str:
    """The board for people."""
    sections = [_heading(board)]
    if board.rows:
        sections += [_results(board), _comparison(board), _recall_table(board), _scale_table(board), _figures(board)]
    sections += [_missing(board), _reported(board), _notes(board)]
    return "\n\n".join(section for section in sections if section) + "\n"


def results_table(board: Leaderboard) -> list[list[str]]:
    """The main table as text, a header and a line for each row of the board."""
    header = ["#", "network, layout, recipe", "seeds", "accuracy %", "macro-F1 %", "calibration error, before → after"]
    header += ["Brier", f"coverage % ({_target(board)})", "classes in a set", "images/s", "parameters", "epochs"]
    header += ["px", "reported %"]
    return [header, *(_result(number, row) for number, row in enumerate(board.rows, 1))]


def _result(number: int, row: LeaderboardEntry) -> list[str]:
    card = row.card
    ece = f"{_of(row.spread('ece_before'), 3)} → {_of(row.spread('ece'), 3)}"
    return [
        str(number),
        row.label,
        str(len(row.seeds)),
        _percent(row.spread("accuracy")),
        _percent(row.spread("macro_f1")),
        ece,
        _of(row.spread("brier"), 3),
        _percent(row.spread("coverage")),
        _of(row.spread("mean_set_size"), 2),
        f"{row.spread('images_per_second').mean:,.0f}",
        f"{card.parameters:,}",
        str(card.settings["epochs"]),
        str(card.image_size),
        "" if row.reported is None else f"{row.reported:.2f}",
    ]


def _heading(board: Leaderboard) -> str:
    record = board.record
    mark = "SIMULATED images: " if board.simulated else ""
    lines = [
        f"# {mark}benchmark board of {record.source}",
        "",
        f"{record.test_images:,} test images of {record.images:,}; image set {record.image_set}, split {record.split}. "
        "Nothing was chosen by the test images; selection and calibration saw the validation split.",
    ]
    if board.simulated:
        lines += [
            "",
            "> **SIMULATED.** These galaxies were drawn by a program. The numbers compare networks and recipes with "
            "each other; they say nothing about real galaxies.",
        ]
    return "\n".join(lines)


def _results(board: Leaderboard) -> str:
    names = devices(board.cells)
    speed = f"Images/s: inference on {'; '.join(names)}."
    if len(names) > 1:
        speed += " **The devices differ: the speeds of the rows cannot be compared.**"
    return "\n".join(
        ["## Results", "", "Mean ± standard deviation over seeds.", "", *_lines(results_table(board)), "", speed]
    )


def _comparison(board: Leaderboard) -> str:
    table = [["#", "network, layout, recipe", "accuracy, points", "95 % interval", "verdict"]]
    for number, row in enumerate(board.rows, 1):
        if row.against:
            d = row.against
            alone = "" if d.over_seeds else " (a single seed: its chance is not in the interval)"
            interval = f"{100 * d.low:+.2f} … {100 * d.high:+.2f}"
            table.append([str(number), row.label, f"{100 * d.mean:+.2f}", interval, d.verdict + alone])
    if len(table) == 1:
        return ""
    return "\n".join(
        [
            f"## Compared with {board.reference}",
            "",
            "On the same test images; the interval holds the chance of the images and of the seeds. Each row is "
            "compared by itself: of twenty rows without any difference, one is expected to look different.",
            "",
            *_lines(table),
        ]
    )


def _recall_table(board: Leaderboard) -> str:
    slugs = board.rows[0].card.class_slugs
    if len(slugs) > _MOST_CLASSES:
        return "## Recall\n\nIn `recall.parquet`, class by class."
    columns = [row.recall() for row in board.rows]
    counts = board.cells[0].evaluation.confusion
    table = [["class", "images", *(f"#{n}" for n in range(1, len(columns) + 1))]]
    for c, slug in enumerate(slugs):
        table.append([slug, str(sum(counts[c])), *(_percent(column[c]) for column in columns)])
    return "\n".join(["## Recall, %", "", *_lines(table)])


def _scale_table(board: Leaderboard) -> str:
    first = board.cells[0].scales
    if not first:
        return ""
    table = [["arcsec a pixel", "images", *(f"#{n}" for n in range(1, len(board.rows) + 1))]]
    for scale, (images, _) in first.items():
        table.append([f"{scale:g}", str(images), *(_percent(row.scale_accuracy()[scale]) for row in board.rows)])
    return "\n".join(["## Accuracy by pixel scale, %", "", *_lines(table)])


def _figures(board: Leaderboard) -> str:
    best = board.rows[0].label
    return "\n\n".join(
        [
            "## Figures",
            "![accuracy of each row, seed by seed](accuracy.png)",
            f"![confidence against accuracy of {best}, before and after calibration](reliability.png)",
            f"![confusion matrix of {best}](confusion.png)",
            "![training curves](curves.png)",
        ]
    )


def _missing(board: Leaderboard) -> str:
    lines = [f"* {cell.name}: {cell.state}: {cell.reason}" for cell in (*board.failed, *board.skipped)]
    lines += [f"* {model_id}: {reason}" for model_id, reason in board.lost.items()]
    return "\n".join(["## Not on the board", "", *lines]) if lines else ""


def _reported(board: Leaderboard) -> str:
    record = board.record
    public = benchmark_of(record.kind, record.images, simulated=record.simulated)
    entries = [entry for entry in REPORTED if entry.benchmark == record.kind]
    if not entries:
        return ""
    title = f"## *Reported* by others on {TITLES[record.kind]}"
    if public:
        warning = "Not measured here, and not on this split."
    else:
        what = "simulated images" if record.simulated else "these images"
        warning = f"> **Of other images:** {what} are not {TITLES[record.kind]}; set no number above against these."
    table = [["network", "top-1 %", "source", "how far to trust it"]]
    table += [[entry.network, f"{entry.accuracy:.2f}", entry.source, entry.trust] for entry in entries]
    return "\n".join([title, "", warning, "", *_lines(table)])


def _notes(board: Leaderboard) -> str:
    notes = [
        "calibration error: expected calibration error in 15 bins of equal width, before and after temperature scaling",
        "coverage: share of test images whose conformal prediction set holds the true class; the target is what the "
        "settings ask for (training.coverage)",
        "the cells of one grid share images, split, epochs, batch and pixels; rows of other budgets name what differs",
        "speed: predictions of images in memory, once over the test split, after a first batch",
        "`cells.parquet`, `recall.parquet`, `confusion.parquet`, `scales.parquet`, `predictions/`, `board.json` hold "
        "every number",
    ]
    return "\n".join(["## How to read this", "", *(f"* {note}" for note in notes)])


def _target(board: Leaderboard) -> str:
    targets = sorted({f"{100 * cell.card.conformal.coverage:g}" for cell in board.cells})
    return "target " + " and ".join(targets)


def _percent(spread: SeedSummary) -> str:
    return _of(SeedSummary(100 * spread.mean, spread.deviation and 100 * spread.deviation, spread.n), 1)


def _of(spread: SeedSummary, digits: int) -> str:
    if spread.n == 0:
        return "–"
    return f"{spread.mean:.{digits}f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.{digits}f}")


def _lines(table: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first row is the header."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in table]
    return [
        "| " + " | ".join(cells[0]) + " |",
        "|" + "---|" * len(cells[0]),
        *("| " + " | ".join(row) + " |" for row in cells[1:]),
    ]
