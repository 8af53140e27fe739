"""Random views of a training batch, made on the device of the batch.

Galaxies have no up, so rotations by any angle and mirror images are the natural augmentation; RandAugment (Cubuk et
al. 2020), mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) are there for the paper's recipe. What happens to a
batch is drawn for the whole batch from one generator (`draw_augmentation`), apart from doing it
(`AugmentationPlan.apply`): processes that train together, each with a slice of the batch, do to their images what a
single process would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import kornia.enhance as E
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.training.config import LoopSettings

_RESAMPLED = 0.5  # share of images rotated, zoomed and moved; the others keep unblurred pixels, as in inference
_STRONGEST = 30  # magnitude at which RandAugment's operations reach the end of their range
_GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601


@dataclass(frozen=True)
class AugmentationPlan:
    """What happens to each image of a batch of B, as arrays on the CPU.

    Attributes
    ----------
    mirrored : bool (3, B): at the vertical axis, the horizontal axis, the diagonal.
    affine : float32 (B, 2, 3), from places in the view to places in the image, in units of half a side.
    resampled : bool (B,), whether `affine` is applied.
    operations, strengths : int64, float32 (layers, B): RandAugment's operations and their signed strengths, −1 to 1.
    kept : share of each image that stays, the rest comes from its partner (the other one of the pair 2k, 2k + 1).
    box : None for mixup; for CutMix the partner's box (top, bottom, left, right) in fractions of the side.
    """

    mirrored: np.ndarray
    affine: np.ndarray
    resampled: np.ndarray
    operations: np.ndarray
    strengths: np.ndarray
    kept: float = 1.0
    box: tuple[float, float, float, float] | None = None

    def part(self, rows: slice) -> AugmentationPlan:
        """The same for a slice of the batch; mixing needs slices that do not part a pair."""
        return replace(
            self,
            mirrored=self.mirrored[:, rows],
            affine=self.affine[rows],
            resampled=self.resampled[rows],
            operations=self.operations[:, rows],
            strengths=self.strengths[:, rows],
        )

    def apply(self, images: Tensor) -> Tensor:
        """Views float32 (B, 3, S, S) of images in 0…1, before mixing."""
        for axes, chosen in zip(((3,), (2,), None), self.mirrored, strict=True):
            where = torch.from_numpy(chosen).to(images.device).view(-1, 1, 1, 1)
            images = torch.where(where, images.mT if axes is None else images.flip(axes), images)
        images = _changed(images, self.resampled, lambda part, rows: _warp(part, self.affine[rows]))
        for layer, strengths in zip(self.operations, self.strengths, strict=True):
            for number, operation in enumerate(RANDAUGMENT.values()):
                images = _changed(images, layer == number, lambda part, rows: operation(part, strengths[rows]))  # noqa: B023
        return images

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Blend images (B, 3, S, S) and targets (B, C) with those of their partners."""
        if self.kept == 1.0:
            return images, targets
        kept, side, partners = self.kept, images.shape[-1], _partners(images)
        if self.box is None:
            images = torch.lerp(partners, images, kept)
        else:
            top, bottom, left, right = (round(edge * side) for edge in self.box)
            images = images.clone()
            images[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
            kept = 1 - (bottom - top) * (right - left) / side**2  # in whole pixels
        return images, torch.lerp(_partners(targets), targets, kept)


def draw_augmentation(settings: LoopSettings, batch: int, rng: np.random.Generator) -> AugmentationPlan:
    """Draw what happens to a batch of an even number of images."""
    mirrored = rng.random((3, batch)) < (0.5 if settings.mirror else 0.0)
    layers = (settings.randaugment_ops, batch)
    operations = rng.integers(len(RANDAUGMENT), size=layers)
    strengths = rng.choice([-1.0, 1.0], size=layers) * settings.randaugment_magnitude / _STRONGEST
    some = bool(settings.rotate or settings.zoom or settings.shift)
    kept, box = _draw_mixing(settings, rng)
    return AugmentationPlan(
        mirrored=mirrored,
        affine=_draw_affine(settings, batch, rng),
        resampled=rng.random(batch) < (_RESAMPLED if some else 0.0),
        operations=operations,
        strengths=strengths.astype(np.float32),
        kept=kept,
        box=box,
    )


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels int64 (N,) to target probabilities float32 (N, C) with label smoothing (Szegedy et al. 2016)."""
    targets = F.one_hot(labels, num_classes).float()
    return targets * (1 - smoothing) + smoothing / num_classes


def _draw_affine(settings: LoopSettings, batch: int, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(-math.pi, math.pi, batch) * settings.rotate
    zoom = 1 + settings.zoom * rng.uniform(-1, 1, batch)
    moved = 2 * settings.shift * rng.uniform(-1, 1, (batch, 2))  # the side is 2 in these units
    return _matrices(np.cos(angle) / zoom, -np.sin(angle) / zoom, np.sin(angle) / zoom, np.cos(angle) / zoom, moved)


def _matrices(xx: np.ndarray, xy: np.ndarray, yx: np.ndarray, yy: np.ndarray, moved: np.ndarray) -> np.ndarray:
    linear = np.stack([np.stack([xx, xy], axis=-1), np.stack([yx, yy], axis=-1)], axis=-2)
    return np.concatenate([linear, moved[..., None]], axis=-1).astype(np.float32)


def _draw_mixing(
    settings: LoopSettings, rng: np.random.Generator
) -> tuple[float, tuple[float, float, float, float] | None]:
    """The share that stays and CutMix's box; with both kinds of mixing on, each comes in half of the batches."""
    cut = bool(settings.cutmix) and (not settings.mixup or rng.random() < 0.5)
    alpha = settings.cutmix if cut else settings.mixup
    if not alpha:
        return 1.0, None
    kept = float(rng.beta(alpha, alpha))
    if not cut:
        return kept, None
    half = math.sqrt(1 - kept) / 2
    y, x = rng.random(2)
    box = (max(0.0, y - half), min(1.0, y + half), max(0.0, x - half), min(1.0, x + half))
    return 1 - (box[1] - box[0]) * (box[3] - box[2]), box


def _partners(values: Tensor) -> Tensor:
    """(B, …) with the two of each pair 2k, 2k + 1 exchanged."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _changed(images: Tensor, chosen: np.ndarray, change: Callable[[Tensor, np.ndarray], Tensor]) -> Tensor:
    """Images of which those `chosen` (bool (B,), on the CPU: nothing waits for the device) went through `change`."""
    rows = np.flatnonzero(chosen)
    if len(rows) == 0:
        return images
    index = torch.from_numpy(rows).to(images.device)
    return images.index_copy(0, index, change(images[index], rows).to(images.dtype))


def _warp(images: Tensor, affine: np.ndarray) -> Tensor:
    """Resample each image by its matrix (B, 2, 3); what lies outside is the image reflected."""
    matrices = torch.from_numpy(affine).to(images.device)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


# --- RandAugment: each operation takes images in 0…1 and signed strengths float32 (B,), −1 to 1 -----------------------


def _blended(images: Tensor, other: Tensor, strengths: np.ndarray) -> Tensor:
    """Away from `other` for a positive strength, towards it for a negative one, by up to 0.9."""
    factor = torch.from_numpy(1 + 0.9 * strengths).to(images.device).view(-1, 1, 1, 1)
    return torch.lerp(other, images, factor).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor(_GREY, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)  # (B, 1, S, S)


def _autocontrast(images: Tensor, strengths: np.ndarray) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)


def _colour(images: Tensor, strengths: np.ndarray) -> Tensor:
    return _blended(images, _grey(images).expand_as(images), strengths)


def _contrast(images: Tensor, strengths: np.ndarray) -> Tensor:
    return _blended(images, _grey(images).mean((2, 3), keepdim=True).expand_as(images), strengths)


def _brightness(images: Tensor, strengths: np.ndarray) -> Tensor:
    return _blended(images, torch.zeros_like(images), strengths)


def _sharpness(images: Tensor, strengths: np.ndarray) -> Tensor:
    return E.sharpness(images, torch.from_numpy(1 + 0.9 * strengths).to(images.device))


def _posterize(images: Tensor, strengths: np.ndarray) -> Tensor:
    return E.posterize(images, torch.from_numpy(np.round(8 - 4 * np.abs(strengths)).astype(np.int64)))


def _solarize(images: Tensor, strengths: np.ndarray) -> Tensor:
    return E.solarize(images, torch.from_numpy(1 - np.abs(strengths)).to(images.device))


def _rotate(images: Tensor, strengths: np.ndarray) -> Tensor:
    angle = np.radians(30) * strengths
    nothing = np.zeros((len(angle), 2))
    return _warp(images, _matrices(np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle), nothing))


def _sheared(x: float, y: float) -> Callable[[Tensor, np.ndarray], Tensor]:
    def shear(images: Tensor, strengths: np.ndarray) -> Tensor:
        one, nothing = np.ones_like(strengths), np.zeros((len(strengths), 2))
        return _warp(images, _matrices(one, x * strengths, y * strengths, one, nothing))

    return shear


def _moved(x: float, y: float) -> Callable[[Tensor, np.ndarray], Tensor]:
    def move(images: Tensor, strengths: np.ndarray) -> Tensor:
        one, zero = np.ones_like(strengths), np.zeros_like(strengths)
        by = np.stack([2 * x * strengths, 2 * y * strengths], axis=1)
        return _warp(images, _matrices(one, zero, zero, one, by))

    return move


RANDAUGMENT: dict[str, Callable[[Tensor, np.ndarray], Tensor]] = {
    "identity": lambda images, strengths: images,
    "autocontrast": _autocontrast,
    "equalize": lambda images, strengths: E.equalize(images),
    "rotate": _rotate,
    "solarize": _solarize,
    "colour": _colour,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _sheared(0.3, 0.0),
    "shear_y": _sheared(0.0, 0.3),
    "translate_x": _moved(0.45, 0.0),
    "translate_y": _moved(0.0, 0.45),
}
"""The fourteen operations of Cubuk et al. 2020 with their ranges; all rows have the strength drawn for them."""
