"""The ten morphology classes of Galaxy10 DECaLS, as a table of values.

This is the only place that names them. The lower packages (`models`, `catalogs`) must not import it: they receive class
names as values, through the model card.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MorphologyClass:
    """One class: its Galaxy10 id, published name, column-safe slug and number of images in Galaxy10 DECaLS."""

    id: int
    name: str
    slug: str
    galaxy10_count: int


GALAXY10_CLASSES: tuple[MorphologyClass, ...] = (
    MorphologyClass(0, "Disturbed", "disturbed", 1081),
    MorphologyClass(1, "Merging", "merging", 1853),
    MorphologyClass(2, "Round Smooth", "round_smooth", 2645),
    MorphologyClass(3, "In-between Round Smooth", "in_between_smooth", 2027),
    MorphologyClass(4, "Cigar Shaped Smooth", "cigar_smooth", 334),
    MorphologyClass(5, "Barred Spiral", "barred_spiral", 2043),
    MorphologyClass(6, "Unbarred Tight Spiral", "tight_spiral", 1829),
    MorphologyClass(7, "Unbarred Loose Spiral", "loose_spiral", 2628),
    MorphologyClass(8, "Edge-on without Bulge", "edge_on_no_bulge", 1423),
    MorphologyClass(9, "Edge-on with Bulge", "edge_on_bulge", 1873),
)

CLASS_SLUGS: tuple[str, ...] = tuple(c.slug for c in GALAXY10_CLASSES)
CLASS_NAMES: tuple[str, ...] = tuple(c.name for c in GALAXY10_CLASSES)
