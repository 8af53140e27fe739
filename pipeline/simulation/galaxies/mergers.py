"""Recipes of the two classes that interactions make: merging (two galaxies) and disturbed (one, out of balance).

What tells them apart is what a person looks for: two nuclei against one. Must not know about PSF, noise, pixel scales,
catalogues or files.
"""

from __future__ import annotations

import numpy as np

from pipeline.simulation.galaxies.layers import DISC, OLD, STARBURST, YOUNG, Colour, DrawingFrame, Galaxy, Layer
from pipeline.simulation.galaxies.profiles import Plane, ellipse_radius, exponential, sersic, shell, tidal_arc
from pipeline.simulation.galaxies.spirals import knots


def merging(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """Class 1: two galaxies of comparable light that touch: two nuclei, a common envelope, a bridge and tails."""
    towards, separation = rng.uniform(0.0, 2.0 * np.pi), frame.reach * rng.uniform(0.42, 0.95)
    apart = (separation * float(np.cos(towards)), separation * float(np.sin(towards)))
    centred = 0.0 if rng.random() < 0.5 else 0.5  # catalogues centre on the first galaxy, or on the pair
    frame = frame.moved(-centred * apart[0], -centred * apart[1])
    ratio = rng.uniform(0.35, 1.0)  # light of the second galaxy relative to the first
    stripped = rng.uniform(0.16, 0.30)  # share of the light that no longer belongs to either
    bound = (1.0 - stripped) / (1.0 + ratio)
    colour = OLD.shifted(rng.normal(-0.06, 0.10))
    first = frame.moved(0.0, 0.0, 0.75 * frame.reach)
    second = frame.moved(*apart, 0.75 * frame.reach * ratio**0.5)
    layers = [
        *_progenitor(rng, first, bound, colour),
        *_progenitor(rng, second, ratio * bound, colour.shifted(rng.normal(0.0, 0.10))),
        *_debris(rng, frame, apart, ratio, stripped),
    ]
    return Galaxy(layers, rng.normal(22.1, 0.25), 0.7)


def _progenitor(rng: np.random.Generator, frame: DrawingFrame, share: float, colour: Colour) -> list[Layer]:
    """One galaxy of a pair: a body and a compact nucleus, by which it is recognised as a galaxy of its own."""
    axis_ratio = rng.uniform(0.45, 0.95)
    along, across = frame.axes(rng.uniform(0.0, np.pi))
    body = exponential(ellipse_radius(along, across, axis_ratio), frame.reach / 4.0)
    nucleus = sersic(ellipse_radius(along, across, 0.5 + 0.5 * axis_ratio), 0.09 * frame.reach, 1.5)
    return [Layer(body, 0.66 * share, colour.shifted(-0.1)), Layer(nucleus, 0.34 * share, colour)]


def _debris(
    rng: np.random.Generator, frame: DrawingFrame, apart: tuple[float, float], ratio: float, share: float
) -> list[Layer]:
    """What an encounter strips: a tail from the far side of each galaxy, a bridge between them, a common envelope.

    The first galaxy is at the frame's centre, the second at `apart` (pixels) and `ratio` times as bright.
    """
    side, towards, separation = _side(rng), float(np.arctan2(apart[1], apart[0])), float(np.hypot(*apart))
    tails = _tail(rng, frame, (0.0, 0.0), towards + np.pi - side * rng.uniform(0.5, 1.1), side)
    tails += np.float32(ratio) * _tail(rng, frame, apart, towards - side * rng.uniform(0.5, 1.1), side)
    bridge = tidal_arc(
        frame.x,
        frame.y,
        (0.0, 0.0),
        towards - 0.4 * side,
        bend_radius=side * 1.25 * separation,
        length=separation,
        width=0.07 * frame.reach,
    )
    middle = frame.moved(0.5 * apart[0], 0.5 * apart[1])
    envelope = exponential(ellipse_radius(*middle.axes(towards), rng.uniform(0.5, 0.8)), frame.reach / 3.0)
    return [
        Layer(tails, 0.45 * share, YOUNG.shifted(rng.uniform(0.0, 0.2))),
        Layer(bridge, 0.20 * share, YOUNG.shifted(0.1)),
        Layer(envelope, 0.35 * share, DISC),
    ]


def _tail(
    rng: np.random.Generator, frame: DrawingFrame, root: tuple[float, float], heading: float, side: float
) -> Plane:
    """A tidal tail that leaves `root` towards `heading` and bends to `side` (+1 or -1)."""
    return tidal_arc(
        frame.x,
        frame.y,
        root,
        heading,
        bend_radius=side * frame.reach * rng.uniform(0.6, 1.3),
        length=frame.reach * rng.uniform(0.8, 1.4),
        width=frame.reach * rng.uniform(0.05, 0.09),
    )


def disturbed(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """Class 0: one galaxy out of balance: a torn disc, a lopsided one with a single arm, or a spheroid with shells."""
    kind = rng.random()
    if kind < 0.4:
        return _torn_disc(rng, frame)
    return _one_armed(rng, frame) if kind < 0.7 else _shell_galaxy(rng, frame)


def _torn_disc(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """A bent, lopsided disc, its nucleus off centre, clumps of young stars on one side and a plume."""
    angle, axis_ratio = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.35, 0.65)
    along, across = frame.axes(angle)
    side = _side(rng)
    bent = across - np.float32(side * rng.uniform(0.2, 0.6) / frame.reach) * along * along
    lopsided = np.where(along > 0, np.float32(rng.uniform(0.6, 0.8)), np.float32(rng.uniform(1.2, 1.7))) * along
    body = exponential(ellipse_radius(lopsided, bent, axis_ratio), frame.reach / 4.0)
    off = np.float32(frame.reach * rng.uniform(0.0, 0.15))
    nucleus = sersic(ellipse_radius(along - off, bent, 0.7), 0.08 * frame.reach, 1.2)
    torn = body * np.clip(np.float32(0.5) + along * np.float32(1.5 / frame.reach), np.float32(0.0), np.float32(1.5))
    redder = rng.normal(0.0, 0.10)
    nucleus_share, tail_share, clump_share = rng.uniform(0.06, 0.14), rng.uniform(0.12, 0.24), rng.uniform(0.04, 0.12)
    body_share = 1.0 - nucleus_share - tail_share - clump_share
    heading = angle + (0.0 if rng.random() < 0.5 else np.pi)
    layers = [
        Layer(body, 0.7 * body_share, DISC.shifted(redder - 0.06)),
        Layer(torn, 0.3 * body_share, YOUNG.shifted(redder - 0.08)),
        Layer(nucleus, nucleus_share, DISC.shifted(redder + 0.05)),
        Layer(knots(rng, torn, int(rng.integers(5, 14))), clump_share, STARBURST),
        Layer(_tail(rng, frame, (0.0, 0.0), heading, side), tail_share, YOUNG.shifted(redder)),
    ]
    return Galaxy(layers, rng.normal(22.1, 0.25), axis_ratio)


def _one_armed(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """A disc pulled off its nucleus, with one heavy arm that runs into a tidal plume."""
    towards, side = rng.uniform(0.0, 2.0 * np.pi), _side(rng)
    shift = frame.reach * rng.uniform(0.14, 0.26)
    pulled = frame.moved(shift * float(np.cos(towards)), shift * float(np.sin(towards)))
    axis_ratio, angle = rng.uniform(0.6, 0.95), rng.uniform(0.0, np.pi)
    body = exponential(ellipse_radius(*pulled.axes(angle), axis_ratio), frame.reach / 4.2)
    nucleus = sersic(ellipse_radius(*frame.axes(angle), axis_ratio), 0.10 * frame.reach, 1.5)
    root = (0.3 * frame.reach * float(np.cos(towards)), 0.3 * frame.reach * float(np.sin(towards)))
    arm = _tail(rng, frame, root, towards + side * rng.uniform(0.3, 1.0), side)
    redder = rng.normal(0.0, 0.10)
    arm_share, clump_share = rng.uniform(0.20, 0.32), rng.uniform(0.02, 0.07)
    layers = [
        Layer(body, 0.80 - arm_share - clump_share, DISC.shifted(redder)),
        Layer(nucleus, 0.20, OLD.shifted(redder - 0.05)),
        Layer(arm, arm_share, YOUNG.shifted(redder)),
        Layer(knots(rng, arm, int(rng.integers(5, 14))), clump_share, STARBURST),
    ]
    return Galaxy(layers, rng.normal(22.2, 0.25), axis_ratio)


def _shell_galaxy(rng: np.random.Generator, frame: DrawingFrame) -> Galaxy:
    """A spheroid with two to four sharp shells on alternating sides, and a stream."""
    angle, axis_ratio = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.55, 0.85)
    spheroid = sersic(ellipse_radius(*frame.axes(angle), axis_ratio), frame.reach / 4.5, rng.uniform(1.5, 3.0))
    shell_radius = ellipse_radius(*frame.axes(angle), rng.uniform(0.75, 1.0))
    shells = np.zeros_like(spheroid)
    for step in range(int(rng.integers(2, 5))):
        edge = frame.reach * (0.50 + 0.20 * step) * rng.uniform(0.92, 1.08)
        towards = angle + np.pi * step + rng.normal(0.0, 0.25)
        shells += shell(shell_radius, frame.azimuth, edge, towards, rng.uniform(0.5, 0.8)) * np.float32(0.7**step)
    stream = _tail(rng, frame, (0.0, 0.0), angle + rng.normal(0.0, 0.5), _side(rng))
    colour = OLD.shifted(rng.normal(-0.04, 0.06))
    layers = [
        Layer(spheroid, 0.66, colour),
        Layer(shells, 0.22, colour.shifted(-0.06)),
        Layer(stream, 0.12, colour.shifted(-0.15)),
    ]
    return Galaxy(layers, rng.normal(22.1, 0.25), axis_ratio)


def _side(rng: np.random.Generator) -> float:
    """+1 or -1, the sense in which something bends."""
    return 1.0 if rng.random() < 0.5 else -1.0
