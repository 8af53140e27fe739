"""A frozen sample of the sky: objects of a release whose labels are compared, to count those a candidate would change.

The sample is drawn once, from the current release, and stays as long as its file exists, so that verdicts of different
years use the same objects. After the file is deleted, a new sample is drawn.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.atomic import atomic_write
from catalogs.paths import ReleaseLayout
from catalogs.query.sql import find_release, select
from catalogs.releases.registry import current_name
from models.artifacts.registry import load_card
from models.artifacts.weights import preprocessing_of
from models.errors import ModelError
from models.preprocessing import Preprocessing
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.survey.catalog_pixels import ROW_COLUMNS, CatalogPixels, load_catalog_pixels

FILE = "sky-sample.parquet"
_FOOTER = b"morphcat"
_TILES = 32  # to draw from, unless these have too few objects: a tile is read as a whole for any of its objects


@dataclass(frozen=True)
class SkySample:
    """Reliable objects of a release, the preprocessing that their `input_digest` belongs to, and the release's name.

    `rows` has the columns of `pipeline.survey.catalog_pixels.ROW_COLUMNS` and `simulated`, bool.
    """

    rows: pa.Table
    preprocessing: Preprocessing
    release: str

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over the objects and their pixels."""
        digest = hashlib.sha256(self.preprocessing.digest.encode())
        for name in ("object_id", "input_digest"):
            digest.update(self.rows[name].to_numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def simulated(self) -> bool:
        """Whether any object was simulated."""
        return any(self.rows["simulated"].to_pylist())

    def pixels(self, workspace: Workspace) -> CatalogPixels:
        """The pixels of the objects as they are now. Raises what `load_catalog_pixels` raises."""
        return load_catalog_pixels(
            workspace, self.preprocessing, self.preprocessing, self.rows, "reading the sky sample"
        )


def sky_sample(workspace: Workspace) -> SkySample | str:
    """The frozen sample, drawn by the first call after a release; a sentence if there is none, with the reason.

    Raises
    ------
    UserError : the file is damaged.
    """
    path, most = workspace.models / FILE, workspace.settings.gate.sky_sample
    if most == 0:
        return "gate.sky_sample is 0"
    if not path.is_file():
        if current_name(workspace.catalog) is None:
            return "there is no release yet"
        try:
            sample = _draw(workspace, most)
        except ModelError as error:
            return f"the model of the release cannot be used ({error})"
        if sample.rows.num_rows == 0:
            return f"release {sample.release} has no reliable object"
        _freeze(path, sample)
    return _read(path)


def _draw(workspace: Workspace, most: int) -> SkySample:
    """Up to `most` reliable objects of the current release from tiles all over the sky, both in the order of a hash."""
    release, layout = find_release(workspace.catalog)
    preprocessing = preprocessing_of(load_card(workspace.models, release.model_id))
    tiles = _tiles(layout, most)
    names = ", ".join("'" + tile.replace("'", "''") + "'" for tile in tiles) or "NULL"
    rows = select(
        layout,
        f"""SELECT {ROW_COLUMNS}, starts_with(survey_layer, 'simulated') AS simulated
            FROM morphology JOIN tiles USING (tile_id)
            WHERE label_id >= 0 AND is_reliable AND tile_id IN ({names})
            ORDER BY md5(object_id::VARCHAR), object_id""",
        limit=most,
    )
    return SkySample(rows, preprocessing, release.release)


def _tiles(layout: ReleaseLayout, most: int) -> list[str]:
    """The tiles to draw from: at least 32 if there are as many, and enough of them for `most` objects."""
    counted = select(
        layout,
        """SELECT tile_id, count(*) AS n FROM morphology WHERE label_id >= 0 AND is_reliable
           GROUP BY tile_id ORDER BY md5(tile_id), tile_id""",
    )
    before = np.cumsum(counted["n"].to_numpy()) - counted["n"].to_numpy()
    wanted = max(_TILES, int((before < most).sum()))
    return counted["tile_id"].to_pylist()[:wanted]


def _freeze(path: Path, sample: SkySample) -> None:
    footer = json.dumps({"release": sample.release, "recipe": sample.preprocessing.to_dict()})
    with atomic_write(path) as temporary:
        pq.write_table(sample.rows.replace_schema_metadata({_FOOTER: footer.encode()}), temporary)


def _read(path: Path) -> SkySample:
    try:
        rows = pq.read_table(path)
        footer = json.loads((rows.schema.metadata or {})[_FOOTER])
        return SkySample(
            rows.replace_schema_metadata(None), Preprocessing.from_dict(footer["recipe"]), footer["release"]
        )
    except (pa.ArrowInvalid, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a sample of the sky of this version ({type(error).__name__}: {error}); delete it, and the "
            "next verdict draws a new one"
        ) from error
