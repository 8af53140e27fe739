"""What makes partition files a HATS collection: properties, partition info, Parquet metadata, maps of the objects.

`hats` writes and checks the properties and maps (IVOA note HATS 1.0), `mocpy` the coverage. Both take seconds to
import, so that they are imported where they are used.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalogs.paths import INDEX_NAME, MARGIN_NAME, NAME, Partition, ReleaseLayout
from catalogs.releases.partitioning import MAP_ORDER, SKY_ORDER, pixel_range

SKYMAP_ORDER = 8  # cells of 14 arcmin in the maps of density; the coverage has MAP_ORDER
_HATS = "v1.0"
_DEFAULT = ("object_id", "ra", "dec", "label", "confidence", "is_reliable", "quality_flags", "ood_score", "mag_r")
_BIBLIOGRAPHY = "2019AJ....157..168D 2023MNRAS.526.4768W"  # Legacy Surveys; Galaxy Zoo DESI
_COPYRIGHT = "Images: DESI Legacy Imaging Surveys. Morphology classes: Galaxy Zoo."
EXTENSION = "extension.json"


def write_primary(
    layout: ReleaseLayout,
    partitions: Sequence[Partition],
    schema: pa.Schema,
    cells: np.ndarray,
    counts: np.ndarray,
    *,
    title: str,
    description: str,
    max_rows: int,
) -> None:
    """Write what describes the primary catalogue as a whole, when all its partition files are there.

    Parameters
    ----------
    schema : of the partition files, with the metadata of a file.
    cells, counts : int64 (M,), objects in each occupied nested HEALPix cell of order `MAP_ORDER`.
    """
    (layout.primary / "dataset").mkdir(parents=True, exist_ok=True)
    ordered = sorted(partitions, key=pixel_range)
    _write_parquet_metadata(layout, ordered, schema)
    with (layout.primary / "partition_info.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Norder", "Npix", "num_rows"])
        table.writerows((p.order, p.pixel, p.rows) for p in ordered)
    fraction = _write_maps(layout.primary, cells, counts)
    _write_properties(layout, ordered, fraction, title, description, max_rows)


def _write_parquet_metadata(layout: ReleaseLayout, partitions: Sequence[Partition], schema: pa.Schema) -> None:
    """Write `_common_metadata` (the schema) and `_metadata` (the row groups of all partitions, with relative paths)."""
    dataset = layout.primary / "dataset"
    footers = []
    for partition in partitions:
        path = layout.partition_file(partition.order, partition.pixel)
        footer = pq.read_metadata(path)
        footer.set_file_path(str(path.relative_to(dataset)))
        footers.append(footer)
    pq.write_metadata(schema, dataset / "_common_metadata")
    pq.write_metadata(schema, dataset / "_metadata", metadata_collector=footers)


def _write_maps(folder: Path, cells: np.ndarray, counts: np.ndarray) -> float:
    """Write point_map.fits, skymap.fits and moc.fits; returns the share of the sky that is covered."""
    from hats.io.skymap import write_skymap
    from mocpy import MOC

    density = np.bincount(cells >> 2 * (MAP_ORDER - SKYMAP_ORDER), weights=counts, minlength=12 * 4**SKYMAP_ORDER)
    write_skymap(density.astype(np.int64), folder)
    shutil.copyfile(folder / "skymap.fits", folder / "point_map.fits")  # the older name, from which coverage is read
    coverage = MOC.from_healpix_cells(cells.astype(np.uint64), np.uint8(MAP_ORDER), MAP_ORDER)
    coverage.save(folder / "moc.fits", format="fits", overwrite=True)
    return float(coverage.sky_fraction)


def _write_properties(
    layout: ReleaseLayout, partitions: Sequence[Partition], fraction: float, title: str, text: str, max_rows: int
) -> None:
    from hats.catalog import TableProperties

    sizes = (layout.partition_file(p.order, p.pixel).stat().st_size for p in partitions)
    TableProperties(
        catalog_name=NAME,
        catalog_type="object",
        total_rows=sum(p.rows for p in partitions),
        ra_column="ra",
        dec_column="dec",
        default_columns=list(_DEFAULT),
        healpix_column="_healpix_29",
        healpix_order=SKY_ORDER,
        skymap_order=SKYMAP_ORDER,
        hats_max_rows=max_rows,
        moc_sky_fraction=round(fraction, 8),
        hats_estsize=sum(sizes) // 1024,
        **_provenance(title, text),
        hats_order=max((p.order for p in partitions), default=0),
        hats_cols_sort="_healpix_29 object_id",
    ).to_properties_file(layout.primary)


def _provenance(title: str, description: str) -> dict[str, str]:
    """Who made the catalogue, from what, when and with which versions: keys of the HATS note."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
    return {
        "obs_title": title,
        "obs_description": description,
        "obs_regime": "Optical",
        "obs_copyright": _COPYRIGHT,
        "bib_reference": _BIBLIOGRAPHY,
        "prov_progenitor": "DESI Legacy Imaging Surveys",
        "hats_creator": "morphcat",
        "hats_builder": f"morphcat v{version('morphcat')}, hats v{version('hats')}",
        "hats_creation_date": now,
        "hats_release_date": "2025-08-22",  # of the note, as hats itself writes it
        "hats_version": _HATS,
    }


def write_collection(layout: ReleaseLayout) -> None:
    """Write collection.properties, which names the primary catalogue, its margin and its index."""
    from hats.catalog.dataset.collection_properties import CollectionProperties

    CollectionProperties(
        name=NAME,
        hats_primary_table_url=NAME,
        all_margins=[MARGIN_NAME],
        default_margin=MARGIN_NAME,
        all_indexes={"object_id": INDEX_NAME},
        default_index="object_id",
    ).to_properties_file(layout.collection)


def write_extension(layout: ReleaseLayout, columns: Sequence[str]) -> None:
    """Write extension.json: how the rows plug onto a catalogue of the Legacy Surveys, by object id.

    The keys beginning with `hats_` are those of the `<extension>.properties` of hats 0.11, which names its primary
    catalogue by path. Where a reader keeps a Legacy Surveys catalogue is not known here, nor has that one a column
    like object_id; hence JSON with the rule, and not that file.
    """
    (layout.root / EXTENSION).write_text(
        json.dumps(
            {
                "obs_collection": NAME,
                "dataproduct_type": "extension",
                "hats_assn_join_table_url": NAME,
                "hats_col_assn_join": "object_id",
                "hats_ext_join_style": "left",
                "hats_ext_cols": " ".join(c for c in columns if c not in ("_healpix_29", "ra", "dec")),
                "primary": "a catalogue of the DESI Legacy Imaging Surveys, DR8 to DR10 (Tractor or sweep files)",
                "primary_columns": ["RELEASE", "BRICKID", "OBJID"],
                "join_rule": "object_id = RELEASE << 42 | BRICKID << 22 | OBJID",
                "note": "DESI's TARGETID. Rows with bit 62 set come from pictures without these numbers; they join to "
                "nothing. Columns release, brickid and objid of the catalogue hold the three numbers themselves.",
            },
            indent=1,
        )
    )
