"""The survey's MASKBITS over a stamp, as quality flags."""

from __future__ import annotations

import numpy as np

from catalogs.schema import QualityFlag
from pipeline.config.inputs import InputSettings


def central_aperture(height: int, width: int, pixscale: float, radius: float) -> np.ndarray:
    """Which pixels lie within `radius` arcsec of the centre: bool (height, width); the central ones always do."""
    y, x = np.ogrid[:height, :width]
    distance = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)
    return np.asarray(distance <= max(radius / pixscale, 1.0))


def bits_within(maskbits: np.ndarray, pixscale: float, settings: InputSettings) -> int:
    """The bits of MASKBITS, integers (H, W), OR-ed over the central aperture."""
    height, width = maskbits.shape
    inside = central_aperture(height, width, pixscale, settings.aperture)
    return int(np.bitwise_or.reduce(maskbits[inside].astype(np.int64), initial=0)) & 0x7FFFFFFF


def mask_flags(maskbits: int, settings: InputSettings) -> int:
    """Quality bits for the bits of MASKBITS at an object; none where they are unknown (−1)."""
    if maskbits < 0:
        return 0
    quality = 0
    for bits, flag in (
        (settings.saturated_bits, QualityFlag.SATURATED),
        (settings.bright_star_bits, QualityFlag.BRIGHT_STAR),
        (settings.large_galaxy_bits, QualityFlag.LARGE_GALAXY_MASK),
        (settings.cluster_bits, QualityFlag.CLUSTER_MASK),
    ):
        if any(maskbits >> bit & 1 for bit in bits):
            quality |= int(flag)
    return quality
