"""One simulated stamp: a galaxy of a given class among neighbours, seen through the atmosphere, with noise.

Everything random comes from the generator that is passed in, so a stamp is a function of its generator, class and size
alone. Must not know about positions on the sky, files or the network's preprocessing.

**Unit of a pixel.** As in the survey's viewer, a pixel holds the nanomaggies of one *native* pixel area (0.262 arcsec
square) whatever the pixel scale: rescaled cutouts keep their surface brightness, so that the colour rule gives the same
colours. (Checked on real viewer cutouts of one galaxy at 0.10 and 0.262 arcsec.) A total flux is therefore
sum x (pixscale / 0.262)^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from pipeline.simulation.galaxies.classes import RECIPES
from pipeline.simulation.galaxies.layers import DrawingFrame, Galaxy, light
from pipeline.simulation.galaxies.neighbours import NATIVE_PIXSCALE, ZERO_POINT_MAG, add_background_galaxies, add_stars
from pipeline.simulation.galaxies.profiles import moffat

LARGE_PIXSCALE = 2.0 * NATIVE_PIXSCALE  # arcsec; Galaxy10 took its large galaxies at this scale
LARGE_SHARE = 0.1
MARGIN_PX = 12  # light from just outside the stamp is smeared into it, and the FFT's wrap-around is kept out of it
MAG_R_RANGE = (13.3, 17.8)
MOFFAT_BETA = 3.0

# Per band g, r, z, at the native pixel scale: about the DECaLS median depth of 24.5, 23.9, 23.0 mag (5 sigma, point
# source; Dey et al. 2019) and its median seeing; the variance a nanomaggy of source adds follows from that of the sky.
SKY_SIGMA = np.array([0.0045, 0.0074, 0.0170], np.float32)  # nanomaggies
SOURCE_VARIANCE = np.array([1.9e-4, 1.7e-4, 1.3e-4], np.float32)  # nanomaggies^2 per nanomaggy
MEDIAN_SEEING = np.array([1.36, 1.25, 1.17])  # arcsec, FWHM


@dataclass(frozen=True)
class SimulatedStamp:
    """A simulated cutout with its truth.

    flux : float32 (3, H, W), bands g, r, z, nanomaggies per native pixel area; row 0 is south, column 0 is east.
    pixscale : arcsec per pixel. class_id : Galaxy10 id. mag_r : AB magnitude of the galaxy alone.
    seeing : FWHM in g, r and z, arcsec. centre : where the galaxy really is, 0-based (column, row).
    """

    flux: NDArray[np.float32]
    pixscale: float
    class_id: int
    mag_r: float
    seeing: tuple[float, float, float]
    centre: tuple[float, float]


def simulate_stamp(rng: np.random.Generator, class_id: int, *, size: int = 256) -> SimulatedStamp:
    """Simulate one galaxy of class `class_id` (0 to 9, see pipeline.core.classes) on a stamp of `size` x `size` pixels.

    The field of view is size x 0.262 arcsec; one galaxy in ten is large and taken at 0.524.
    Raises ValueError for another class.
    """
    if not 0 <= class_id < len(RECIPES):
        raise ValueError(f"class_id must be 0 to {len(RECIPES) - 1} (see pipeline.core.classes), found {class_id}")
    pixscale = LARGE_PIXSCALE if rng.random() < LARGE_SHARE else NATIVE_PIXSCALE
    full = scipy.fft.next_fast_len(size + 2 * MARGIN_PX, real=True)
    jitter = np.clip(rng.normal(0.0, 0.5, 2), -1.2, 1.2)
    centre = (size - 1) / 2.0 + jitter
    low = (full - size) // 2
    scene = np.zeros((3, full, full), np.float32)
    mag_r = _add_galaxy(rng, scene, class_id, centre + low, size / 256, pixscale)
    add_background_galaxies(rng, scene, pixscale)
    add_stars(rng, scene, pixscale)
    seeing = np.clip(MEDIAN_SEEING * rng.normal(1.0, 0.08) + rng.normal(0.0, 0.06, 3), 1.0, 1.7)
    blurred = blur(scene, seeing / pixscale)[:, low : low + size, low : low + size]
    flux = _with_noise(rng, blurred, pixscale)
    return SimulatedStamp(
        flux=flux,
        pixscale=pixscale,
        class_id=class_id,
        mag_r=mag_r,
        seeing=(float(seeing[0]), float(seeing[1]), float(seeing[2])),
        centre=(float(centre[0]), float(centre[1])),
    )


def _add_galaxy(
    rng: np.random.Generator,
    scene: NDArray[np.float32],
    class_id: int,
    centre: NDArray[np.float64],
    zoom: float,
    pixscale: float,
) -> float:
    """Draw the target galaxy into `scene`, in place, and return its r magnitude.

    centre : (column, row) in the scene. zoom : size of the galaxy relative to one on a 256 pixel stamp, where its
    visible radius is log-normal about 48 pixels. Only its bounding box is evaluated.
    """
    reach = draw_reach(rng) * zoom
    half = half_box(reach)
    column, row = round(centre[0]), round(centre[1])
    x0, x1 = max(column - half, 0), min(column + half + 1, scene.shape[2])
    y0, y1 = max(row - half, 0), min(row + half + 1, scene.shape[1])
    x = np.arange(x0, x1, dtype=np.float32) - np.float32(centre[0])
    y = np.arange(y0, y1, dtype=np.float32) - np.float32(centre[1])
    image, mag_r = draw_galaxy(rng, DrawingFrame(*np.meshgrid(x, y), reach), class_id, pixscale)
    scene[:, y0:y1, x0:x1] += image
    return mag_r


def draw_reach(rng: np.random.Generator) -> float:
    """Visible radius of a galaxy on a stamp of 256 pixels, in its pixels."""
    return float(np.clip(48.0 * np.exp(rng.normal(0.0, 0.22)), 28.0, 85.0))


def half_box(reach: float) -> int:
    """Half the side of the box in which a galaxy of this reach is drawn, pixels."""
    return int(np.ceil(1.75 * reach)) + 4


def draw_galaxy(
    rng: np.random.Generator, frame: DrawingFrame, class_id: int, pixscale: float
) -> tuple[NDArray[np.float32], float]:
    """Draw one galaxy of a class into a frame, before PSF and noise.

    Returns float32 (3, H, W), nanomaggies per native pixel area, and its r magnitude. pixscale : arcsec per pixel.
    """
    galaxy = RECIPES[class_id](rng, frame)
    mag_r = _magnitude(galaxy, frame.reach * pixscale)
    native_areas = (pixscale / NATIVE_PIXSCALE) ** 2
    flux_r = 10.0 ** (-0.4 * (mag_r - ZERO_POINT_MAG)) / native_areas
    return light(galaxy, frame, flux_r), mag_r


def _magnitude(galaxy: Galaxy, reach_arcsec: float) -> float:
    """Total r magnitude of a galaxy with this mean surface brightness over its visible ellipse."""
    area = np.pi * reach_arcsec**2 * galaxy.axis_ratio
    return float(np.clip(galaxy.surface_brightness - 2.5 * np.log10(area), *MAG_R_RANGE))


def blur(scene: NDArray[np.float32], fwhm_px: NDArray[np.float64]) -> NDArray[np.float32]:
    """Convolve each band with its Moffat PSF. scene : float32 (3, N, N); fwhm_px : (3,), pixels."""
    side = scene.shape[-1]
    spectrum = scipy.fft.rfft2(scene)
    for band in range(3):
        spectrum[band] *= _transfer(side, round(10 * float(fwhm_px[band])))
    return scipy.fft.irfft2(spectrum, s=(side, side), overwrite_x=True)


@lru_cache(maxsize=128)
def _transfer(side: int, tenths_px: int) -> NDArray[np.float32]:
    """Optical transfer function of a Moffat PSF whose FWHM is given in tenths of a pixel. float32 (N, N // 2 + 1).

    It is real, because the PSF is symmetric; there are few distinct ones, so they are kept.
    """
    offset = scipy.fft.fftfreq(side, 1.0 / side)
    psf = moffat(np.hypot(offset[:, None], offset[None, :]), 0.1 * tenths_px, MOFFAT_BETA)
    return scipy.fft.rfft2(psf / psf.sum()).real.astype(np.float32)


def _with_noise(rng: np.random.Generator, blurred: NDArray[np.float32], pixscale: float) -> NDArray[np.float32]:
    """Add sky noise, the sources' own shot noise and a small error of the sky level. float32 (3, H, W) in and out."""
    native_areas = np.float32((pixscale / NATIVE_PIXSCALE) ** 2)
    depth = np.exp(rng.normal(0.0, 0.15, 3)).astype(np.float32)
    sky = (rng.normal(0.0, 0.06, 3).astype(np.float32) * SKY_SIGMA)[:, None, None]
    variance = np.maximum(blurred, np.float32(0.0)) * SOURCE_VARIANCE[:, None, None]
    variance += ((SKY_SIGMA * depth) ** 2)[:, None, None]
    variance /= native_areas  # a pixel of a coarser image is a mean of native ones
    noise = rng.standard_normal(blurred.shape, np.float32)
    noise *= np.sqrt(variance, out=variance)
    noise += blurred
    noise += sky
    return noise
