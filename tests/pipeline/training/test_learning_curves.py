"""The curve of a training as a table that reads back and a plot that can be opened."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict

from PIL import Image

from models.training.trainer import EpochRecord
from pipeline.training.learning_curves import curve_files

HISTORY = [
    EpochRecord(epoch, 2.0 / (epoch + 1), 1e-3, 2.1 / (epoch + 1), epoch / 4, 0.1 + epoch, 123.456)
    for epoch in range(3)
]


def table(history: list[EpochRecord]) -> list[dict[str, float]]:
    text = curve_files(history, "a model")["curve.csv"]
    assert isinstance(text, str)
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(text))]


def test_the_table_holds_the_curve_to_the_last_digit() -> None:
    assert table(HISTORY) == [asdict(record) for record in HISTORY]


def test_the_plot_is_a_picture_that_shows_title_and_curve() -> None:
    def picture(history: list[EpochRecord], title: str = "a model") -> bytes:
        content = curve_files(history, title)["curve.png"]
        assert isinstance(content, bytes)
        return content

    image = Image.open(io.BytesIO(picture(HISTORY)))
    assert image.format == "PNG" and image.size == (880, 440)
    assert picture(HISTORY) == picture(HISTORY)  # without a date or the like
    assert len({picture(HISTORY), picture(HISTORY[:2]), picture(HISTORY, "another (simulated images)")}) == 3


def test_a_single_epoch_without_validation_is_drawn_too() -> None:
    record = EpochRecord(0, 1.5, 1e-3, math.nan, math.nan, 0.5, 10.0)
    (row,) = table([record])
    assert row["loss"] == 1.5 and math.isnan(row["validation_loss"])
    assert curve_files([record], "a model")["curve.png"]
