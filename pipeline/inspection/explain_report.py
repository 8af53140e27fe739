"""An explanation as text for a terminal, or as one HTML page that needs nothing else: pictures inside, no scripts.

Names come from files that anybody may have made: control characters of text are escaped before the template is filled,
and in a page every value is escaped.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from pipeline.core.templates import render
from pipeline.inspection.explain import Explanation


def to_text(explanation: Explanation) -> str:
    """The explanation as lines of text, without characters that a terminal would obey."""
    return render("pipeline.inspection", "explanation.txt.j2", **_escape_control(_values(explanation)))


def to_html(explanation: Explanation) -> str:
    """The explanation as a page."""
    pictures = {
        "stamp_picture": _data_uri(explanation.stamp.pixels[0].numpy()) if explanation.stamp else "",
        "neighbour_pictures": [_data_uri(neighbour.pixels) for neighbour in explanation.neighbours],
    }
    return render("pipeline.inspection", "explanation.html.j2", **_values(explanation), **pictures)


def _values(explanation: Explanation) -> dict[str, Any]:
    """What the templates show, as plain values."""
    entry, row = explanation.entry, explanation.entry.row
    return {
        "object_id": entry.object_id,
        "row": row,
        "classified": entry.classified,
        "classes": [asdict(one) for one in explanation.classes],
        "split": explanation.split,
        "calibration": explanation.calibration,
        "flags": explanation.flags,
        "views": [asdict(view) for view in explanation.views],
        "agreeing_views": sum(view.label == row["label"] for view in explanation.views),
        "neighbours": [(n.row, n.label, n.distance) for n in explanation.neighbours],
        "neighbours_from": explanation.neighbours_from,
        "same_input": explanation.same_input,
        "provenance": _provenance(explanation),
        "remarks": explanation.card.remarks if explanation.card else [],
        "problems": explanation.problems,
    }


def _provenance(explanation: Explanation) -> list[tuple[str, str]]:
    """Where everything comes from: release, tile, model, run, versions; only what is known."""
    entry, card = explanation.entry, explanation.card
    row, run = entry.row, entry.run
    versions = json.loads(run.get("versions") or "{}")
    simulated = ", simulated" if card and card.data.get("simulated") else ""
    trained = f"{card.data['source']}{simulated}, {card.created}, recipe {card.recipe_digest}" if card else ""
    named = [
        ("release", entry.release),
        ("sky tile", f"{row['tile_id']} ({entry.origin or 'origin unknown'})"),
        ("layer", str(row["survey_layer"])),
        ("pixel scale of the input, arcsec", _known(row["pixscale"])),
        ("r magnitude", _known(row["mag_r"])),
        ("model", str(row["model_id"])),
        ("trained on", trained),
        ("run", f"{row['run_id']}, MJD {row['mjd_predicted']:.5f}"),
        ("settings of the run", run.get("settings_digest") or ""),
        ("git revision of the run", run.get("git_revision") or ""),
        ("versions of the run", ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))),
        ("digest of the pixels", str(row["input_digest"])),
    ]
    return [(name, value) for name, value in named if value]


def _known(value: float) -> str:
    """A number as text; empty for NaN, which stands for unknown."""
    return "" if np.isnan(value) else f"{value:.3f}"


def _escape_control(value: Any) -> Any:
    """The same value, with every character escaped that is not printable, in all texts in it."""
    match value:
        case str():
            return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
        case dict():
            return {name: _escape_control(one) for name, one in value.items()}
        case list() | tuple():
            return [_escape_control(one) for one in value]
        case _:
            return value


def _data_uri(pixels: np.ndarray) -> str:
    """Pixels uint8 (3, S, S) as a PNG that stands in the page itself."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
