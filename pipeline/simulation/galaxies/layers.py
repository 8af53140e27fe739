"""A galaxy on the sky as a sum of layers: stellar populations with a shape, a share of the light and a colour.

Knows how shapes, shares, colours and dust make an image in g, r and z. Must not know which class is drawn, nor about
PSF, noise or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.simulation.galaxies.profiles import Plane, rotate

# Extinction of g, r and z relative to r (Fitzpatrick 1999, R_V = 3.1, DECam filters: 3.214, 2.165, 1.211).
DUST_LAW = np.array([3.214, 2.165, 1.211], np.float32) / np.float32(2.165)


@dataclass(frozen=True)
class Colour:
    """Colour of a population, in AB magnitudes."""

    g_r: float
    r_z: float

    def shifted(self, by: float) -> Colour:
        """The same population redder by `by` mag in g-r, and by 0.7 of it in r-z, along the galaxies' own sequence."""
        return Colour(self.g_r + by, self.r_z + 0.7 * by)

    def ratios(self) -> np.ndarray:
        """Flux in g, r and z relative to r. float32 (3,)."""
        return np.array([10 ** (-0.4 * self.g_r), 1.0, 10 ** (0.4 * self.r_z)], np.float32)


OLD = Colour(0.86, 0.63)  # bulges, bars, ellipticals
DISC = Colour(0.65, 0.48)  # the smooth disc between the arms
YOUNG = Colour(0.42, 0.26)  # spiral arms
STARBURST = Colour(0.15, 0.05)  # star-forming knots


@dataclass(frozen=True)
class DrawingFrame:
    """The piece of sky in which one galaxy is drawn.

    x, y : float32 (H, W), pixels from the galaxy's centre, +x to the west (columns), +y to the north (rows).
    reach : pixels, the radius to which the galaxy is visible on a survey image (about 25 mag per square arcsec).
    """

    x: Plane
    y: Plane
    reach: float

    @cached_property
    def radius(self) -> Plane:
        """Distance from the centre on the sky. float32 (H, W), pixels."""
        return np.hypot(self.x, self.y)

    @cached_property
    def azimuth(self) -> Plane:
        """Direction from the centre on the sky. float32 (H, W), radians."""
        return np.arctan2(self.y, self.x)

    def axes(self, angle: float) -> tuple[Plane, Plane]:
        """Coordinates along and across an axis at `angle` radians. Two float32 (H, W), pixels."""
        return rotate(self.x, self.y, angle)

    def moved(self, dx: float, dy: float, reach: float | None = None) -> DrawingFrame:
        """The same sky seen from a centre moved by (dx, dy) pixels."""
        return DrawingFrame(self.x - np.float32(dx), self.y - np.float32(dy), self.reach if reach is None else reach)


@dataclass(frozen=True)
class Layer:
    """One population: its shape (float32 (H, W), any scale), its share of the galaxy's r-band light, its colour."""

    shape: Plane
    share: float
    colour: Colour


@dataclass(frozen=True)
class Galaxy:
    """A drawn galaxy.

    surface_brightness : mean r-band mag per square arcsec inside the ellipse of semi-major axis `reach`.
    axis_ratio : of that ellipse; only used to turn surface brightness into a magnitude.
    dust : float32 (H, W) or None, optical depth of a dust screen in the r band.
    """

    layers: Sequence[Layer]
    surface_brightness: float
    axis_ratio: float
    dust: Plane | None = None


def dimmed(layers: Sequence[Layer], by: float) -> list[Layer]:
    """The same layers with every share multiplied by `by`, to make room for another."""
    return [Layer(layer.shape, layer.share * by, layer.colour) for layer in layers]


def light(galaxy: Galaxy, frame: DrawingFrame, flux_r: float) -> np.ndarray:
    """Image of a galaxy in g, r and z, before PSF and noise.

    flux_r : total r-band flux inside the frame, after dust.
    Returns float32 (3, H, W), which sums to `flux_r` in the r band.
    """
    height, width = frame.x.shape
    shapes = np.stack([layer.shape for layer in galaxy.layers]).reshape(len(galaxy.layers), -1)
    totals = shapes.sum(axis=1)
    shares = np.array([layer.share for layer in galaxy.layers], np.float32) / totals
    mixing = np.stack([layer.colour.ratios() for layer in galaxy.layers], axis=1) * shares  # (3, layers)
    image = (mixing @ shapes).reshape(3, height, width)
    if galaxy.dust is not None:
        image *= np.exp(-DUST_LAW[:, None, None] * galaxy.dust)
    image *= _vignette(frame)
    image *= np.float32(flux_r / float(image[1].sum()))
    return image


def _vignette(frame: DrawingFrame) -> Plane:
    """Fades the light to nothing at the frame's border, so that the border of a bounding box is never seen."""
    half = np.float32(max(-frame.x[0, 0], frame.x[0, -1], -frame.y[0, 0], frame.y[-1, 0]))
    return np.clip((half - frame.radius) * (np.float32(8.0) / half), np.float32(0.0), np.float32(1.0))
