"""Random views: shape, range, repeatable randomness, every image on its own, and switches that switch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.augment import build_augmentation, mixup, soft_targets

NONE: dict[str, Any] = {
    "rotate": False,
    "mirror": False,
    "zoom": 0.0,
    "shift": 0.0,
    "randaugment_ops": 0,
    "randaugment_magnitude": 9,
}
EACH: dict[str, dict[str, Any]] = {
    "rotate": {"rotate": True},
    "mirror": {"mirror": True},
    "zoom": {"zoom": 0.3},
    "shift": {"shift": 0.2},
    "randaugment": {"randaugment_ops": 2},
}


def same_images(count: int = 16, side: int = 32) -> Tensor:
    """One image without any symmetry, `count` times."""
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(5))
    return image.expand(count, 3, side, side).clone()


def augmented(images: Tensor, seed: int = 0, **settings: Any) -> Tensor:
    torch.manual_seed(seed)
    return build_augmentation(**{**NONE, **settings})(images)


def distinct(images: Tensor) -> int:
    return len({image.numpy().tobytes() for image in images})


def test_nothing_switched_on_changes_nothing() -> None:
    images = same_images()
    assert torch.equal(augmented(images), images)


@pytest.mark.parametrize("name", EACH)
def test_each_switch_changes_images_within_range_and_repeatably(name: str) -> None:
    images = same_images()
    found = augmented(images, **EACH[name])
    assert found.shape == images.shape and found.dtype == torch.float32
    assert found.isfinite().all() and float(found.min()) >= 0 and float(found.max()) <= 1
    assert not torch.equal(found, images)
    assert torch.equal(found, augmented(images, **EACH[name]))
    if name != "randaugment":  # which draws some operations for the whole batch
        assert not torch.equal(found, augmented(images, seed=1, **EACH[name]))


@pytest.mark.parametrize("name", ["rotate", "zoom", "shift"])
def test_every_image_gets_a_view_of_its_own(name: str) -> None:
    images = same_images(100)
    found = augmented(images, **EACH[name])
    changed = sum(not torch.equal(view, image) for view, image in zip(found, images, strict=True))
    assert 30 < changed < 70  # half of them
    assert distinct(found) == changed + 1


def test_mirror_gives_the_four_mirror_images() -> None:
    images = same_images(64)
    assert distinct(augmented(images, mirror=True)) == 4
    wanted = [images[0], images[0].flip(1), images[0].flip(2), images[0].flip(1, 2)]
    for view in augmented(images, mirror=True):
        assert any(torch.equal(view, image) for image in wanted)


def test_rotations_go_all_the_way_round() -> None:
    images = torch.zeros(200, 3, 33, 33)
    images[:, :, 14:19, 22:27] = 1.0  # a spot to the right of the centre
    axis = torch.arange(-16.0, 17)
    within = torch.hypot(axis, axis[:, None]) < 13  # the corners hold reflections
    spots = augmented(images, rotate=True)[:, 0] * within
    weight = spots / spots.sum((1, 2), keepdim=True)
    y = (weight.sum(2) * axis).sum(1)
    x = (weight.sum(1) * axis).sum(1)
    quadrants = torch.stack([x > 0, y > 0], 1).float()
    torch.testing.assert_close(torch.hypot(x, y), torch.full((200,), 8.0), atol=0.3, rtol=0)
    turned = quadrants[y.abs() > 0.2]
    assert 70 < len(turned) < 130  # half of them
    assert ((turned.mean(0) - 0.5).abs() < 0.2).all()


@pytest.mark.parametrize("magnitude", [1, 29])
def test_randaugment_takes_the_whole_range_of_its_setting(magnitude: int) -> None:
    found = augmented(same_images(4), randaugment_ops=3, randaugment_magnitude=magnitude)
    assert found.isfinite().all() and float(found.min()) >= 0 and float(found.max()) <= 1


def test_soft_targets_spread_the_smoothing_over_all_classes() -> None:
    found = soft_targets(torch.tensor([2, 0]), 4, 0.2)
    torch.testing.assert_close(found, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    assert torch.equal(soft_targets(torch.tensor([1]), 3, 0.0), torch.tensor([[0.0, 1.0, 0.0]]))


def test_mixup_blends_images_and_targets_alike() -> None:
    """Images that are their own one-hot target must stay so."""
    targets = soft_targets(torch.arange(8), 8, 0.0)
    images = targets.view(8, 8, 1, 1).repeat(1, 1, 2, 2)
    changed = 0
    for seed in range(5):
        torch.manual_seed(seed)
        mixed, mixed_targets = mixup(images, targets, alpha=0.8)
        torch.testing.assert_close(mixed[:, :, 0, 0], mixed_targets)
        torch.testing.assert_close(mixed_targets.sum(1), torch.ones(8))
        assert (mixed_targets >= 0).all()
        changed += not torch.equal(mixed, images)
    assert changed >= 4


def test_mixup_is_off_at_zero() -> None:
    images, targets = same_images(4), torch.eye(4)
    mixed, mixed_targets = mixup(images, targets, alpha=0.0)
    assert mixed is images and mixed_targets is targets
