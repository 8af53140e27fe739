"""The catalogue at the size of Galaxy Zoo DESI, on simulated rows: build, queries, audit, a patch; peers beside it.

Run as `python benchmarks/catalog.py [--rows 8670000] [--tiles 4608] [--folder DIR] [--out FILE.json]`. It commits
simulated tiles (no network has seen an object of them), publishes them, asks the release and the same rows as they lie
in their tile files, and lets hats-import build a catalogue of the same tile files; then five tiles are replaced.
Each step runs in a process of its own, one after the other; nothing else should run meanwhile. Tiles that a run before
has left in `--folder` are taken as they are. A run that went through deletes what it made, unless `--keep` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the script also runs where morphcat is not installed

from catalog_measuring import PATIENCE, REPEATS, Asked, Step, alone, ask
from catalog_peers import (
    BY_LABEL,
    CONE,
    MAX_ROWS,
    ask_lsdb,
    ask_tiles,
    fine_partitions,
    hats_import,
    ids_told,
    label_counts,
)
from catalog_tiles import (
    MODEL,
    PATCH_SIDE,
    Tile,
    commit_tile,
    object_id,
    patched_rows,
    simulated_rows,
    simulated_sky,
    write_tiles,
)

REPLACED = 5  # tiles
PACKAGES = ("pyarrow", "duckdb", "numpy", "hats", "hats-import", "lsdb", "dask", "pandas")


# --- morphcat ---------------------------------------------------------------------------------------------------------


def build(catalog: Path, workers: int, exports: bool) -> dict[str, Any]:
    """Publish what is committed; without workers in one process, as the settings have it by default."""
    from catalogs.releases.build import publish
    from pipeline.config.workers import WorkerSettings
    from pipeline.survey.publish import on_workers

    where = WorkerSettings(kind="local", count=workers) if workers else WorkerSettings()
    info = publish(catalog, MODEL, max_rows=MAX_ROWS, exports=exports, run_units=on_workers(where))
    assert info is not None
    return {"release": info.release, "objects": info.objects, "partitions": info.partitions}


def ask_release(catalog: Path, ra: float, dec: float, object_id: int) -> dict[str, Asked]:
    """Ask the current release, opened anew for each question."""
    from catalogs.query.catalog import open_catalogue
    from catalogs.query.sql import query

    def by_label() -> dict[str, int]:
        return label_counts(*query(catalog, BY_LABEL).to_pydict().values())

    return {
        "group by label": ask(by_label),
        "cone": ask(lambda: ids_told(open_catalogue(catalog).cone(ra, dec, CONE)["object_id"])),
        "id look-up": ask(lambda: int(open_catalogue(catalog).find(object_id)["objid"])),
    }


def audit(catalog: Path, quick: bool) -> dict[str, Any]:
    """Audit the current release; `quick` leaves out checksums and the rows of the tiles."""
    from catalogs.validation.audit import audit as run

    report = run(catalog, quick=quick)
    return {"ok": report.ok, "rows": report.rows, "wrong": [c.name for c in report.checks if c.status == "wrong"]}


def replace_tiles(catalog: Path, tiles: Sequence[Tile]) -> list[list[int]]:
    """Commit the patch of each tile; returns the ids of the objects that differ, tile by tile."""
    differing = []
    for tile in tiles:
        table, ids = patched_rows(tile)
        commit_tile(catalog, tile, table, f"patched-{tile.number}")
        differing.append(ids.tolist())
    return differing


def check_patch(catalog: Path, old: str, new: str, tiles: Sequence[Tile], differing: list[list[int]]) -> dict[str, Any]:
    """Which partition files were rewritten and which objects are told to differ, beside what has to be."""
    import pyarrow.parquet as pq

    from catalogs.releases.diff import compare
    from catalogs.releases.partitioning import pixel_range
    from catalogs.releases.registry import layout_of

    before, after = layout_of(catalog, old), layout_of(catalog, new)
    started = time.perf_counter()
    changes = compare(before, after)
    seconds = time.perf_counter() - started
    told = pq.read_table(after.provenance / "changes.parquet")["object_id"].to_pylist()
    inodes = {path.stat().st_ino for path in before.primary.glob("dataset/*/*/*.parquet")}
    partitions = after.partitions()
    rewritten = {p for p in partitions if after.partition_file(p.order, p.pixel).stat().st_ino not in inodes}
    index = np.sort(np.concatenate([simulated_rows(tile)["_healpix_29"].to_numpy() for tile in tiles]))
    within = {p for p in partitions if np.diff(np.searchsorted(index, pixel_range(p)))[0]}
    return {
        "diff_seconds": seconds,
        "objects_replaced": sum(map(len, differing)),
        "exactly_these_told": sorted(told)
        == sorted(chain.from_iterable(differing))
        == sorted(changes["object_id"].to_pylist()),
        "partition files": len(partitions),
        "leaves_of_replaced_tiles": len(within),
        "leaves_rewritten": len(rewritten),
        "only_these_rewritten": rewritten == within,
    }


# --- all of it --------------------------------------------------------------------------------------------------------


@dataclass
class Results:
    """What was measured, so far: steps with time and memory, answers to questions by who was asked, remarks."""

    about: dict[str, Any]
    steps: dict[str, Step] = field(default_factory=dict)
    questions: dict[str, dict[str, Asked]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def step(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        self.steps[name] = alone(function, *arguments)
        return self.steps[name].result

    def ask(self, whom: str, function: Callable[..., dict[str, Asked]], *arguments: Any) -> None:
        self.questions[whom] = alone(function, *arguments).result

    def disagreements(self) -> list[str]:
        """Questions to which two gave different answers."""
        ours = self.questions.get("morphcat", {})
        return [
            f"{whom} answers otherwise than morphcat: {question}"
            for whom, asked in self.questions.items()
            for question, found in asked.items()
            if question in ours and found.answer != ours[question].answer
        ]


def measure(arguments: argparse.Namespace, folder: Path, results: Results) -> None:
    """Run every step; what the peers need is made from the same tile files."""
    catalog, tiles = folder / "catalog", simulated_sky(arguments.rows, arguments.tiles)
    started = time.perf_counter()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        written = sum(pool.map(write_tiles, [catalog] * 64, [tiles[i::64] for i in range(64)]))
    print(f"{written} tiles written in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    files = sorted(str(path) for path in (catalog / "tiles" / MODEL).glob("??/*.parquet"))
    if len(files) != len(tiles):
        raise SystemExit(f"{catalog}: {len(files)} tile files, not {len(tiles)}; give an empty --folder")
    results.about["mib_of_tiles"] = round(sum(Path(file).stat().st_size for file in files) / 2**20)

    for exports in (True, False):
        shutil.rmtree(catalog / "releases", ignore_errors=True)
        (catalog / "CURRENT").unlink(missing_ok=True)
        name = "build a release" + (", exports too" if exports else "")
        first = results.step(name, build, catalog, arguments.workers, exports)
    results.about["partitions"] = first["partitions"]
    place = (tiles[0].ra + tiles[0].width / 2, tiles[0].dec + PATCH_SIDE / 2, object_id(tiles[-1], 0))
    results.ask("morphcat", ask_release, catalog, *place)
    results.step("audit", audit, catalog, False)
    results.step("audit --quick", audit, catalog, True)
    if not arguments.skip_peers:
        ask_peers(results, arguments, folder, files, place)
    patched = tiles[:: -(-len(tiles) // REPLACED)]
    differing = replace_tiles(catalog, patched)
    second = results.step("build after the patch", build, catalog, arguments.workers, False)
    results.step("check of the patch", check_patch, catalog, first["release"], second["release"], patched, differing)


def ask_peers(
    results: Results, arguments: argparse.Namespace, folder: Path, files: Sequence[str], place: tuple[float, float, int]
) -> None:
    """Everything that others do with the same rows."""
    from catalogs.query.sql import find_release

    results.ask("DuckDB on the tile files", ask_tiles, files, *place)
    layout = find_release(folder / "catalog")[1]
    results.ask("LSDB on the release", ask_lsdb, layout.collection, *place, True)
    count = alone(fine_partitions, folder / "catalog", folder / "fine").result
    fine = f"LSDB on {count} partitions of order 5"
    results.ask(fine, ask_lsdb, folder / "fine" / "morphology" / "morphology", *place, False)
    results.remarks.append(
        "LSDB opens HATS catalogues only, not tile files; order 5 is the HATS layout nearest to one file per tile."
    )
    for at_once in arguments.files_at_once:
        name = f"hats-import, {at_once} files a task"
        built = results.step(name, hats_import, files, folder / "hats-import", max(arguments.workers, 1), at_once)
        if built["rows"] != arguments.rows:
            results.remarks.append(f"{name}: {built['rows']} rows instead of {arguments.rows}")


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured where."""
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return {
        "rows": arguments.rows,
        "tiles": arguments.tiles,
        "mib_of_tiles": None,
        "partitions": None,
        "simulated": True,
        "workers": arguments.workers,
        "day": datetime.now(UTC).date().isoformat(),
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def page(results: Results) -> str:
    """The results as Markdown."""
    facts, told = results.about, ", ".join(f"{name} {v}" for name, v in results.about["versions"].items())
    lines = [
        f"{facts['rows']:,} simulated rows in {facts['tiles']:,} tile files ({facts['mib_of_tiles']} MiB), "
        f"{facts['partitions']} partitions; {facts['cores']} cores of {facts['processor']}, {facts['memory_gib']} GiB, "
        f"{facts['workers'] or 'no'} workers, {facts['day']}; load before {facts['load_before']}. {told}.",
        "",
        "| step | seconds | peak memory, MiB | result |",
        "|---|---|---|---|",
    ]
    for name, step in results.steps.items():
        said = ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in step.result.items())
        lines.append(f"| {name} | {step.seconds:.1f} | {step.peak_mib:.0f} | {said} |")
    questions = ["open", "group by label", "cone", "id look-up"]
    lines += ["", f"Seconds, median of {REPEATS}; * asked once, for it takes over {PATIENCE:g} s.", ""]
    lines += [f"| asked | {' | '.join(questions)} |", "|---" * (len(questions) + 1) + "|"]
    for whom, asked in results.questions.items():
        cells = [f"{a.seconds:.3f}{'' if a.runs > 1 else '*'}" if (a := asked.get(q)) else "" for q in questions]
        lines.append(f"| {whom} | {' | '.join(cells)} |")
    remarks = [*results.remarks, *results.disagreements()]
    return "\n".join([*lines, "", *(f"* {remark}" for remark in remarks)])


def _plain(value: Any) -> str:
    """A value of a result in a table: seconds with one decimal, a list or mapping without its brackets."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=8_670_000)
    parser.add_argument("--tiles", type=int, default=4_608)
    parser.add_argument("--workers", type=int, default=2, help="processes that build, here and in hats-import; 0: none")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder when left out")
    parser.add_argument("--keep", action="store_true", help="leave everything in --folder")
    parser.add_argument("--skip-peers", action="store_true")
    parser.add_argument(
        "--files-at-once",
        type=int,
        nargs="+",
        default=[48],
        help="tile files a task of hats-import; several: one run of each",
    )
    parser.add_argument("--out", type=Path, help="JSON; the page goes beside it as .md")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="morphcat-catalog-"))).resolve()
    results, done = Results(about(arguments)), False
    try:
        measure(arguments, folder, results)
        done = True
    finally:  # a run that fails tells what it has measured
        report(results, arguments.out)
        if (done or not arguments.folder) and not arguments.keep:
            for made in ("catalog", "fine", "hats-import"):
                shutil.rmtree(folder / made, ignore_errors=True)
            if not arguments.folder:
                folder.rmdir()
    if results.disagreements():
        raise SystemExit("answers differ")


def report(results: Results, out: Path | None) -> None:
    """Print the page, and write it and the JSON."""
    text = page(results)
    print(text)
    if out:
        out.write_text(json.dumps(asdict(results), indent=1))
        out.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
