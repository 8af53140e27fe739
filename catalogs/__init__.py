"""Galaxy-morphology catalogues as files: written tile by tile, published as releases, read by anyone.

import catalogs
cat = catalogs.open("morphcat-workspace/catalog")
near = cat.cone(155.08, -2.51, 0.5)
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from catalogs.query.catalog import Catalogue


def open(folder: str | PathLike[str], release: str | None = None) -> Catalogue:
    """Open a release of a catalogue to read it; the current one when no name is given.

    Parameters
    ----------
    folder : the catalogue folder, which holds `CURRENT` and `releases`.

    Raises
    ------
    catalogs.errors.CatalogError : there is no (such) release.
    """
    from pathlib import Path

    from catalogs.query.catalog import open_catalogue  # here: who imports a part of this package needs no SQL

    return open_catalogue(Path(folder), release)
