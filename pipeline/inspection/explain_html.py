"""The explanation of one object as one HTML page that needs nothing else: pictures inside, no scripts.

Names come from files that anybody may have made: every text is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

from pipeline.inspection.explain import Explanation, origins

_STAMP, _SMALL = 320, 112  # sides of pictures on the page, in its pixels
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; } img { image-rendering: pixelated; border: 1px solid #999; }
.bar { background: #dde; width: 16rem; height: .9rem; } .bar div { background: #46c; height: 100%; }
figure { display: inline-block; margin: 0 1rem 1rem 0; } .bad { color: #a00; font-weight: bold; }
"""


def page(told: Explanation) -> str:
    """The page, as HTML."""
    row = told.thing.row
    parts = [
        f"<h1>Object {told.thing.object_id}: {escape(str(row['label']) or 'not classified')}</h1>",
        f"<p>{escape(str(row['source_name']))}<br>ra {row['ra']:.6f}°, dec {row['dec']:+.6f}° (ICRS)</p>",
        *(f'<p class="bad">Not available: {escape(problem)}</p>' for problem in told.problems),
        _stamp(told),
        _section("Probabilities", _probabilities(told)),
        _section("Quality flags", _flags(told)),
    ]
    if told.views:
        rows = [(v.name, v.label, f"{v.probability:.4f}", f"{v.of_label:.4f}") for v in told.views]
        label = str(row["label"])
        averaged = f"<p>{row['n_views']} averaged in the catalogue; all are shown here.</p>"
        parts.append(
            _section("Views", averaged + _table(("view", "calls it", "with", f"probability of {label}"), rows))
        )
    if told.neighbours_from:
        parts.append(_section("Nearest training examples", _neighbours(told)))
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in (told.card.remarks if told.card else []))
    parts.append(_section("Where it comes from", _table((), origins(told)) + f"<ul>{remarks}</ul>"))
    head = f'<meta charset="utf-8"><title>Object {told.thing.object_id}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _stamp(told: Explanation) -> str:
    if told.seen is None:
        return ""
    said = (
        "As the network saw it, north up."
        if told.same_input
        else '<span class="bad">The input changed: these are not the pixels that were classified.</span>'
    )
    picture = _picture(told.seen.pixels[0].numpy(), _STAMP, "the stamp")
    return f"<figure>{picture}<figcaption>{said}</figcaption></figure>"


def _probabilities(told: Explanation) -> str:
    row = told.thing.row
    sure = "reliable" if row["is_reliable"] else "not reliable"
    text = f"Confidence {row['confidence']:.4f}, {sure}; novelty {row['ood_score']:.3f}; entropy {row['entropy']:.3f}."
    honesty = f"<br>Calibration: {escape(told.honesty)}." if told.honesty else ""
    rows = []
    for one in told.classes:
        bar = f'<div class="bar"><div style="width:{100 * min(max(one.probability, 0), 1):.1f}%"></div></div>'
        right = "–" if one.right != one.right else f"{one.right:.0%} of {one.called}"
        cells = (escape(one.name), f"{one.probability:.4f}", bar, "yes" if one.in_set else "", right)
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    split = escape(told.split or "no")
    head = ("class", "probability", "", "in the set", f"right when called ({split} split)")
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f"<p>{text}{honesty}</p><table><tr>{titles}</tr>{''.join(rows)}</table>"


def _flags(told: Explanation) -> str:
    if not told.flags:
        return "<p>None.</p>"
    rows = [(name, meaning, "yes" if bad else "no") for name, meaning, bad in told.flags]
    return _table(("flag", "meaning", "makes it unreliable"), rows)


def _neighbours(told: Explanation) -> str:
    figures = "".join(
        f"<figure>{_picture(n.pixels, _SMALL, n.label)}<figcaption>{escape(n.label)}<br>#{n.row}, "
        f"distance {n.distance:.2f}</figcaption></figure>"
        for n in told.neighbours
    )
    return f"<p>{escape(told.neighbours_from)}; distance in standard deviations within a class</p>{figures}"


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, all of them escaped."""
    head = "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in header) + "</tr>" if header else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{head}{body}</table>"


def _picture(pixels: np.ndarray, side: int, what: str) -> str:
    """An image element with the PNG of pixels uint8 (3, S, S) inside."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img width="{side}" height="{side}" alt="{escape(what)}" src="data:image/png;base64,{data}">'
