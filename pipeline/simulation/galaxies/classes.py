"""Recipes of the ten Galaxy10 classes: smooth and edge-on galaxies here, spirals and encounters in their own modules.

A recipe takes a random generator and a frame of sky and returns a `Galaxy`. Must not know about PSF, noise, pixel
scales, catalogues or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.simulation.galaxies.layers import OLD, YOUNG, DrawingFrame, Galaxy, Layer, dimmed
from pipeline.simulation.galaxies.mergers import disturbed, merging
from pipeline.simulation.galaxies.profiles import Plane, edge_on_disc, ellipse_radius, sersic
from pipeline.simulation.galaxies.spirals import barred_spiral, loose_spiral, tight_spiral

Recipe = Callable[[np.random.Generator, DrawingFrame], Galaxy]


def _smooth(rng: np.random.Generator, frame: DrawingFrame, axis_ratio: float, index: float) -> Galaxy:
    """A featureless Sersic spheroid: one population, elliptical isophotes."""
    radius = ellipse_radius(*frame.axes(rng.uniform(0.0, np.pi)), axis_ratio)
    colour = OLD.shifted(rng.normal(-0.04, 0.11))
    shape = sersic(radius, frame.reach / rng.uniform(2.6, 3.4), index)
    return Galaxy([Layer(shape, 1.0, colour)], rng.normal(22.3, 0.25), axis_ratio)


def round_smooth(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """Class 2: an elliptical that looks round."""
    return _smooth(rng, frame, rng.uniform(0.87, 1.0), rng.uniform(1.5, 4.5))


def in_between_smooth(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """Class 3: an elliptical or lenticular, clearly flattened."""
    return _smooth(rng, frame, rng.uniform(0.48, 0.72), rng.uniform(1.3, 3.5))


def cigar_smooth(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """Class 4: cigar shaped: strongly flattened, still without a thin disc."""
    return _smooth(rng, frame, rng.uniform(0.24, 0.36), rng.uniform(1.0, 2.4))


@dataclass(frozen=True)
class EdgeOnDisc:
    """A disc seen from the side: layers, dust, and the coordinates along and across it (float32 (H, W), pixels)."""

    layers: list[Layer]
    dust: Plane
    along: Plane
    across: Plane


def _edge_on(rng: np.random.Generator, frame: DrawingFrame, thickness: float, redder: float) -> EdgeOnDisc:
    """A thick old disc, a thin young one that is longer, so that the ends are bluer, and a dust lane in the mid-plane.

    thickness : scale height z0 in units of the reach. redder : shift of the colours, mag.
    """
    along, across = frame.axes(rng.uniform(0.0, np.pi))
    warp = np.float32(rng.normal(0.0, 0.02) / frame.reach**2)
    across = across + warp * along**3  # the integral sign of many outer discs
    length, height = frame.reach / 3.6, thickness * frame.reach
    old = edge_on_disc(along, across, 0.9 * length, height)
    young = edge_on_disc(along, across, 1.2 * length, 0.65 * height)
    off_plane = np.float32(rng.normal(0.0, 0.35) * height)  # the disc is tilted by a degree or two
    dust = np.float32(rng.uniform(0.5, 2.0)) * edge_on_disc(along, across - off_plane, 1.2 * length, 0.35 * height)
    layers = [Layer(old, 0.6, OLD.shifted(redder - 0.08)), Layer(young, 0.4, YOUNG.shifted(redder))]
    return EdgeOnDisc(layers, dust, along, across)


def edge_on_no_bulge(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """Class 8: a needle: a disc from the side with no bulge, often blue."""
    frame = DrawingFrame(frame.x, frame.y, 1.3 * frame.reach)
    disc = _edge_on(rng, frame, rng.uniform(0.055, 0.095), rng.normal(-0.03, 0.08))
    return Galaxy(disc.layers, rng.normal(21.7, 0.25), 0.18, disc.dust if rng.random() < 0.6 else None)


def edge_on_bulge(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """Class 9: a disc from the side with a round bulge that stands out above and below it."""
    frame = DrawingFrame(frame.x, frame.y, 1.1 * frame.reach)
    disc = _edge_on(rng, frame, rng.uniform(0.055, 0.085), rng.normal(0.12, 0.08))
    half_light = frame.reach * rng.uniform(0.10, 0.16)
    bulge = sersic(ellipse_radius(disc.along, disc.across, rng.uniform(0.65, 0.95)), half_light, rng.uniform(1.2, 2.8))
    share = rng.uniform(0.28, 0.48)
    layers = [*dimmed(disc.layers, 1.0 - share), Layer(bulge, share, OLD.shifted(rng.normal(0.06, 0.05)))]
    return Galaxy(layers, rng.normal(21.6, 0.25), 0.24, disc.dust if rng.random() < 0.7 else None)


# By Galaxy10 id, in the order of pipeline.core.classes.GALAXY10_CLASSES.
RECIPES: tuple[Recipe, ...] = (
    disturbed,
    merging,
    round_smooth,
    in_between_smooth,
    cigar_smooth,
    barred_spiral,
    tight_spiral,
    loose_spiral,
    edge_on_no_bulge,
    edge_on_bulge,
)
