"""Units of `benchmarks/overhead.py` that do next to nothing; in a module, for functions sent to workers need one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from catalogs.schema import arrow_schema
from catalogs.tiles import TileMetadata, commit

MODEL = "nothing-0000"
SLUGS = ["disturbed", "merging", "round", "in_between", "cigar", "barred", "tight", "loose", "edge_on", "edge_on_bulge"]


@dataclass(frozen=True)
class EmptyJob:
    """A job of the size of a real one: a number, and the catalogue to which an empty tile is committed."""

    number: int
    catalog: str

    @property
    def name(self) -> str:
        return f"empty-{self.number:05d}"


def do_nothing(job: EmptyJob) -> str:
    """The receipt of a unit without work."""
    return job.name


def commit_nothing(job: EmptyJob) -> str:
    """Commit a tile without rows, as a tile in which nothing can be used does: written, synced, read back, renamed."""
    stamp = TileMetadata(
        tile_id=job.name,
        source=job.name,
        fingerprint=job.name,
        model_id=MODEL,
        recipe_digest="nothing",
        run_id="overhead",
        class_slugs=SLUGS,
        classified=0,
        unclassified=0,
        found=0,
    )
    commit(Path(job.catalog), arrow_schema(SLUGS).empty_table(), stamp)
    return job.name
