"""Recipes of the three spiral classes: barred, tightly wound and loosely wound.

Each is a bulge, a smooth disc, logarithmic arms and star-forming knots strung along them; what differs is the pitch
angle, the contrast and the bar. Must not know about PSF, noise, pixel scales, catalogues or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.simulation.galaxies.layers import DISC, OLD, STARBURST, YOUNG, DrawingFrame, Galaxy, Layer, dimmed
from pipeline.simulation.galaxies.profiles import (
    Plane,
    ellipse_radius,
    exponential,
    ferrers_bar,
    logarithmic_arms,
    ring,
    rotate,
    sersic,
)


@dataclass(frozen=True)
class Disc:
    """A disc galaxy's own plane, seen inclined: polar coordinates in that plane.

    radius : float32 (H, W), pixels on the major axis. azimuth : float32 (H, W), radians.
    along, across : float32 (H, W), pixels in the plane. axis_ratio : cosine of the inclination.
    """

    along: Plane
    across: Plane
    radius: Plane
    azimuth: Plane
    axis_ratio: float


@dataclass(frozen=True)
class SpiralArms:
    """Spiral arms: number, pitch angle (degrees, signed), sharpness, and where they begin and scale (pixels)."""

    number: int
    pitch_deg: float
    sharpness: float
    begin: float
    scale_length: float
    phase: float


def inclined_disc(rng: np.random.Generator, frame: DrawingFrame, flattest: float) -> Disc:
    """A disc at a random position angle, its axis ratio drawn between `flattest` and face-on."""
    axis_ratio = rng.uniform(flattest, 1.0)
    along, across = frame.axes(rng.uniform(0.0, np.pi))
    across = across * np.float32(1.0 / axis_ratio)
    radius = np.sqrt(along * along + across * across + np.float32(0.25))
    return Disc(along, across, radius, np.arctan2(across, along), axis_ratio)


def arm_light(rng: np.random.Generator, disc: Disc, arms: SpiralArms) -> Plane:
    """Light of spiral arms: an exponential run, the arms' contrast, patchiness along them.

    There is none inside their beginning. Returns float32 (H, W), any scale.
    """
    log_radius = np.log(disc.radius * np.float32(1.0 / arms.begin))
    sway = np.float32(rng.uniform(0.0, 0.16)) * np.sin(disc.azimuth + np.float32(rng.uniform(0.0, 2.0 * np.pi)))
    crest = logarithmic_arms(log_radius + sway, disc.azimuth, arms.number, arms.pitch_deg, arms.phase, arms.sharpness)
    patches = np.cos(
        np.float32(rng.integers(1, 4)) * disc.azimuth
        + np.float32(rng.uniform(2.0, 5.0)) * log_radius
        + np.float32(rng.uniform(0.0, 2.0 * np.pi))
    )
    opening = np.clip(np.float32(3.0) * log_radius + np.float32(1.0), np.float32(0.0), np.float32(1.0))
    run = exponential(disc.radius, arms.scale_length) * opening
    return run * crest * (np.float32(1.0) + np.float32(rng.uniform(0.1, 0.45)) * patches)


def knots(rng: np.random.Generator, arm_plane: Plane, number: int) -> Plane:
    """Star-forming knots: `number` pixels drawn where the arms are bright, of random brightness. float32 (H, W)."""
    cumulative = np.cumsum(arm_plane, dtype=np.float64)
    chosen = np.searchsorted(cumulative, rng.random(number) * cumulative[-1])
    plane = np.zeros(arm_plane.size, np.float32)
    plane[np.minimum(chosen, plane.size - 1)] = rng.exponential(1.0, number).astype(np.float32)
    return plane.reshape(arm_plane.shape)


def _bulge(rng: np.random.Generator, disc: Disc, half_light: float) -> Plane:
    """A bulge rounder than the disc it sits in."""
    roundness = 0.5 + 0.5 * disc.axis_ratio
    sky_radius = ellipse_radius(disc.along, disc.across * np.float32(disc.axis_ratio), roundness)
    return sersic(sky_radius, half_light, rng.uniform(1.0, 2.5))


def _spiral(
    rng: np.random.Generator, frame: DrawingFrame, disc: Disc, arms: SpiralArms, bulge_share: float, arm_share: float
) -> list[Layer]:
    """Bulge, disc, arms and knots of a spiral; the shares add up to 1."""
    redder = rng.normal(0.0, 0.06)
    crest = arm_light(rng, disc, arms)
    knot_share = rng.uniform(0.02, 0.07)
    disc_share = 1.0 - bulge_share - arm_share - knot_share
    return [
        Layer(_bulge(rng, disc, frame.reach * rng.uniform(0.05, 0.09)), bulge_share, OLD.shifted(redder)),
        Layer(exponential(disc.radius, frame.reach / 3.6), disc_share, DISC.shifted(redder)),
        Layer(crest, arm_share, YOUNG.shifted(redder)),
        Layer(knots(rng, crest, int(rng.integers(12, 40))), knot_share, STARBURST),
    ]


def _handed(rng: np.random.Generator, pitch_deg: float) -> float:
    """The pitch angle with a random winding sense."""
    return pitch_deg if rng.random() < 0.5 else -pitch_deg


def tight_spiral(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """Class 6: tightly wound arms (pitch 7 to 12 degrees) around a clear bulge."""
    disc = inclined_disc(rng, frame, 0.6)
    arms = SpiralArms(
        number=int(rng.choice([2, 2, 3])),
        pitch_deg=_handed(rng, rng.uniform(7.0, 12.0)),
        sharpness=rng.uniform(1.2, 2.4),
        begin=frame.reach * rng.uniform(0.16, 0.24),
        scale_length=frame.reach / 2.8,
        phase=rng.uniform(0.0, 2.0 * np.pi),
    )
    layers = _spiral(rng, frame, disc, arms, rng.uniform(0.10, 0.20), rng.uniform(0.28, 0.48))
    return Galaxy(layers, rng.normal(22.2, 0.25), disc.axis_ratio)


def loose_spiral(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """Class 7: wide open arms (pitch 22 to 36 degrees) and a small bulge."""
    disc = inclined_disc(rng, frame, 0.55)
    arms = SpiralArms(
        number=int(rng.choice([2, 2, 2, 3])),
        pitch_deg=_handed(rng, rng.uniform(22.0, 36.0)),
        sharpness=rng.uniform(1.8, 3.6),
        begin=frame.reach * rng.uniform(0.08, 0.14),
        scale_length=frame.reach / 2.6,
        phase=rng.uniform(0.0, 2.0 * np.pi),
    )
    layers = _spiral(rng, frame, disc, arms, rng.uniform(0.04, 0.12), rng.uniform(0.34, 0.52))
    return Galaxy(layers, rng.normal(22.3, 0.25), disc.axis_ratio)


def barred_spiral(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """Class 5: a bar whose ends carry two arms, sometimes through an inner ring."""
    disc = inclined_disc(rng, frame, 0.6)
    half_length = frame.reach * rng.uniform(0.36, 0.50)
    bar_angle = rng.uniform(0.0, np.pi)
    along, across = rotate(disc.along, disc.across, bar_angle)
    arms = SpiralArms(
        number=2,
        pitch_deg=_handed(rng, rng.uniform(12.0, 24.0)),
        sharpness=rng.uniform(1.5, 3.0),
        begin=half_length,
        scale_length=frame.reach / 3.0,
        phase=2.0 * bar_angle,  # the crests leave the two ends of the bar
    )
    bulge_share, arm_share, bar_share = rng.uniform(0.05, 0.12), rng.uniform(0.30, 0.42), rng.uniform(0.18, 0.28)
    layers = _spiral(rng, frame, disc, arms, bulge_share, arm_share)
    bar = Layer(ferrers_bar(along, across, half_length, rng.uniform(0.20, 0.32)), bar_share, OLD.shifted(-0.04))
    ring_share = rng.uniform(0.05, 0.14) if rng.random() < 0.5 else 0.0
    inner_ring = Layer(ring(disc.radius, half_length, 0.12 * half_length), ring_share, DISC.shifted(-0.08))
    layers = [*dimmed(layers, 1.0 - bar_share - ring_share), bar, inner_ring]
    return Galaxy(layers, rng.normal(22.2, 0.25), disc.axis_ratio)
