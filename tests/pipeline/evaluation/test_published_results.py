"""Published figures stand beside the configuration and the images that they belong to, and nowhere else."""

from __future__ import annotations

from pipeline.evaluation.published_results import TITLES, public_benchmark, published_accuracy, published_results


def test_the_numbers_of_the_paper() -> None:
    """Table of the paper as the specification gives it."""
    expected = {
        "galaxy10": [92.39, 94.86, 94.81],
        "cifar100": [87.65, 93.36, 89.38],
        "cifar10": [99.12, 98.93, 93.23],
        "tiny_imagenet": [86.86, 91.12, 92.98],
    }
    for benchmark, numbers in expected.items():
        assert [published_accuracy(benchmark, f"astroformer_{n}", "CCCT") for n in (3, 4, 5)] == numbers


def test_nobody_published_other_configurations() -> None:
    assert published_accuracy("galaxy10", "astroformer_4", "CCTT") is None
    assert published_accuracy("galaxy10", "astroformer_0", "CCCT") is None
    assert published_accuracy(None, "astroformer_4", "CCCT") is None


def test_which_images_are_the_benchmark() -> None:
    assert public_benchmark("galaxy10", 17_736, simulated=False) == "galaxy10"
    assert public_benchmark("galaxy10", 17_736, simulated=True) is None
    assert public_benchmark("galaxy10", 700, simulated=False) is None
    assert public_benchmark("pictures:0123", 17_736, simulated=False) is None
    assert public_benchmark("cifar10", 60_000, simulated=False) == "cifar10"


def test_every_figure_has_its_source_and_how_far_to_trust_it() -> None:
    table = published_results()
    assert (table.source != "").all() and (table.trust != "").all() and table.accuracy.between(50, 100).all()
    assert set(table.benchmark) == set(TITLES)
