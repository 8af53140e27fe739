"""What others do with the rows of `benchmarks/catalog.py`: DuckDB, LSDB, hats-import."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from catalog_measuring import Asked, ask, timed

CONE = 0.5  # degrees
MAX_ROWS = 1_000_000  # of a partition, of ours and of hats-import
BY_LABEL = "SELECT label, count(*) AS n FROM morphology GROUP BY label"


def label_counts(labels: Any, numbers: Any) -> dict[str, int]:
    """How many objects each label has, in the order of the labels."""
    return dict(sorted((str(label), int(n)) for label, n in zip(labels, numbers, strict=True)))


def ids_told(ids: Iterable[int]) -> dict[str, int]:
    """What is compared of many object ids: their number and sum."""
    told = [int(i) for i in ids]
    return {"objects": len(told), "sum_of_ids": sum(told)}


def ask_tiles(files: Sequence[str], ra: float, dec: float, object_id: int) -> dict[str, Asked]:
    """Ask DuckDB on the tile files as they lie, over a connection that stays open."""
    import duckdb

    from catalogs.query.cone_search import SEPARATION

    connection = duckdb.connect(":memory:")
    connection.execute(SEPARATION)
    connection.execute(f"CREATE VIEW morphology AS SELECT * FROM read_parquet({list(files)!r})")
    circle = f"SELECT * FROM morphology WHERE separation(ra, dec, {ra!r}, {dec!r}) <= {CONE}"
    one = f"SELECT * FROM morphology WHERE object_id = {object_id}"
    return {
        "group by label": ask(lambda: label_counts(*connection.sql(BY_LABEL).to_arrow_table().to_pydict().values())),
        "cone": ask(lambda: ids_told(connection.sql(circle).df()["object_id"])),
        "id look-up": ask(lambda: int(connection.sql(one).df()["objid"].iloc[0])),
    }


def ask_lsdb(path: Path, ra: float, dec: float, object_id: int, with_index: bool) -> dict[str, Asked]:
    """Ask LSDB on a HATS catalogue that stays open, on two threads of Dask."""
    import dask
    import lsdb

    dask.config.set(scheduler="threads", num_workers=2)
    catalog = lsdb.open_catalog(path, columns="all")
    labels = lsdb.open_catalog(path, columns=["label"])

    def found_by_id() -> int:
        with redirect_stdout(io.StringIO()):  # it prints what it searches
            found = catalog.id_search(values={"object_id": object_id})
        return int(found.compute(progress_bar=False)["objid"].iloc[0])

    found = {
        "open": ask(lambda: len(lsdb.open_catalog(path).columns)),
        "group by label": ask(lambda: _counts_of(labels)),
        "cone": ask(
            lambda: ids_told(catalog.cone_search(ra, dec, CONE * 3600).compute(progress_bar=False)["object_id"])
        ),
    }
    if with_index:
        found["id look-up"] = ask(found_by_id)
    return found


def _counts_of(catalog: Any) -> dict[str, int]:
    counts = catalog.to_dask_dataframe()["label"].value_counts().compute()
    return label_counts(counts.index, counts.to_numpy())


def fine_partitions(catalog: Path, folder: Path) -> int:
    """Lay the rows of the current release out by HEALPix pixels of order 5, as a HATS catalogue; returns how many."""
    from catalogs.paths import Partition, ReleaseLayout
    from catalogs.query.sql import find_release
    from catalogs.releases.hats_metadata import write_primary

    _, release = find_release(catalog)
    layout, partitions, cells = ReleaseLayout(folder), [], []
    for file in release.partitions():
        if file.order > 5:
            raise SystemExit(f"pixels of order {file.order} cannot be split into those of order 5; take fewer --rows")
        table = pq.ParquetFile(release.partition_file(file.order, file.pixel)).read().replace_schema_metadata(None)
        index = table["_healpix_29"].to_numpy()
        cells.append(np.unique(index >> 38, return_counts=True))
        for pixel in np.unique(index >> 48).tolist():
            first, after = np.searchsorted(index, [pixel << 48, (pixel + 1) << 48])
            path = layout.partition_file(5, pixel)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.slice(first, after - first), path, compression="zstd")
            partitions.append(Partition(5, pixel, int(after - first)))
    numbers, counts = (np.concatenate(part) for part in zip(*cells, strict=True))
    text = "Simulated rows for a benchmark"
    write_primary(layout, partitions, table.schema, numbers, counts, title=text, description=text, max_rows=MAX_ROWS)
    return len(partitions)


def hats_import(files: Sequence[str], folder: Path, workers: int, files_at_once: int) -> dict[str, Any]:
    """Build catalogue, margin and id index with hats-import; seconds of each, rows, and what it refused to do.

    Parameters
    ----------
    files_at_once : tile files that a task reads; 1: a task for each, as `file_reader="parquet"` does it.
    """
    from dask.distributed import Client
    from hats_import.catalog.arguments import ImportArguments
    from hats_import.index.arguments import IndexArguments
    from hats_import.margin_cache.margin_cache_arguments import MarginCacheArguments
    from hats_import.pipeline import pipeline_with_client

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "temporary").mkdir(parents=True)
    common: dict[str, Any] = {"output_path": folder, "tmp_dir": folder / "temporary", "progress_bar": False}
    done: dict[str, Any] = {"input_catalog_path": folder / "morphology"}
    primary: dict[str, Any] = {
        "output_artifact_name": "morphology",
        "input_file_list": _inputs(files, folder, files_at_once),
        "file_reader": "indexed_parquet" if files_at_once > 1 else "parquet",
        "use_healpix_29": True,
        "pixel_threshold": MAX_ROWS,
    }
    index: dict[str, Any] = {
        "output_artifact_name": "index",
        "indexing_column": "object_id",
        "drop_duplicates": False,
        **done,
    }
    seconds = {}
    with Client(n_workers=workers, threads_per_worker=1, local_directory=str(folder), dashboard_address=None) as client:
        seconds["catalogue"], _ = timed(lambda: pipeline_with_client(ImportArguments(**common, **primary), client))
        margin = MarginCacheArguments(**common, output_artifact_name="margin", margin_threshold=10.0, **done)
        seconds["margin"], _ = timed(pipeline_with_client, margin, client)
        try:
            arguments = IndexArguments(**common, **index)
        except RuntimeError as error:  # of its own check of Dask's version
            return {"seconds": seconds, "rows": _rows_under(folder / "morphology"), "no index": str(error)}
        seconds["index"], _ = timed(pipeline_with_client, arguments, client)
    return {"seconds": seconds, "rows": _rows_under(folder / "morphology")}


def _inputs(files: Sequence[str], folder: Path, files_at_once: int) -> list[str]:
    """The files themselves, or texts that name `files_at_once` of them each."""
    if files_at_once == 1:
        return list(files)
    texts = []
    for start in range(0, len(files), files_at_once):
        texts.append(str(folder / f"{start}.txt"))
        Path(texts[-1]).write_text("\n".join(files[start : start + files_at_once]))
    return texts


def _rows_under(catalogue: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in catalogue.glob("dataset/Norder=*/Dir=*/*.parquet"))
