"""Pixels to network input: colour rule, field of view, scale, normalisation.

One frozen object, `Preprocessing`, is used in training and in inference, and its digest is part of every model id and
of every committed tile, so that the two cannot drift apart. Everything runs in torch on the device of its input. This
module knows nothing of files, sky positions or class names.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Pixels = TypeVar("Pixels", np.ndarray, Tensor)

_REVISION = 3  # raise when the arithmetic below changes: it enters the digest
_SCALE_TOLERANCE = 0.01  # pixel scales closer than this (relative) count as equal
_CHUNK = 1 << 20  # values worked on at a time by a CPU: they stay in its cache, which is three times as fast
_BRIGHTEST = 1e9  # nanomaggies in one pixel (magnitude 0); beyond it the arithmetic would overflow on damaged data


@dataclass(frozen=True)
class ColourRule:
    """The arcsinh rendering of three bands into RGB (Lupton et al. 2004), as the Legacy Surveys viewer does it.

    `scales` belong to `bands` in order, blue first: the last band becomes red.
    """

    name: str = "ls-dr8-grz"
    bands: tuple[str, ...] = ("g", "r", "z")
    scales: tuple[float, ...] = (6.0, 3.4, 2.2)
    offset: float = 0.03
    stretch: float = 20.0

    def sky_level(self) -> int:
        """Grey level (0 to 255) of a pixel without any flux."""
        return round(255 * math.asinh(self.stretch * self.offset) / math.sqrt(self.stretch))


DR8_GRZ = ColourRule()


def colour_rule(flux: Pixels, rule: ColourRule = DR8_GRZ) -> Pixels:
    """Render flux as the viewer's DR8 *grz* JPEG layer does, the rendering from which Galaxy10 DECaLS was made.

    Parameters
    ----------
    flux : float32 (N, 3, H, W), bands g, r, z in nanomaggies per pixel, FITS row order (row 0 is south).

    Returns
    -------
    uint8 (N, H, W, 3) RGB with north up; a tensor on the device of `flux`, or an array when an array was given.
    Pixels that are not finite count as no flux; those beyond 1e9 nanomaggies as 1e9.

    Raises
    ------
    ValueError : `flux` has not four dimensions or not the bands of the rule.
    """
    if flux.ndim != 4 or flux.shape[1] != len(rule.bands):
        raise ValueError(
            f"flux must be (N, {len(rule.bands)}, H, W) with bands {rule.bands}, found {tuple(flux.shape)}"
        )
    if isinstance(flux, np.ndarray):
        native = np.ascontiguousarray(flux, dtype=np.float32)  # FITS arrays are big-endian, torch has no such thing
        return colour_rule(torch.from_numpy(native), rule).numpy()
    rendered = [_render(_finite(part), rule).permute(0, 2, 3, 1) for part in flux.split(_rows_at_a_time(flux))]
    return torch.cat(rendered).contiguous()


def _rows_at_a_time(images: Tensor) -> int:
    """How many images to work on at a time: all of them on a GPU."""
    return max(1, len(images)) if images.is_cuda else max(1, _CHUNK // max(1, images[:1].numel()))


def _finite(flux: Tensor) -> Tensor:
    """A float32 copy that the colour rule can render: no flux where it is not finite, nothing absurdly bright."""
    return torch.nan_to_num(flux.float(), nan=0.0, posinf=0.0, neginf=0.0).clamp_(-_BRIGHTEST, _BRIGHTEST)


def _render(flux: Tensor, rule: ColourRule) -> Tensor:
    """Finite float32 flux (N, 3, H, W), south up, to uint8 RGB (N, 3, H, W), north up. Works in place of `flux`."""
    scales = torch.tensor(rule.scales, device=flux.device).view(1, -1, 1, 1)
    scaled = flux.mul_(scales).add_(rule.offset)  # (N, 3, H, W)
    intensity = scaled.clamp(min=0).mean(dim=1, keepdim=True)  # (N, 1, H, W)
    intensity.masked_fill_(intensity == 0, 1e-6)
    factor = _asinh(rule.stretch * intensity).div_(intensity).mul_(255 / math.sqrt(rule.stretch))
    planes = scaled.mul_(factor).clamp_(0, 255).round_().to(torch.uint8)
    return planes.flip(1, 2)  # bands blue→red become RGB; row 0 becomes north


def _asinh(x: Tensor) -> Tensor:
    """asinh of x ≥ 0 by a formula that keeps its digits near zero and is made of what a CPU does fast."""
    squared = x * x
    return (x + squared / (1 + (1 + squared).sqrt_())).log1p_()


def _to_uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Preprocessing:
    """How stamps become the input of one network.

    Parameters
    ----------
    image_size : side of the network's input in pixels.
    field_pixels, pixel_scales : the field of view is `field_pixels` at one of the `pixel_scales` (arcsec per pixel).
        A stamp at one of these scales is taken as it is, one at any other is resampled to the first.
    rendering : name of the rendering of the training images; equals `colour.name` when the images followed that rule.
    mean, std : normalisation of RGB in 0…1. The defaults were measured on the 60 real Galaxy10 images at hand.
    """

    image_size: int = 256
    field_pixels: int = 256
    pixel_scales: tuple[float, ...] = (0.262, 0.524)
    colour: ColourRule = DR8_GRZ
    rendering: str = DR8_GRZ.name
    mean: tuple[float, float, float] = (0.166, 0.161, 0.157)
    std: tuple[float, float, float] = (0.117, 0.113, 0.105)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over every setting and the revision of the arithmetic."""
        text = json.dumps({"revision": _REVISION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a model card, the same before and after JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`."""
        plain = _with_tuples(values)
        return cls(colour=ColourRule(**_with_tuples(plain.pop("colour"))), **plain)

    def is_training_scale(self, pixscale: np.ndarray) -> np.ndarray:
        """Whether each pixel scale (float (N,), arcsec, NaN if unknown) is one of the training: bool (N,)."""
        scales = np.asarray(self.pixel_scales)
        with np.errstate(invalid="ignore"):
            return (np.abs(np.asarray(pixscale)[:, None] / scales - 1) < _SCALE_TOLERANCE).any(axis=1)

    def covers_field(self, pixscale: np.ndarray, height: int, width: int) -> np.ndarray:
        """Whether a stamp of this size holds the whole field of view: bool (N,); False where the scale is unknown."""
        pixscale = np.asarray(pixscale, dtype=np.float64)
        step = np.where(self.is_training_scale(pixscale), pixscale, self.pixel_scales[0])
        with np.errstate(invalid="ignore"):
            return min(height, width) * pixscale >= self.field_pixels * step * (1 - _SCALE_TOLERANCE)

    def pixels_from_flux(self, flux: Tensor, pixscale: np.ndarray) -> Tensor:
        """Flux float32 (N, 3, H, W) in nanomaggies at `pixscale` arcsec (N,) to uint8 (N, 3, S, S), north up.

        Flux is brought to the training scale *before* the colour rule, which is not linear. The viewer keeps surface
        brightness when it resamples (one galaxy at 0.262 and at 0.10 arcsec has the same peak), so values are not
        rescaled.
        """
        step, parts = _rows_at_a_time(flux), []
        for first in range(0, max(len(flux), 1), step):
            part = _finite(flux[first : first + step])
            field = self._by_scale(part, pixscale[first : first + step], fill=0.0)
            parts.append(self._to_size(_render(field, self.colour)))
        return torch.cat(parts)

    def pixels_from_rgb(self, rgb: Tensor, pixscale: np.ndarray) -> Tensor:
        """RGB uint8 (N, H, W, 3), north up, at `pixscale` arcsec (N,) to uint8 (N, 3, S, S).

        Where the scale is unknown (NaN) the whole picture is taken as the field of view; one that is not square is
        padded to a square, for stretching would make round galaxies long.
        """
        planes = rgb.permute(0, 3, 1, 2)
        side = (self.field_pixels, self.field_pixels)
        if planes.shape[-2:] != side or not (self.is_training_scale(pixscale) | np.isnan(pixscale)).all():
            planes = _to_uint8(self._by_scale(planes.float(), pixscale, fill=float(self.colour.sky_level())))
        return self._to_size(planes)

    def to_input(self, pixels: Tensor) -> Tensor:
        """Model-ready pixels (N, 3, S, S), 0 to 255, to the network's normalised float32 input, channels last."""
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    def _by_scale(self, planes: Tensor, pixscale: np.ndarray, fill: float) -> Tensor:
        """Bring float planes (N, 3, H, W) to the field of view (N, 3, field, field), group by group of equal scale."""
        scales = np.asarray(pixscale, dtype=np.float64)
        groups = list(_groups_of_equal(scales))
        if len(groups) == 1:
            return self._to_field(planes, float(scales[0]), fill)
        field = planes.new_empty(len(planes), planes.shape[1], self.field_pixels, self.field_pixels)
        for rows in groups:
            index = torch.from_numpy(rows).to(planes.device)
            field[index] = self._to_field(planes[index], float(scales[rows[0]]), fill)
        return field

    def _to_field(self, planes: Tensor, pixscale: float, fill: float) -> Tensor:
        if math.isnan(pixscale):
            planes = _crop_or_pad(planes, max(planes.shape[-2:]), fill)
            return _resize(planes, self.field_pixels, self.field_pixels)
        if not self.is_training_scale(np.array([pixscale]))[0]:
            # A coarse scale must not blow up memory: nothing beyond the field is needed, and a field of less than one
            # pixel (a header in wrong units) is magnified no further.
            zoom = min(pixscale / self.pixel_scales[0], float(self.field_pixels))
            planes = _crop_or_pad(planes, math.ceil(self.field_pixels / zoom) + 4, fill, pad=False)
            height, width = (max(1, round(side * zoom)) for side in planes.shape[-2:])
            planes = _resize(planes, height, width)
        return _crop_or_pad(planes, self.field_pixels, fill)

    def _to_size(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-1] == self.image_size:
            return pixels
        return _to_uint8(_resize(pixels.float(), self.image_size, self.image_size))


def _groups_of_equal(scales: np.ndarray) -> Iterator[np.ndarray]:
    """Row indices int64 of each distinct value, NaN being one value."""
    _, group = np.unique(scales, return_inverse=True, equal_nan=True)
    for g in np.unique(group):
        yield np.flatnonzero(group == g)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """The same with tuples where JSON made lists of them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _resize(planes: Tensor, height: int, width: int) -> Tensor:
    if planes.shape[-2:] == (height, width):
        return planes
    return F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True, align_corners=False)


def _crop_or_pad(planes: Tensor, side: int, fill: float, *, pad: bool = True) -> Tensor:
    """Cut or fill (N, C, H, W) around its centre to `side`.

    With `pad=False` a smaller side stays as it is, and a larger one is cut by the same amount at both ends, to `side`
    or one more: what is magnified next must not be moved by half a pixel.
    """
    amounts: list[int] = []
    for length in (planes.shape[-1], planes.shape[-2]):  # F.pad counts from the last axis
        if pad:
            before = (side - length) // 2
            amounts += [before, side - length - before]
        else:
            amounts += [-(max(length - side, 0) // 2)] * 2
    return F.pad(planes, amounts, value=fill) if any(amounts) else planes
