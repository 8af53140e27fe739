"""Random views: every image on its own, switches that switch, exact mirror images, RandAugment one by one, mixing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor

from models.training.augmentation import RANDAUGMENT, AugmentationPlan, draw_augmentation, soft_targets
from models.training.config import LoopSettings

NOTHING = LoopSettings(mixup=0.0, rotate=False, mirror=False, zoom=0.0, shift=0.0)
EACH: dict[str, dict[str, Any]] = {
    "rotate": {"rotate": True},
    "mirror": {"mirror": True},
    "zoom": {"zoom": 0.3},
    "shift": {"shift": 0.2},
    "randaugment": {"randaugment_ops": 2},
}
UNCHANGED_AT_ZERO = set(RANDAUGMENT) - {"autocontrast", "equalize", "solarize"}


def drawn(batch: int, seed: int = 0, **values: Any) -> AugmentationPlan:
    settings = LoopSettings(**{**NOTHING.model_dump(by_alias=False), **values})
    return draw_augmentation(settings, batch, np.random.default_rng(seed))


def same_images(count: int = 16, side: int = 32) -> Tensor:
    """One image without any symmetry, `count` times."""
    return different_images(1, side).expand(count, 3, side, side).clone()


def different_images(count: int, side: int = 32) -> Tensor:
    """Images of 256 grey levels, as they come from uint8."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator).float() / 255


def augmented(images: Tensor, seed: int = 0, **values: Any) -> Tensor:
    return drawn(len(images), seed, **values).apply(images)


def distinct(images: Tensor) -> int:
    return len({image.numpy().tobytes() for image in images})


def moved_by(matrix: list[list[float]], images: Tensor) -> Tensor:
    """Views of which every one has the same affine matrix."""
    count = len(images)
    affine = np.tile(np.array(matrix, dtype=np.float32), (count, 1, 1))
    nothing = np.zeros((0, count), dtype=np.int64)
    views = AugmentationPlan(
        np.zeros((3, count), bool), affine, np.ones(count, bool), nothing, nothing.astype(np.float32)
    )
    return views.apply(images)


# --- mirror images, rotation, zoom, shift -------------------------------------------------------------------------


def test_nothing_switched_on_changes_nothing() -> None:
    images, targets = same_images(), torch.eye(16)
    assert torch.equal(augmented(images), images)
    mixed, mixed_targets = drawn(16).mix(images, targets)
    assert mixed is images and mixed_targets is targets


@pytest.mark.parametrize("name", EACH)
def test_each_switch_changes_images_within_range_and_repeatably(name: str) -> None:
    images = same_images()
    found = augmented(images, **EACH[name])
    assert found.shape == images.shape and found.dtype == torch.float32
    assert found.isfinite().all() and float(found.min()) >= 0 and float(found.max()) <= 1
    assert not torch.equal(found, images)
    assert torch.equal(found, augmented(images, **EACH[name]))
    assert not torch.equal(found, augmented(images, seed=1, **EACH[name]))


@pytest.mark.parametrize("name", ["rotate", "zoom", "shift"])
def test_every_image_gets_a_view_of_its_own(name: str) -> None:
    images = same_images(100)
    found = augmented(images, **EACH[name])
    changed = sum(not torch.equal(view, image) for view, image in zip(found, images, strict=True))
    assert 30 < changed < 70  # half of them
    assert distinct(found) == changed + 1


def test_mirror_gives_the_eight_mirror_images_exactly() -> None:
    images = same_images(128)
    found = augmented(images, mirror=True)
    turned = [images[0].rot90(quarter, (1, 2)) for quarter in range(4)]
    wanted = torch.stack([*turned, *(image.flip(2) for image in turned)])
    counts = [sum(torch.equal(view, image) for view in found) for image in wanted]
    assert sum(counts) == 128 and min(counts) >= 4  # 16 are expected of each


@pytest.mark.parametrize("side", [32, 33])
def test_a_quarter_turn_is_rot90(side: int) -> None:
    """The matrix leads from the view to the image: this one turns the view anticlockwise, as torch.rot90 does."""
    images = different_images(3, side)
    turned = moved_by([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], images)
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_a_shift_by_whole_pixels_moves_pixels() -> None:
    images = different_images(2)
    moved = moved_by([[1.0, 0.0, 2 * 3 / 32], [0.0, 1.0, 0.0]], images)  # the side is 2
    torch.testing.assert_close(moved[..., :-3], images[..., 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., -3:], images[..., -3:].flip(3), atol=1e-5, rtol=0)  # reflected


@pytest.mark.parametrize(
    ("values", "zoom", "shift"), [({"zoom": 0.3}, 0.3, 0.0), ({"shift": 0.2}, 0.0, 0.2), ({"rotate": True}, 0.0, 0.0)]
)
def test_matrices_stay_within_the_ranges_of_the_settings(values: dict[str, Any], zoom: float, shift: float) -> None:
    matrices = drawn(4000, **values).affine.astype(np.float64)
    linear, moved = matrices[:, :, :2], matrices[:, :, 2]
    magnified = 1 / np.sqrt(np.linalg.det(linear))
    conformal = linear @ linear.transpose(0, 2, 1) * magnified[:, None, None] ** 2
    np.testing.assert_allclose(conformal, np.broadcast_to(np.eye(2), (4000, 2, 2)), atol=1e-5)  # no shear
    assert magnified.min() == pytest.approx(1 - zoom, abs=0.01) and magnified.max() == pytest.approx(1 + zoom, abs=0.01)
    assert moved.min() == pytest.approx(-2 * shift, abs=0.01) and moved.max() == pytest.approx(2 * shift, abs=0.01)


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


@given(half=st.integers(1, 10), cut=st.integers(0, 10), seed=st.integers(0, 1000))
@hypothesis_settings(max_examples=25, deadline=None)
def test_a_slice_of_a_batch_becomes_what_it_does_within_the_batch(half: int, cut: int, seed: int) -> None:
    """Whole pairs on both sides: each process makes of its images what one process would."""
    values = {"rotate": True, "mirror": True, "zoom": 0.2, "randaugment_ops": 2, "mixup": 0.5, "cutmix": 0.5}
    batch, edge = 2 * half, 2 * min(cut, half)
    images, targets = different_images(batch, 16), soft_targets(torch.arange(batch) % 4, 4, 0.1)
    views = drawn(batch, seed, **values)
    whole, whole_targets = views.mix(views.apply(images), targets)
    for rows in (slice(0, edge), slice(edge, batch)):
        part = views.part(rows)
        found, found_targets = part.mix(part.apply(images[rows]), targets[rows])
        torch.testing.assert_close(found, whole[rows], atol=1e-6, rtol=0)
        assert torch.equal(found_targets, whole_targets[rows])


# --- RandAugment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [-1.0, -1 / 30, 1 / 30, 1.0])
@pytest.mark.parametrize("name", RANDAUGMENT)
def test_an_operation_stays_in_range_and_looks_at_one_image_at_a_time(name: str, strength: float) -> None:
    images = torch.cat([different_images(4), torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    images[1] = 0.3 + images[1] / 10
    strengths = np.array([strength, -strength, strength / 2, strength, strength, strength], dtype=np.float32)
    found = RANDAUGMENT[name](images, strengths)
    assert found.dtype == torch.float32 and found.shape == images.shape
    assert found.isfinite().all() and float(found.min()) >= 0 and float(found.max()) <= 1
    for row in range(len(images)):
        alone = RANDAUGMENT[name](images[row : row + 1], strengths[row : row + 1])
        torch.testing.assert_close(alone[0], found[row], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", RANDAUGMENT)
def test_an_operation_follows_its_strength(name: str) -> None:
    slope = torch.linspace(0, 0.4, 32)
    images = 0.1 + slope + slope[:, None] / 2 + 0.1 * same_images(3)  # 0.1 to 0.8; farther off is more different
    images[:, :, 0, 0] = 0.9  # something bright for solarize
    zero, weak, strong = RANDAUGMENT[name](images, np.array([0, 0.2, 1], dtype=np.float32))
    assert torch.allclose(zero, images[0], atol=1e-6) == (name in UNCHANGED_AT_ZERO | {"solarize"})
    distances = [(view - images[0]).abs().mean() for view in (weak, strong)]
    if name in ("autocontrast", "equalize", "identity"):
        assert distances[0] == distances[1]  # they know no strength
    else:
        assert 0 < distances[0] < distances[1]


def grey_levels(images: Tensor) -> np.ndarray:
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_operations_on_grey_levels_are_those_of_pillow() -> None:
    images = different_images(4)
    images[1] = (images[1] * 51).round() / 255  # dark
    full, half = np.ones(4, dtype=np.float32), np.full(4, 0.5, dtype=np.float32)
    pillow = [Image.fromarray(image) for image in grey_levels(images)]

    def compare(name: str, strengths: np.ndarray, wanted: list[Image.Image], tolerance: int = 0) -> None:
        found = grey_levels(RANDAUGMENT[name](images, strengths)).astype(int)
        assert np.abs(found - np.stack([np.asarray(image) for image in wanted])).max() <= tolerance

    compare("posterize", full, [ImageOps.posterize(image, 4) for image in pillow])
    compare("posterize", half, [ImageOps.posterize(image, 6) for image in pillow])
    compare("solarize", half, [ImageOps.solarize(image, 128) for image in pillow])
    compare("equalize", full, [ImageOps.equalize(image) for image in pillow])
    compare("autocontrast", full, [ImageOps.autocontrast(image) for image in pillow], tolerance=1)


def test_strengths_have_both_signs_and_the_size_of_the_setting() -> None:
    views = drawn(500, randaugment_ops=3, randaugment_magnitude=12)
    assert views.operations.shape == views.strengths.shape == (3, 500)
    assert views.strengths.dtype == np.float32 and set(np.unique(views.strengths)) == {
        np.float32(-0.4),
        np.float32(0.4),
    }
    counts = np.bincount(views.operations.ravel(), minlength=len(RANDAUGMENT))
    assert len(counts) == 14 and counts.min() > 60  # 107 are expected of each


@pytest.mark.parametrize("magnitude", [1, 30])
def test_randaugment_takes_the_whole_range_of_its_setting(magnitude: int) -> None:
    found = augmented(same_images(40), randaugment_ops=3, randaugment_magnitude=magnitude)
    assert found.isfinite().all() and float(found.min()) >= 0 and float(found.max()) <= 1


# --- targets, mixup, CutMix ----------------------------------------------------------------------------------------


def test_soft_targets_spread_the_smoothing_over_all_classes() -> None:
    found = soft_targets(torch.tensor([2, 0]), 4, 0.2)
    torch.testing.assert_close(found, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    assert torch.equal(soft_targets(torch.tensor([1]), 3, 0.0), torch.tensor([[0.0, 1.0, 0.0]]))


def own_targets(side: int) -> tuple[Tensor, Tensor]:
    """Images of eight channels that show their own one-hot target everywhere, and the targets."""
    targets = soft_targets(torch.arange(8), 8, 0.0)
    return targets.view(8, 8, 1, 1).repeat(1, 1, side, side), targets


def test_mixup_blends_images_and_targets_alike() -> None:
    images, targets = own_targets(2)
    for seed in range(5):
        views = drawn(8, seed, mixup=0.8)
        mixed, mixed_targets = views.mix(images, targets)
        assert views.box is None and 0 < views.kept < 1
        torch.testing.assert_close(mixed, mixed_targets.view(8, 8, 1, 1).expand(8, 8, 2, 2))
        partner = torch.arange(8).view(4, 2).flip(1).flatten()
        wanted = views.kept * targets + (1 - views.kept) * targets[partner]
        torch.testing.assert_close(mixed_targets, wanted)


@pytest.mark.parametrize("side", [16, 33])
def test_cutmix_targets_are_the_shares_of_the_pixels(side: int) -> None:
    images, targets = own_targets(side)
    cut = 0
    for seed in range(30):
        mixed, mixed_targets = drawn(8, seed, cutmix=1.0).mix(images, targets)
        assert set(mixed.unique().tolist()) <= {0.0, 1.0}  # pasted, not blended
        torch.testing.assert_close(mixed_targets, mixed.mean((2, 3)), atol=1e-6, rtol=1e-5)
        cut += not torch.equal(mixed, images)
    assert cut > 20


def test_the_box_of_cutmix_has_the_drawn_share_and_lies_within_the_image() -> None:
    shares = []
    for seed in range(300):
        views = drawn(2, seed, cutmix=1.0)
        assert views.box is not None
        top, bottom, left, right = views.box
        assert 0 <= top <= bottom <= 1 and 0 <= left <= right <= 1
        assert (bottom - top) * (right - left) == pytest.approx(1 - views.kept, abs=1e-12)
        if top > 0 and bottom < 1 and left > 0 and right < 1:
            assert bottom - top == pytest.approx(right - left)  # a square, unless an edge cuts it
        shares.append(1 - views.kept)
    assert 0.1 < float(np.mean(shares)) < 0.5 and max(shares) > 0.7  # uniform from 0 to 1 before edges cut


def test_mixup_follows_its_beta_distribution_and_shares_batches_with_cutmix() -> None:
    kept = [drawn(2, seed, mixup=0.2).kept for seed in range(1000)]
    assert float(np.mean(kept)) == pytest.approx(0.5, abs=0.05)
    assert float(np.var(kept)) == pytest.approx(0.25 / (2 * 0.2 + 1), abs=0.02)  # of Beta(a, a): 1 / (4 (2a + 1))
    boxes = [drawn(2, seed, mixup=0.2, cutmix=1.0).box is not None for seed in range(300)]
    assert math.isclose(sum(boxes) / 300, 0.5, abs_tol=0.1)
