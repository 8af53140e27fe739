"""Views of an image at inference: the four right-angle rotations and their mirror images, all exact.

Galaxies have no up. These eight are all symmetries of a square grid, so that nothing is resampled and the eight views
of an image are the eight views of any of its turned or mirrored copies, in another order.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def views_of(images: Tensor, views: int) -> Iterator[Tensor]:
    """The first `views` (1 or 8) views of images (N, C, S, S), each of that shape and type; the first is the images.

    Raises
    ------
    ValueError : another number of views: their mean would depend on how the camera was held.
    """
    if views not in (1, 8):
        raise ValueError(f"expected 1 view or 8, found {views}")
    for number in range(views):
        turned = images.rot90(number % 4, dims=(-2, -1))
        yield turned.flip(-1) if number >= 4 else turned
