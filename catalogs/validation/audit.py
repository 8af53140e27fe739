"""Audit: proof, from the files of a release and the committed tiles alone, that the catalogue is whole and consistent.

Every check looks at everything and is reported in one line. Partition files are read batch by batch in threads, so that
memory does not grow with the catalogue but for one pass over the object ids, which is bounded. Nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from catalogs.errors import CatalogError
from catalogs.paths import Partition, ReleaseLayout
from catalogs.releases.manifest import FileMismatch, verify_manifest
from catalogs.releases.registry import ReleaseInfo, current_release, layout_of, read_release
from catalogs.validation.findings import Findings
from catalogs.validation.partitions import PartitionScan, repeated_ids, scan_partition, total_tiles
from catalogs.validation.products import check_common_schema, check_counts, check_index, check_margin, read_margin
from catalogs.validation.provenance import (
    check_one_model,
    check_rows_of_tiles,
    check_store,
    check_tiles,
    class_slugs_of,
    read_tiles,
    runs_without_entry,
)

CHECKS = {
    "files": "every file is there, and has the checksum of the manifest",
    "ledger": "inputs of every tile add up, and so do tiles, quarantine and release.json",
    "tiles": "committed tiles and rows of the release are the same",
    "counts": "properties, partitions, partition files and release.json say the same number of rows",
    "schema": "every partition file has the columns of the contract",
    "metadata": "every partition file describes its columns (VOParquet)",
    "order": "rows are sorted and lie in their pixel",
    "positions": "_healpix_29 follows from ra, dec",
    "ids": "object ids are unique",
    "probabilities": "probabilities lie in 0 to 1 and sum to 1, or are 0",
    "labels": "label, confidence, gap and entropy follow from the probabilities",
    "certainty": "prediction sets, views and novelty are possible",
    "flags": "flags are declared; is_reliable follows",
    "model": "one model and one recipe",
    "margin": "the margin cache holds copies",
    "index": "the id index is complete",
}


@dataclass(frozen=True)
class AuditCheck:
    """The result of one check: `status` is ok, wrong or skipped; `wrong` counts mismatches, of which some are named."""

    name: str
    says: str
    status: str
    wrong: int = 0
    examples: tuple[str, ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class AuditReport:
    """What an audit found. `rows` and `tiles` is how much it looked at."""

    release: str
    rows: int
    tiles: int
    checks: tuple[AuditCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether no check found anything wrong. What was skipped did not find anything."""
        return all(check.status != "wrong" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {**asdict(self), "ok": self.ok}


def verify(layout: ReleaseLayout) -> list[FileMismatch]:
    """Files of a release that are missing, changed or unknown, by its manifest."""
    return verify_manifest(layout.root)


def audit(catalog: Path, release: str | None = None, *, quick: bool = False) -> AuditReport:
    """Check a release (the current one) against itself, the contract and the committed tiles.

    Parameters
    ----------
    quick : leave out what reads every byte of the release and every row of the tiles: checksums, and whether the rows
        of a tile, not only their number, are those of the release.

    Raises
    ------
    CatalogError : there is no such release, or its release.json or partition_info.csv cannot be read at all.
    """
    info = read_release(catalog, release) if release else current_release(catalog)
    if info is None:
        raise CatalogError(f"no release in {catalog} yet: run `morphcat survey` first")
    layout = layout_of(catalog, release or (catalog / "CURRENT").read_text().strip())
    findings, remarks = Findings(), dict[str, str]()
    partitions = _partitions(layout)
    tiles = read_tiles(layout, findings)
    across = check_tiles(layout, info, tiles, findings)
    check_one_model(info, tiles, findings)
    scans = _scan(catalog, layout, info, partitions, list(tiles), findings, remarks)
    unread = [scan for scan in scans if not scan.readable]
    held = total_tiles(scans)
    if unread:
        remarks["tiles"] = "rows not compared, for some partition files cannot be read"
    else:
        check_rows_of_tiles(tiles, across, held, findings)
    if tiles:
        remark = check_store(catalog, info, tiles, across, None if quick or unread else held, findings)
        remarks["tiles"] = remarks.get("tiles", "") or remark
    if quick:
        remarks["files"] = "skipped: checksums are not compared by a quick audit"
    else:
        for problem in verify(layout):
            findings.add("files", str(problem))
    rows = sum(scan.rows for scan in scans)
    return AuditReport(info.release, rows, len(tiles), tuple(_check(name, findings, remarks) for name in CHECKS))


def _partitions(layout: ReleaseLayout) -> list[Partition]:
    try:
        return layout.partitions()
    except (OSError, KeyError, ValueError) as error:
        raise CatalogError(
            f"{layout.primary / 'partition_info.csv'}: cannot be read ({error}); roll back to an older release"
        ) from error


def _scan(
    catalog: Path,
    layout: ReleaseLayout,
    info: ReleaseInfo,
    partitions: Sequence[Partition],
    tiles: Sequence[str],
    findings: Findings,
    remarks: dict[str, str],
) -> list[PartitionScan]:
    """Everything that is about rows: all partition files, and what hangs on them."""
    slugs = info.class_slugs or class_slugs_of(layout, catalog, info.model_id, tiles)
    check_counts(layout, info, partitions, findings)
    check_common_schema(layout, slugs, findings)
    margin = read_margin(layout, partitions, slugs, findings)
    nothing = np.empty(0, np.int64)
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # Arrow and NumPy let other threads run
        scans = list(
            threads.map(
                lambda n: scan_partition(layout, partitions[n], slugs, margin.wanted(n) if margin else nothing),
                range(len(partitions)),
            )
        )
    findings.merge([scan.findings for scan in scans])
    if margin:
        check_margin(margin, scans, findings)
    elif not layout.margin.is_dir():
        remarks["margin"] = "skipped: the release has none"
    if layout.index.is_dir():
        check_index(layout, scans, findings)
    else:
        remarks["index"] = "skipped: the release has none"
    _check_together(layout, info, scans, findings)
    return scans


def _check_together(
    layout: ReleaseLayout, info: ReleaseInfo, scans: Sequence[PartitionScan], findings: Findings
) -> None:
    """What only all partition files together can say."""
    readable = [scan for scan in scans if scan.readable]
    repeated, some = repeated_ids(layout, [scan.partition for scan in readable])
    if repeated:
        findings.add("ids", f"{repeated} object ids have several rows, such as {', '.join(map(str, some))}", repeated)
    models = set().union(*(scan.models for scan in readable))
    if models - {info.model_id}:
        findings.add("model", f"rows of {', '.join(sorted(models))}, but the release is of {info.model_id}")
    strangers = runs_without_entry(layout, set().union(*(scan.runs for scan in readable)))
    if strangers:
        findings.add("model", f"runs that runs.parquet does not know: {', '.join(sorted(strangers)[:3])}")
    if len(readable) == len(scans):
        counts = {name: sum(getattr(scan, name) for scan in scans) for name in ("rows", "classified", "simulated")}
        findings.expect("counts", "partition files", "rows", counts["rows"], info.objects)
        findings.expect("counts", "partition files", "classified", counts["classified"], info.classified)
        findings.expect("counts", "partition files", "simulated", counts["simulated"], info.simulated_objects)


def _check(name: str, findings: Findings, remarks: dict[str, str]) -> AuditCheck:
    wrong, remark = findings.counts.get(name, 0), remarks.get(name, "")
    status = "wrong" if wrong else "skipped" if remark.startswith("skipped") else "ok"
    return AuditCheck(name, CHECKS[name], status, wrong, tuple(findings.examples.get(name, ())), remark)
