"""From Galaxy Zoo vote fractions to one of the ten classes, or to none.

The rule walks down the decision tree of Galaxy Zoo DECaLS (Walmsley et al. 2022, arXiv 2102.08414) and takes an answer
only where a clear majority gave it; docs/labels.md says it in words. It is ours: the selection behind Galaxy10 DECaLS
was never published in full.
"""

from __future__ import annotations

from collections.abc import Mapping

from catalogs.labels.io import VoteRule

MAJORITY = 0.6  # share that an answer needs
ODD_MAJORITY = 0.5  # for merging and disturbed, which one question of four answers tells apart
ARTIFACT = 0.5  # share of votes for a star or an artifact from which there is nothing to label
LEAST_VOTES = 5  # on a question whose answer is used, where the table counts them

# Columns of the first two campaigns (DR1, DR2) and of the last (DR5) have other names for some answers.
_ANSWERS: dict[str, tuple[str, ...]] = {
    "smooth": ("smooth-or-featured_smooth",),
    "featured": ("smooth-or-featured_featured-or-disk",),
    "artifact": ("smooth-or-featured_artifact",),
    "round": ("how-rounded_round", "how-rounded_completely"),
    "in between": ("how-rounded_in-between",),
    "cigar": ("how-rounded_cigar-shaped",),
    "edge-on": ("disk-edge-on_yes",),
    "not edge-on": ("disk-edge-on_no",),
    "bulge": ("edge-on-bulge_rounded", "edge-on-bulge_boxy"),
    "no bulge": ("edge-on-bulge_none",),
    "bar": ("bar_strong", "bar_weak", "bar_yes"),
    "no bar": ("bar_no",),
    "arms": ("has-spiral-arms_yes",),
    "no arms": ("has-spiral-arms_no",),
    "tight": ("spiral-winding_tight",),
    "medium": ("spiral-winding_medium",),
    "loose": ("spiral-winding_loose",),
    "merging": ("merging_merger", "merging_both"),
    "disturbed": ("merging_major-disturbance", "merging_tidal-debris"),
}
_QUESTIONS = {column.partition("_")[0] for columns in _ANSWERS.values() for column in columns}


# Where each answer leads: to the next question, to a class (=), or to none of them.
_TREE: dict[str, dict[str, str]] = {
    "first": {"smooth": "rounded", "featured": "disk"},
    "rounded": {"round": "=round_smooth", "in between": "=in_between_smooth", "cigar": "=cigar_smooth"},
    "disk": {"edge-on": "edge", "not edge-on": "spiral"},
    "edge": {"bulge": "=edge_on_bulge", "no bulge": "=edge_on_no_bulge"},
    "spiral": {"arms": "barred", "no arms": ""},
    "barred": {"bar": "=barred_spiral", "no bar": "wound"},
    "wound": {"tight": "=tight_spiral", "loose": "=loose_spiral", "medium": ""},
}


def label_from_votes(fractions: Mapping[str, float]) -> tuple[str, str]:
    """The class that votes decide on, as a slug, and what it rests on; an empty slug and the reason where they do not.

    `fractions` are the columns of one row that have a value: `<question>_<answer>_fraction`, and
    `<question>_total-votes` where the table has them.
    """
    # The first question is put to everybody; who says artifact is asked nothing more.
    if problem := _too_few(fractions, "smooth"):
        return "", problem
    shares = {answer: _share(fractions, columns) for answer, columns in _ANSWERS.items()}
    given = {answer: share for answer, share in shares.items() if share is not None}
    if given.get("artifact", 0) >= ARTIFACT:
        return "", f"a star or an artifact ({given['artifact']:.2f})"
    return _odd(fractions, given) or _walk(fractions, given)


def _walk(fractions: Mapping[str, float], given: Mapping[str, float]) -> tuple[str, str]:
    """Down the tree, as long as clear majorities lead on."""
    step, path = "first", []
    while step and not step.startswith("="):
        answers = [answer for answer in _TREE[step] if answer in given]
        if not answers:
            return "", f"no votes on {' or '.join(_TREE[step])}"
        best = max(answers, key=lambda answer: given[answer])
        if problem := _too_few(fractions, best):
            return "", problem
        path.append(f"{best} {given[best]:.2f}")
        if given[best] < MAJORITY:
            return "", f"no clear majority: {', '.join(path)}"
        step = _TREE[step][best]
    return (step[1:], f"votes: {', '.join(path)}") if step else ("", f"none of the ten classes: {', '.join(path)}")


def _odd(fractions: Mapping[str, float], given: Mapping[str, float]) -> tuple[str, str] | None:
    """What the question on merging says; None if most see nothing odd, or were not asked."""
    for answer in ("merging", "disturbed"):
        share = given.get(answer, 0)
        if share >= ODD_MAJORITY:
            problem = _too_few(fractions, answer)
            return ("", problem) if problem else (answer, f"votes: {answer} {share:.2f}")
    merging, disturbed = given.get("merging", 0), given.get("disturbed", 0)
    if merging + disturbed >= ODD_MAJORITY:
        return "", f"merging or disturbed, undecided which: {merging:.2f} and {disturbed:.2f}"
    return None


def _share(fractions: Mapping[str, float], columns: tuple[str, ...]) -> float | None:
    """The sum of the answers that a row has; None if it has none of them."""
    given = [fractions[f"{column}_fraction"] for column in columns if f"{column}_fraction" in fractions]
    return sum(given) if given else None


def _too_few(fractions: Mapping[str, float], answer: str) -> str:
    """A sentence when too few people were asked, as far as the table tells; else nothing."""
    question = _ANSWERS[answer][0].partition("_")[0]
    votes = fractions.get(f"{question}_total-votes")
    if votes is None or votes >= LEAST_VOTES:
        return ""
    return f"{votes:g} votes on {question}, expected at least {LEAST_VOTES}"


GALAXY_ZOO_DECALS = VoteRule(
    frozenset(
        [f"{column}_fraction" for columns in _ANSWERS.values() for column in columns]
        + [f"{question}_total-votes" for question in _QUESTIONS]
    ),
    label_from_votes,
)
