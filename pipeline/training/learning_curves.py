"""Training curves as a table and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict

from matplotlib.figure import Figure

from models.training.trainer import EpochRecord


def curve_files(history: Sequence[EpochRecord], title: str) -> dict[str, str | bytes]:
    """The files `curve.csv` and `curve.png` of a training, by name."""
    return {"curve.csv": _table(history), "curve.png": _plot(history, title)}


def _table(history: Sequence[EpochRecord]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(asdict(history[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in history)
    return text.getvalue()


def _plot(history: Sequence[EpochRecord], title: str) -> bytes:
    epochs = [record.epoch + 1 for record in history]
    figure = Figure(figsize=(8, 4), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    losses.plot(epochs, [record.loss for record in history], label="training (augmented, smoothed)")
    losses.plot(epochs, [record.validation_loss for record in history], label="validation")
    losses.set(xlabel="epoch", ylabel="loss (nats)")
    losses.legend()
    accuracy.plot(epochs, [record.validation_accuracy for record in history], color="tab:green")
    accuracy.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0, 1))
    figure.suptitle(title, fontsize="medium")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    return image.getvalue()
