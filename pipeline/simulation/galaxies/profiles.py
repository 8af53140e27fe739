"""Surface-brightness profiles: the published formulas from which the simulated galaxies are assembled.

Pure NumPy on float32 arrays of positions in pixels. Profiles are *shapes*: their scale is arbitrary, because a layer is
normalised to its share of the galaxy's flux when it is added up (see `layers`). This module must not know about
classes, bands, magnitudes or files.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import k1

Plane = NDArray[np.float32]

# Half a pixel of softening: the centre of a steep profile is sampled at a point, not integrated over its pixel.
CORE_SOFTENING_PX = 0.5


def rotate(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    """Coordinates along and across an axis at `angle` radians, counter-clockwise from +x.

    x, y : float32 (H, W), pixels. Returns two float32 (H, W), pixels.
    """
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x


def ellipse_radius(along: Plane, across: Plane, axis_ratio: float, boxiness: float = 2.0) -> Plane:
    """Radius of the generalised ellipse (Athanassoula et al. 1990) through each point, measured on the major axis.

    along, across : float32 (H, W), pixels. axis_ratio : b/a, above 0 to 1. boxiness : 2 is an ellipse, above 2 is boxy.
    Returns float32 (H, W), pixels.
    """
    minor = across / np.float32(axis_ratio)
    if boxiness == 2.0:
        return np.sqrt(along * along + minor * minor + np.float32(CORE_SOFTENING_PX**2))
    c = np.float32(boxiness)
    return (np.abs(along) ** c + np.abs(minor) ** c) ** (np.float32(1.0) / c)


def sersic(radius: Plane, half_light: float, index: float) -> Plane:
    """The r^(1/n) profile (Sersic 1968), with b_n as expanded by Ciotti & Bertin (1999), good to 1e-4 for n > 0.5.

    radius : float32 (H, W) in the unit of `half_light`. Returns float32 (H, W), 1 at the half-light radius.
    """
    b = 2.0 * index - 1.0 / 3.0 + 4.0 / (405.0 * index) + 46.0 / (25515.0 * index**2)
    scaled = radius * np.float32(1.0 / half_light)
    if index != 1.0:
        scaled = scaled ** np.float32(1.0 / index)
    return np.exp(np.float32(b) * (np.float32(1.0) - scaled))


def exponential(radius: Plane, scale_length: float) -> Plane:
    """A disc's exponential profile (Freeman 1970), 1 at the centre. radius, scale_length : pixels."""
    return np.exp(radius * np.float32(-1.0 / scale_length))


@lru_cache(maxsize=1)
def _edge_on_run() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """t and t K1(t): the light of an exponential disc seen exactly from the side, along its length."""
    t = np.linspace(1e-4, 12.0, 1024)
    return t, t * k1(t)


def edge_on_disc(along: Plane, across: Plane, scale_length: float, scale_height: float) -> Plane:
    """A disc seen edge-on: (R/h) K1(R/h) sech^2(z/z0) (van der Kruit & Searle 1981), 1 at the centre.

    along, across : float32 (H, W); scale_length h and scale_height z0 : pixels. Returns float32 (H, W).
    """
    t, run = _edge_on_run()
    length = np.interp(np.abs(along) * np.float32(1.0 / scale_length), t, run, right=0.0).astype(np.float32)
    decay = np.exp(np.abs(across) * np.float32(-2.0 / scale_height))
    return length * np.float32(4.0) * decay / (np.float32(1.0) + decay) ** 2  # sech^2, written so as not to overflow


def ferrers_bar(along: Plane, across: Plane, half_length: float, axis_ratio: float) -> Plane:
    """A boxy bar of finite length: (1 - m^2)^1.5 inside the ellipse m = 1 (after Ferrers 1877), 0 outside.

    along, across : float32 (H, W); half_length : pixels. Returns float32 (H, W).
    """
    m = ellipse_radius(along, across, axis_ratio, boxiness=2.8) * np.float32(1.0 / half_length)
    inside = np.maximum(np.float32(1.0) - m * m, np.float32(0.0))
    return inside * np.sqrt(inside)


def logarithmic_arms(
    log_radius: Plane, azimuth: Plane, arms: int, pitch_deg: float, phase: float, sharpness: float
) -> Plane:
    """Contrast of `arms` logarithmic spiral arms: exp(k (cos(m (azimuth - ln r / tan pitch) - phase) - 1)).

    The crest is r = r0 exp(azimuth tan(pitch)) (Danver 1942; Kennicutt 1981), its profile across a von Mises bump.
    log_radius : float32 (H, W), ln of the radius in units of where the arms begin. azimuth : float32 (H, W), radians.
    pitch_deg : degrees, negative winds the other way. sharpness : k, above 0. Returns float32 (H, W) in 0 to 1.
    """
    winding = np.float32(1.0 / np.tan(np.radians(pitch_deg)))
    wave = np.cos(np.float32(arms) * (azimuth - winding * log_radius) - np.float32(phase))
    return np.exp(np.float32(sharpness) * (wave - np.float32(1.0)))


def ring(radius: Plane, ring_radius: float, width: float) -> Plane:
    """A Gaussian ring, 1 at its crest. radius : float32 (H, W); ring_radius, width (sigma) : pixels."""
    return np.exp(np.float32(-0.5 / width**2) * (radius - np.float32(ring_radius)) ** 2)


def tidal_arc(
    x: Plane, y: Plane, start: tuple[float, float], heading: float, bend_radius: float, length: float, width: float
) -> Plane:
    """A tidal tail: it leaves `start` towards `heading`, bends on a circle, widens and fades along its way.

    x, y : float32 (H, W), pixels. heading : radians from +x. bend_radius : pixels, its sign is the side it bends to.
    length, width (sigma at the start) : pixels. Returns float32 (H, W), at most 1.
    The shape is a cartoon of the tails of Toomre & Toomre (1972), not a dynamical model.
    """
    cx = start[0] - bend_radius * np.sin(heading)
    cy = start[1] + bend_radius * np.cos(heading)
    dx, dy = x - np.float32(cx), y - np.float32(cy)
    side = np.sign(bend_radius)
    begins = np.arctan2(start[1] - cy, start[0] - cx)
    swept = np.mod((np.arctan2(dy, dx) - np.float32(begins)) * np.float32(side), np.float32(2.0 * np.pi))
    way = swept * np.float32(abs(bend_radius) / length)  # 0 at the root, 1 at the tip
    spread = np.float32(width) * (np.float32(1.0) + np.minimum(way, np.float32(2.0)))
    off = (np.hypot(dx, dy) - np.float32(abs(bend_radius))) / spread
    tip = np.clip(np.float32(2.0) - np.float32(1.25) * way, np.float32(0.0), np.float32(1.0))
    return np.exp(np.float32(-0.5) * off * off - np.float32(1.1) * way) * tip


def shell(radius: Plane, azimuth: Plane, edge: float, towards: float, opening: float) -> Plane:
    """One stellar shell: light that rises outwards to a sharp `edge`, on one side only (Malin & Carter 1980).

    radius : float32 (H, W); edge : pixels. azimuth : float32 (H, W); towards, opening (half-width) : radians.
    Returns float32 (H, W), 1 at the middle of the edge.
    """
    scaled = radius * np.float32(1.0 / edge)
    inner = np.minimum(scaled, np.float32(1.0)) ** 4
    outer = np.exp(np.float32(-25.0) * np.maximum(scaled - np.float32(1.0), np.float32(0.0)))
    sector = np.exp((np.cos(azimuth - np.float32(towards)) - np.float32(1.0)) * np.float32(2.0 / opening**2))
    return inner * outer * sector


def moffat(radius: NDArray[np.float64], fwhm: float, beta: float) -> NDArray[np.float64]:
    """A star's image under atmospheric seeing (Moffat 1969), 1 at the centre. radius, fwhm : the same unit."""
    core = fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / beta) - 1.0))
    return (1.0 + (radius / core) ** 2) ** -beta
