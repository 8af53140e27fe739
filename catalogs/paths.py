"""Where the parts of a release lie: a HATS collection, its provenance tables and exports. Paths alone; opens no data.

releases/<name>/
  release.json                     what the release says of itself
  morphology/                      HATS collection (collection.properties)
    morphology/                    primary catalogue: hats.properties, partition_info.csv, dataset/
    morphology_10arcs/             margin cache
    object_id_index/               where each object id is
  sidecar/*.parquet manifest.sha256
  export/ morphology.parquet .fits .vot
  report/index.html  CITATION.txt  README.md
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

NAME = "morphology"
MARGIN_ARCSEC = 10.0
MARGIN_NAME = "morphology_10arcs"
INDEX_NAME = "object_id_index"


@dataclass(frozen=True, order=True)
class Partition:
    """A HEALPix pixel (nested) of a catalogue and how many rows it holds."""

    order: int
    pixel: int
    rows: int


@dataclass(frozen=True)
class ReleaseLayout:
    """The folder of one release."""

    root: Path

    @property
    def info(self) -> Path:
        return self.root / "release.json"

    @property
    def collection(self) -> Path:
        return self.root / NAME

    @property
    def primary(self) -> Path:
        return self.collection / NAME

    @property
    def margin(self) -> Path:
        return self.collection / MARGIN_NAME

    @property
    def index(self) -> Path:
        return self.collection / INDEX_NAME

    @property
    def provenance(self) -> Path:
        return self.root / "sidecar"

    @property
    def export(self) -> Path:
        return self.root / "export"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def partition_file(self, order: int, pixel: int) -> Path:
        """The file of a pixel of the primary catalogue."""
        return partition_path(self.primary, order, pixel)

    def partitions(self) -> list[Partition]:
        """The pixels of the primary catalogue, from its partition_info.csv."""
        with (self.primary / "partition_info.csv").open(newline="") as file:
            return [Partition(int(r["Norder"]), int(r["Npix"]), int(r["num_rows"])) for r in csv.DictReader(file)]


def partition_path(catalogue: Path, order: int, pixel: int) -> Path:
    """The file of a pixel of a HATS catalogue: dataset/Norder=K/Dir=D/Npix=N.parquet."""
    return catalogue / "dataset" / f"Norder={order}" / f"Dir={pixel // 10_000 * 10_000}" / f"Npix={pixel}.parquet"
