"""What a release asks of those who use it: how to name it, whom to cite, what to be careful about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_ACKNOWLEDGEMENT = "https://www.legacysurvey.org/acknowledgment/"


@dataclass(frozen=True)
class _Paper:
    """A paper and what of it is in the catalogue."""

    reference: str
    link: str
    why: str


_PAPERS = (
    _Paper(
        "Dey A. et al. 2019, AJ 157, 168",
        "https://doi.org/10.3847/1538-3881/ab089d",
        "the DESI Legacy Imaging Surveys, whose images are classified",
    ),
    _Paper(
        "Walmsley M. et al. 2022, MNRAS 509, 3966",
        "https://doi.org/10.1093/mnras/stab2093",
        "Galaxy Zoo DECaLS, the votes of volunteers behind the labels that models are trained on",
    ),
    _Paper(
        "Walmsley M. et al. 2023, MNRAS 526, 4768",
        "https://doi.org/10.1093/mnras/stad2919",
        "Galaxy Zoo DESI, morphology of 8.67 million galaxies of these surveys, to compare with",
    ),
    _Paper(
        "Leung H. W., Bovy J. 2019, MNRAS 483, 3255",
        "https://doi.org/10.1093/mnras/sty3217",
        "astroNN, with which Galaxy10 DECaLS, the labelled images and their ten classes, is distributed "
        "(https://github.com/henrysky/Galaxy10)",
    ),
    _Paper(
        "Dagli R. 2023, arXiv:2304.05350",
        "https://arxiv.org/abs/2304.05350",
        "Astroformer, the network",
    ),
)


def citation(info: Mapping[str, str]) -> str:
    """The text of CITATION.txt: from `release`, `model_id`, and, where they are there, `created`, `objects` and
    `simulated_objects`.

    A release with simulated objects says so first.
    """
    made = f", made {info['created']}" if "created" in info else ""
    cite = [f"* {paper.reference}\n  {paper.link}\n  {paper.why}" for paper in _PAPERS]
    parts = [
        f"Morphology catalogue {info['release']} by model {info['model_id']}{made}",
        simulated_warning(info),
        "Name the release and the model, as above, wherever you use the catalogue: both determine its labels.",
        "Cite what it rests on, as far as it applies (the model's card says what it was trained on, and with which\n"
        "network):",
        "\n".join(cite),
        "Whoever publishes results from images of the Legacy Surveys is asked to print the acknowledgement of the\n"
        f"surveys, which names the telescopes, archives and funding agencies: {_ACKNOWLEDGEMENT}\n"
        "Galaxy Zoo owes its classifications to its volunteers; please thank them too.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def simulated_warning(info: Mapping[str, str]) -> str:
    """A sentence of warning where objects are simulated, empty if none is."""
    simulated = int(info.get("simulated_objects", "0"))
    if not simulated:
        return ""
    return (
        f"WARNING: {simulated} of {info.get('objects', 'its')} objects are simulated (`survey_layer` says which). "
        "They say nothing about real galaxies."
    )
