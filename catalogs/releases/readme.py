"""The catalogue explained to its readers: README and report of a release, and docs/catalogue.md, from templates.

What the templates say of columns, flags and tables comes from `catalogs.schema` and `catalogs.releases.provenance`.
`python -m catalogs.releases.readme CLASS …` prints docs/catalogue.md; the names of the classes come from outside.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from catalogs.citation import simulated_warning
from catalogs.export.writers import VOTABLE_ROWS
from catalogs.paths import INDEX_NAME, MARGIN_ARCSEC, MARGIN_NAME
from catalogs.releases.provenance import RUNS_COLUMNS
from catalogs.schema import FLAG_MEANINGS, RELIABLE_CONFIDENCE, UNRELIABLE, catalogue_columns, flag_names

_TOTALS = {
    "tiles": "sky tiles",
    "objects": "objects, a row each",
    "classified": "of these with a label",
    "unclassified": "of these without a label, a flag says so",
    "simulated_objects": "of these simulated",
    "quarantined": "inputs in quarantine, with a reason",
    "out_of_footprint": "inputs out of the footprint",
    "duplicates": "inputs that another row stands for",
}


def readme(info: Mapping[str, str], class_slugs: Sequence[str]) -> str:
    """README.md of a release: its totals, how to open it, and what everything in it means.

    `info` is what a release says of itself, as text; `release` and `model_id` must be there.
    """
    return _render(
        "readme.md.j2",
        release=info["release"],
        model_id=info["model_id"],
        created=info.get("created", ""),
        warning=simulated_warning(info),
        totals=[(words, int(info[key])) for key, words in _TOTALS.items() if key in info],
        **_contents(class_slugs),
    )


def documentation(class_slugs: Sequence[str]) -> str:
    """docs/catalogue.md: the catalogue as every release has it."""
    return _render("catalogue.md.j2", **_contents(class_slugs))


def report_page(info: Mapping[str, str]) -> str:
    """The totals of a release as an HTML page."""
    return _render("report.html.j2", info=info)


def _contents(class_slugs: Sequence[str]) -> dict[str, Any]:
    """The values of `contents.md.j2`."""
    flags = [
        {
            "bit": flag.bit_length() - 1,
            "name": (flag.name or "").lower(),
            "spoils": bool(flag & UNRELIABLE),
            "meaning": meaning,
        }
        for flag, meaning in FLAG_MEANINGS.items()
    ]
    return {
        "columns": catalogue_columns(class_slugs),
        "flag_names": flag_names,
        "class_slugs": class_slugs,
        "reliable_confidence": RELIABLE_CONFIDENCE,
        "unreliable": int(UNRELIABLE),
        "flags": flags,
        "run_columns": RUNS_COLUMNS,
        "margin_name": MARGIN_NAME,
        "margin_arcsec": f"{MARGIN_ARCSEC:g}",
        "index_name": INDEX_NAME,
        "votable_rows": f"{VOTABLE_ROWS:,}",
    }


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("catalogs.releases"),
        undefined=StrictUndefined,
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


if __name__ == "__main__":
    sys.stdout.write(documentation(sys.argv[1:]))
