"""The eight views are those of the square, and the same for every turned or mirrored copy."""

from __future__ import annotations

import pytest
import torch

from models.inference.ensemble import views_of


def test_there_are_eight_and_the_first_is_the_image() -> None:
    image = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    seen = list(views_of(image, 8))
    assert torch.equal(seen[0], image) and [torch.equal(v, image) for v in views_of(image, 1)] == [True]
    assert len({tuple(v.flatten().tolist()) for v in seen}) == 8
    for view in seen:  # only moved: each plane has the same values
        assert torch.equal(view.flatten(2).sort().values, image.flatten(2).sort().values)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_turned_or_mirrored_copy_has_the_same_views(turns: int, mirror: bool) -> None:
    image = torch.rand(1, 3, 6, 6)
    copy = image.rot90(turns, dims=(-2, -1))
    copy = copy.flip(-2) if mirror else copy

    def as_set(x: torch.Tensor) -> set[tuple[float, ...]]:
        return {tuple(view.flatten().tolist()) for view in views_of(x, 8)}

    assert as_set(copy) == as_set(image)


@pytest.mark.parametrize("views", [0, 2, 4, 16])
def test_other_numbers_are_refused(views: int) -> None:
    with pytest.raises(ValueError, match="1 view or 8"):
        list(views_of(torch.rand(1, 3, 4, 4), views))
