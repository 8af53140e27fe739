"""Random views of a training batch, made on the device of the batch.

Galaxies have no up, so rotations by any angle and mirror images are the natural augmentation; RandAugment and mixup
are the paper's. The transforms are kornia's; mixup is four lines and stands here. Randomness comes from torch's
global generator, which the training loop seeds for each epoch.
"""

from __future__ import annotations

import kornia.augmentation as K
import torch
from kornia.augmentation.auto import RandAugment
from torch import Tensor, nn
from torch.nn import functional as F

_SHARE = 0.5  # of images that are rotated, zoomed and moved; the others keep unblurred pixels, as in inference


def build_augmentation(
    *, rotate: bool, mirror: bool, zoom: float, shift: float, randaugment_ops: int, randaugment_magnitude: int
) -> nn.Module:
    """A module from float32 (N, 3, S, S) in 0…1 to the same shape, each image transformed on its own.

    Parameters
    ----------
    rotate, mirror : rotate by any angle; mirror at both axes.
    zoom, shift : magnify by up to ±`zoom` (fraction); move by up to ±`shift` (fraction of the side).
        Rotation, zoom and shift are one resampling, of half of the images.
    randaugment_ops, randaugment_magnitude : number of RandAugment operations a batch (0: none), their strength (1 to
        29).
    """
    steps: list[nn.Module] = []
    if mirror:
        steps += [K.RandomHorizontalFlip(), K.RandomVerticalFlip()]
    if rotate or zoom or shift:
        angle = 180.0 if rotate else 0.0
        steps.append(
            K.RandomAffine(
                angle,
                translate=(shift, shift) if shift else None,
                scale=(1 - zoom, 1 + zoom) if zoom else None,
                padding_mode="reflection",
                p=_SHARE,
            )
        )
    if randaugment_ops:
        steps.append(RandAugment(n=randaugment_ops, m=randaugment_magnitude))
    return nn.Sequential(*steps)


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels int64 (N,) to target probabilities float32 (N, C) with label smoothing (Szegedy et al. 2016)."""
    targets = F.one_hot(labels, num_classes).float()
    return targets * (1 - smoothing) + smoothing / num_classes


def mixup(images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Blend images (N, 3, S, S) and targets (N, C) with others of the batch by Beta(α, α) (Zhang et al. 2018)."""
    if alpha <= 0:
        return images, targets
    weight = torch.distributions.Beta(alpha, alpha).sample().to(images.device)
    partner = torch.randperm(len(images), device=images.device)
    return torch.lerp(images[partner], images, weight), torch.lerp(targets[partner], targets, weight)
