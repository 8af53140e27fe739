"""What else is in the picture: field stars and small background galaxies.

Must not know about the target galaxy, PSF, noise or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ZERO_POINT_MAG = 22.5  # of a nanomaggy
NATIVE_PIXSCALE = 0.262  # arcsec, of the Legacy Surveys coadds
BLOB_HALF_PX = 10


def nanomaggies(mag: NDArray[np.float64]) -> NDArray[np.float64]:
    """Flux of an AB magnitude, in nanomaggies."""
    return 10.0 ** (-0.4 * (mag - ZERO_POINT_MAG))


def magnitudes(rng: np.random.Generator, number: int, bright: float, faint: float, slope: float) -> NDArray[np.float64]:
    """Magnitudes between two limits whose counts grow as 10^(slope m), by inversion of the cumulative counts."""
    low, high = 10.0 ** (slope * bright), 10.0 ** (slope * faint)
    return np.log10(low + (high - low) * rng.random(number)) / slope


@dataclass(frozen=True)
class Stars:
    """Field stars. x, y : float64 (N,), pixels; flux : float64 (3, N), nanomaggies per native pixel area."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    flux: NDArray[np.float64]


@dataclass(frozen=True)
class BackgroundGalaxies:
    """Small background galaxies, exponential ellipses.

    x, y, scale (length) : float64 (N,), pixels; flux : float64 (3, N), nanomaggies per native pixel area.
    angle : float64 (N,), radians from +x; ratio : float64 (N,), minor over major axis.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    flux: NDArray[np.float64]
    scale: NDArray[np.float64]
    angle: NDArray[np.float64]
    ratio: NDArray[np.float64]


def draw_stars(rng: np.random.Generator, height: int, width: int, pixscale: float) -> Stars:
    """Field stars of a piece of sky of `height` x `width` pixels of `pixscale` arcsec, from r = 16.5 to 23."""
    number = rng.poisson(0.0016 * height * width * pixscale**2)  # per square arcsec, down to r = 23
    flux = nanomaggies(magnitudes(rng, number, 16.5, 23.0, 0.22)) * (NATIVE_PIXSCALE / pixscale) ** 2
    g_r = rng.choice([0.4, 0.9, 1.45], number, p=[0.4, 0.2, 0.4]) + rng.normal(0.0, 0.1, number)
    bands = star_bands(flux, g_r)
    return Stars(rng.uniform(0, width - 2, number), rng.uniform(0, height - 2, number), bands)


def star_bands(flux_r: NDArray[np.float64], g_r: NDArray[np.float64]) -> NDArray[np.float64]:
    """Flux of stars in g, r and z, float64 (3, N), from that in r and their colour g - r (mag)."""
    return np.stack([flux_r * 10 ** (-0.4 * g_r), flux_r, flux_r * 10 ** (0.4 * (0.95 * g_r - 0.15))])


def add_stars(rng: np.random.Generator, scene: NDArray[np.float32], pixscale: float) -> None:
    """Add field stars to `scene`, in place.

    scene : float32 (3, H, W), nanomaggies per native pixel area; pixscale : arcsec per pixel.
    """
    _, height, width = scene.shape
    stars = draw_stars(rng, height, width, pixscale)
    add_points(scene, stars.x, stars.y, stars.flux)


def add_points(
    scene: NDArray[np.float32], x: NDArray[np.float64], y: NDArray[np.float64], flux: NDArray[np.float64]
) -> None:
    """Add points, shared between their four nearest pixels, to `scene` (float32 (3, H, W)), in place.

    x, y : float64 (N,), pixels, from 0 to at most W - 2 and H - 2. flux : float64 (3, N).
    """
    column, row = x.astype(int), y.astype(int)
    right, up = x - column, y - row
    for dy, weight_y in ((0, 1.0 - up), (1, up)):
        for dx, weight_x in ((0, 1.0 - right), (1, right)):
            light = (flux * weight_y * weight_x).astype(np.float32)
            for band in range(3):
                np.add.at(scene[band], (row + dy, column + dx), light[band])


def draw_background_galaxies(
    rng: np.random.Generator, height: int, width: int, pixscale: float, brightest: float = 18.8
) -> BackgroundGalaxies:
    """Small, mostly red galaxies of a piece of sky of `height` x `width` pixels of `pixscale` arcsec, to r = 24."""
    number = rng.poisson(0.0045 * height * width * pixscale**2)  # per square arcsec, down to r = 24
    flux = nanomaggies(magnitudes(rng, number, brightest, 24.0, 0.38)) * (NATIVE_PIXSCALE / pixscale) ** 2
    scale = rng.uniform(0.15, 0.45, number) * (1.0 + 0.8 * np.clip(np.log10(flux + 1e-9), 0.0, 2.0)) / pixscale
    g_r, r_z = rng.uniform(0.3, 1.5, number), rng.uniform(0.3, 1.2, number)
    bands = np.stack([flux * 10 ** (-0.4 * g_r), flux, flux * 10 ** (0.4 * r_z)])
    x, y = rng.uniform(0, width, number), rng.uniform(0, height, number)
    return BackgroundGalaxies(x, y, bands, scale, rng.uniform(0.0, np.pi, number), rng.uniform(0.35, 1.0, number))


def background_light(
    background: BackgroundGalaxies,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Light of background galaxies in a box around each, of sum 1, and which pixels these are.

    Returns float64 (N, B, B), the rows int64 (N, B, 1) and the columns int64 (N, 1, B).
    """
    side = np.arange(-BLOB_HALF_PX, BLOB_HALF_PX + 1)
    columns = np.floor(background.x).astype(int)[:, None, None] + side[None, None, :]  # (N, 1, B)
    rows = np.floor(background.y).astype(int)[:, None, None] + side[None, :, None]  # (N, B, 1)
    dx, dy = columns - background.x[:, None, None], rows - background.y[:, None, None]
    cos, sin = np.cos(background.angle)[:, None, None], np.sin(background.angle)[:, None, None]
    radius = np.hypot(cos * dx + sin * dy, (cos * dy - sin * dx) / background.ratio[:, None, None])
    blobs = np.exp(-radius / background.scale[:, None, None])  # (N, B, B)
    blobs /= blobs.sum(axis=(1, 2), keepdims=True)
    return blobs, rows, columns


def add_background_galaxies(rng: np.random.Generator, scene: NDArray[np.float32], pixscale: float) -> None:
    """Add small, faint, mostly red exponential galaxies to `scene`, in place.

    scene : float32 (3, H, W), nanomaggies per native pixel area; pixscale : arcsec per pixel.
    """
    _, height, width = scene.shape
    background = draw_background_galaxies(rng, height, width, pixscale)
    blobs, rows, columns = background_light(background)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = np.where(inside, rows * width + columns, 0).ravel()
    for band in range(3):
        light = np.where(inside, blobs * background.flux[band][:, None, None], 0.0).ravel()
        scene[band] += np.bincount(flat, light, height * width).reshape(height, width).astype(np.float32)
