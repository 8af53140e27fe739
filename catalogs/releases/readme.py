"""The catalogue explained to those who read it: the README of a release, and docs/catalogue.md.

Both are made from the tables of `catalogs.schema` and `catalogs.releases.provenance`.
`python -m catalogs.releases.readme CLASS …` prints docs/catalogue.md; the names of the classes come from outside.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

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

_OPEN = """Paths are those within the folder of a release, `catalog/releases/<release>/`; `catalog/CURRENT` names the
release that is current.

LSDB, cone by cone or as a crossmatch with other HATS catalogues:

```python
import lsdb

galaxies = lsdb.open_catalog("morphology", columns=["object_id", "ra", "dec", "label", "confidence", "is_reliable"])
nearby = galaxies.cone_search(ra=150.0, dec=2.2, radius_arcsec=1800).compute()
```

DuckDB:

```python
import duckdb

table = "'morphology/morphology/dataset/*/*/*.parquet'"
counts = duckdb.sql(f"SELECT label, count(*) AS n FROM {table} WHERE is_reliable GROUP BY label ORDER BY n DESC").df()
```

pandas, and Polars (`polars.scan_parquet`) with the same files:

```python
import pandas as pd

folder = "morphology/morphology/dataset"
galaxies = pd.read_parquet(folder, columns=["object_id", "ra", "dec", "label", "confidence"])
sure = galaxies[galaxies.confidence > 0.9]
```

astropy, with units, UCDs and descriptions:

```python
from astropy.table import Table

galaxies = Table.read("export/morphology.parquet", format="parquet.votable")
galaxies["ra"].unit, galaxies["label"].description, galaxies["confidence"].meta["ucd"]
```

TOPCAT and STILTS:

```console
$ topcat export/morphology.fits
$ stilts tpipe in=export/morphology.fits cmd='select is_reliable' \\
    cmd='keepcols "object_id ra dec label confidence"' out=reliable.csv
```
"""

_FILES = (
    ("morphology/", 'HATS collection: `lsdb.open_catalog("morphology")`'),
    (
        "morphology/morphology/dataset/Norder=K/Dir=D/Npix=N.parquet",
        "the rows, sorted by position; VOTable metadata (VOParquet 1.0) in each footer",
    ),
    (
        f"morphology/{MARGIN_NAME}/",
        f"margin cache: rows within {MARGIN_ARCSEC:g} arcsec of each pixel, for crossmatches across its edge",
    ),
    (f"morphology/{INDEX_NAME}/", "which pixel an `object_id` is in"),
    ("sidecar/tiles.parquet, runs.parquet", "the sky tiles, and the runs that made the rows (`run_id`)"),
    ("sidecar/quarantine.parquet", "inputs without a row, with the reason"),
    ("sidecar/partitions.parquet, changes.parquet", "the pixels; what changed since the release before"),
    ("sidecar/manifest.sha256", "checksums of all files: `sha256sum -c sidecar/manifest.sha256`"),
    (
        "export/morphology.parquet, .fits, .vot",
        "the same rows as single files, unless the setting `release.exports` is off; no VOTable above "
        f"{VOTABLE_ROWS:,} objects",
    ),
    ("extension.json", "how the labels join a Legacy Surveys catalogue by `object_id`"),
    ("report/index.html", "the totals as a page"),
    ("CITATION.txt", "how to name and cite the release"),
)

_EXPORTS = """In the FITS and VOTable exports strings are ASCII of fixed width; a character that is not ASCII becomes
an escape such as `\\xe9`. What is not known is a sentinel or NaN, as the table says, never null.
"""


def readme(info: Mapping[str, str], class_slugs: Sequence[str]) -> str:
    """README.md of a release: its totals, how to open it, and what everything in it means.

    `info` is what a release says of itself, as text; `release` and `model_id` must be there.
    """
    made = f", made {info['created']}" if "created" in info else ""
    totals = [f"| {words} | {int(info[key]):,} |" for key, words in _TOTALS.items() if key in info]
    parts = [
        f"# Morphology catalogue {info['release']}",
        f"By model `{info['model_id']}`{made}.",
        f"**{warning}**" if (warning := simulated_warning(info)) else "",
        "\n".join(["| | number |", "|---|---|", *totals]) if totals else "",
        "Every input is in one of these: inputs = with a label + without a label + in quarantine +\n"
        "out of the footprint + duplicates.",
        *_explained(class_slugs),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def documentation(class_slugs: Sequence[str]) -> str:
    """docs/catalogue.md: the catalogue as every release has it."""
    parts = [
        "# The catalogue",
        "One row per object, in immutable releases. Each release carries a README like this page, with its totals.\n"
        "This page is made from the tables in `catalogs/schema.py` by `python -m catalogs.releases.readme CLASS …`.",
        *_explained(class_slugs),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _explained(class_slugs: Sequence[str]) -> list[str]:
    return [
        "## Open it",
        _OPEN,
        "## Columns",
        _columns(class_slugs),
        _EXPORTS,
        "## Classes and prediction sets",
        _classes(class_slugs),
        "## The recommended cut",
        _reliable(),
        "## Quality flags",
        _flags(),
        "## Runs",
        _runs(),
        "## Files",
        "\n".join(["| file | what |", "|---|---|", *(f"| {name} | {what} |" for name, what in _FILES)]),
    ]


def _columns(class_slugs: Sequence[str]) -> str:
    rows = [
        f"| {c.name} | {c.type} | {c.unit} | {c.ucd} | {c.meaning} | {', '.join(flag_names(c.flags))} |"
        for c in catalogue_columns(class_slugs)
    ]
    return "\n".join(["| column | type | unit | UCD | meaning | see flags |", "|---|---|---|---|---|---|", *rows])


def _classes(class_slugs: Sequence[str]) -> str:
    rows = [f"| {number} | {slug} | {1 << number} |" for number, slug in enumerate(class_slugs)]
    text = (
        "`pred_set` is the sum of the values of the classes in the prediction set: class *i* is in it where\n"
        "`pred_set & (1 << i)` is not 0. The sets were made to hold the true class of validation images with the\n"
        "coverage that the model's card names."
    )
    return "\n".join([text, "", "| label_id | label | value in pred_set |", "|---|---|---|", *rows])


def _reliable() -> str:
    return (
        "`is_reliable` is true where\n"
        f"`confidence >= {RELIABLE_CONFIDENCE} AND (quality_flags & {int(UNRELIABLE)}) = 0`: none of the flags that\n"
        "spoil a label, marked below. The others say that a label is uncertain, as its confidence does, or do no harm."
    )


def _flags() -> str:
    rows = [
        f"| {flag.bit_length() - 1} | {(flag.name or '').lower()} | {'yes' if flag & UNRELIABLE else ''} | {meaning} |"
        for flag, meaning in FLAG_MEANINGS.items()
    ]
    return "\n".join(["| bit | flag of quality_flags | spoils a label | meaning |", "|---|---|---|---|", *rows])


def _runs() -> str:
    text = (
        "`sidecar/runs.parquet` (the table `runs` of `morphcat query`) has a row for each run that committed a sky\n"
        "tile of the release or predicted one of its rows. Null is what is not known, as of a run that was killed."
    )
    rows = [f"| {c.name} | {c.type} | {c.unit} | {c.meaning} |" for c in RUNS_COLUMNS]
    return "\n".join([text, "", "| column of runs | type | unit | meaning |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    sys.stdout.write(documentation(sys.argv[1:]))
