"""The recipe against golden colours, a scalar evaluation of the colour rule, and galaxies drawn at several scales."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.preprocessing import DR8_GRZ, ColourRule, Preprocessing, colour_rule

SKY = DR8_GRZ.sky_level()


def galaxy(side: int, pixscale: float, *, radius: float = 4.0, peak: float = 0.5) -> np.ndarray:
    """Flux float32 (3, side, side) of a round Gaussian galaxy: `radius` in arcsec, the same surface brightness."""
    y, x = np.indices((side, side)) - (side - 1) / 2
    profile = np.exp(-0.5 * (np.hypot(x, y) * pixscale / radius) ** 2)
    return np.stack([profile * peak * b for b in (0.5, 0.8, 1.0)]).astype(np.float32)


def pixels(recipe: Preprocessing, flux: np.ndarray, *pixscale: float) -> Tensor:
    batch = torch.from_numpy(flux if flux.ndim == 4 else flux[None])
    return recipe.pixels_from_flux(batch, np.array(pixscale))


# --- colour rule --------------------------------------------------------------------------------------------------


def by_the_page(g: float, r: float, z: float) -> tuple[int, int, int]:
    """The colour rule of shared/spec/legacy_surveys.md for one pixel, in Python floats."""
    values = [g * 6.0 + 0.03, r * 3.4 + 0.03, z * 2.2 + 0.03]
    intensity = sum(max(0.0, v) for v in values) / 3
    stretched = math.asinh(20.0 * intensity) / math.sqrt(20.0)
    blue, green, red = (min(1.0, max(0.0, v * stretched / (intensity or 1e-6))) * 255 for v in values)
    return round(red), round(green), round(blue)


def test_colours_of_a_real_galaxy_are_those_of_the_golden_file(shared: Path) -> None:
    flux = fits.getdata(shared / "data/fits/decals_grz_cutouts/native_example_a.fits")
    golden = np.load(shared / "golden/rgb_native_example_a.npz")["rgb"]
    assert flux.dtype.byteorder == ">"  # so that big-endian input is tested with it
    difference = colour_rule(flux[None])[0].astype(int) - golden
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.001


@given(st.tuples(*[st.floats(-0.2, 30.0, allow_subnormal=False)] * 3))
@settings(max_examples=200, deadline=None)
def test_colour_of_a_pixel_follows_the_formula(flux: tuple[float, float, float]) -> None:
    found = colour_rule(np.array(flux, dtype=np.float32).reshape(1, 3, 1, 1))[0, 0, 0]
    assert np.abs(found.astype(int) - by_the_page(*flux)).max() <= 1


def test_numpy_and_torch_give_the_same_picture() -> None:
    flux = np.random.default_rng(1).normal(0.05, 0.3, (2, 3, 9, 7)).astype(np.float32)
    from_array, from_tensor = colour_rule(flux), colour_rule(torch.from_numpy(flux))
    assert from_array.shape == (2, 9, 7, 3) and from_array.dtype == np.uint8
    assert isinstance(from_tensor, Tensor)
    np.testing.assert_array_equal(from_array, from_tensor.numpy())


def test_big_endian_flux_is_understood() -> None:
    flux = np.random.default_rng(2).normal(0.05, 0.3, (1, 3, 5, 5)).astype(np.float32)
    np.testing.assert_array_equal(colour_rule(flux.astype(">f4")), colour_rule(flux))


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_count_as_no_flux(missing: float) -> None:
    flux = galaxy(16, 0.262)[None]
    flux[0, :, 3, 4] = missing
    blank = flux.copy()
    blank[0, :, 3, 4] = 0.0
    np.testing.assert_array_equal(colour_rule(flux), colour_rule(blank))
    assert (colour_rule(flux)[0, 16 - 1 - 3, 4] == SKY).all()


def test_absurd_flux_is_white_and_not_an_overflow() -> None:
    flux = np.full((1, 3, 4, 4), 3e38, dtype=np.float32)
    assert (colour_rule(flux) == 255).all()
    assert (colour_rule(-flux) == 0).all()
    assert (pixels(Preprocessing(image_size=32, field_pixels=4), flux, 0.1).amax() == 255).all()


def test_no_flux_has_the_grey_of_the_sky() -> None:
    assert (colour_rule(np.zeros((1, 3, 4, 4), np.float32)) == SKY).all()
    assert by_the_page(0, 0, 0) == (SKY, SKY, SKY)


def test_north_is_up_and_red_comes_first() -> None:
    flux = np.zeros((1, 3, 6, 5), np.float32)
    flux[0, 2, 0, 1] = 1.0  # z band, southern row, second column
    picture = colour_rule(flux)[0]
    red, green, blue = picture[5, 1]
    assert red > 150 and red > 10 * max(green, blue)
    picture[5, 1] = SKY
    assert (picture == SKY).all()


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 2, 8, 8), (1, 4, 8, 8)])
def test_flux_without_the_bands_of_the_rule_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="bands"):
        colour_rule(np.zeros(shape, np.float32))


# --- the recipe as a value ----------------------------------------------------------------------------------------

CHANGED: dict[str, Any] = {
    "image_size": 64,
    "field_pixels": 200,
    "pixel_scales": (0.262,),
    "colour": replace(DR8_GRZ, stretch=21.0),
    "rendering": "something-else",
    "mean": (0.1, 0.161, 0.157),
    "std": (0.117, 0.2, 0.105),
}
CHANGED_COLOUR: dict[str, Any] = {
    "name": "other",
    "bands": ("g", "i", "z"),
    "scales": (6.0, 3.4, 2.3),
    "offset": 0.04,
    "stretch": 10.0,
}


def test_digest_changes_with_every_setting() -> None:
    assert set(CHANGED) == {f.name for f in fields(Preprocessing)}
    assert set(CHANGED_COLOUR) == {f.name for f in fields(ColourRule)}
    variants = [replace(Preprocessing(), **{name: value}) for name, value in CHANGED.items()]
    variants += [Preprocessing(colour=replace(DR8_GRZ, **{name: value})) for name, value in CHANGED_COLOUR.items()]
    digests = {Preprocessing().digest, *(v.digest for v in variants)}
    assert len(digests) == 1 + len(variants)


@pytest.mark.parametrize(
    "recipe", [Preprocessing(), Preprocessing(image_size=64, mean=(0.1, 0.2, 0.3), pixel_scales=(0.262,))]
)
def test_recipe_comes_back_from_json(recipe: Preprocessing) -> None:
    assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict()
    back = Preprocessing.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert back == recipe
    assert back.digest == recipe.digest
    assert Preprocessing.from_dict(recipe.to_dict()) == recipe


# --- field of view and scale --------------------------------------------------------------------------------------


def test_one_galaxy_at_two_pixel_scales_gives_nearly_the_same_pixels() -> None:
    recipe = Preprocessing()
    fine = pixels(recipe, galaxy(512, 0.131), 0.131).int()
    native = pixels(recipe, galaxy(256, 0.262), 0.262).int()
    assert native.amax() > 200  # there is something to compare
    assert (fine - native).abs().max() <= 2


def test_a_coarse_galaxy_stays_in_the_centre() -> None:
    """A stamp of 301 pixels is cut to some 72 and magnified: half an input pixel is two of the output."""
    fine = pixels(Preprocessing(), galaxy(301, 1.0), 1.0)[0].float().sum(0) - 3 * SKY
    weight = fine.clamp(min=0)
    centre = [(weight.sum(axis) * torch.arange(256)).sum() / weight.sum() for axis in (0, 1)]
    assert max(abs(float(c) - 127.5) for c in centre) < 0.75


def test_real_galaxy_at_two_pixel_scales_agrees(shared: Path) -> None:
    """temp_small (0.262 arcsec) and example_a (0.10 arcsec) are the same galaxy."""
    folder, recipe = shared / "data/fits/decals_grz_cutouts", Preprocessing()
    native = pixels(recipe, fits.getdata(folder / "temp_small.fits").astype(np.float32), 0.262)
    fine = pixels(recipe, fits.getdata(folder / "example_a.fits").astype(np.float32), 0.1)
    centre = slice(128 - 30, 128 + 30)  # farther out noise prevails, and it differs
    apart = (native.float() - fine.float())[..., centre, centre].abs().mean()
    mirrored = (native.float() - fine.flip(2).float())[..., centre, centre].abs().mean()
    assert apart < 8
    assert mirrored > 2 * apart  # so the number says something


def test_the_second_training_scale_passes_as_it_is() -> None:
    flux = galaxy(256, 0.524)
    np.testing.assert_array_equal(pixels(Preprocessing(), flux, 0.524), pixels(Preprocessing(), flux, 0.262))
    assert not torch.equal(pixels(Preprocessing(), flux, 0.524), pixels(Preprocessing(), flux, 0.6))


@pytest.mark.parametrize(("side", "pixscale"), [(100, 0.262), (101, 0.262), (200, 0.131)])
def test_small_stamps_are_padded_with_sky_and_not_stretched(side: int, pixscale: float) -> None:
    recipe = Preprocessing()
    small = pixels(recipe, galaxy(side, pixscale, radius=2.0), pixscale)[0].int()
    whole = pixels(recipe, galaxy(256 + side % 2, 0.262, radius=2.0), 0.262)[0].int()
    assert (small[:, :70] == SKY).all() and (small[:, :, -70:] == SKY).all()
    assert (small - whole).abs().max() <= 2
    assert not recipe.covers_field(np.array([pixscale]), side, side)[0]


def test_padding_of_pictures_has_the_grey_of_the_sky() -> None:
    rgb = torch.full((1, 100, 100, 3), 200, dtype=torch.uint8)
    found = Preprocessing().pixels_from_rgb(rgb, np.array([0.262]))[0]
    assert (found[:, 78:178, 78:178] == 200).all()
    assert (found[:, :78] == SKY).all() and (found[:, :, 178:] == SKY).all()


def test_picture_of_unknown_scale_is_taken_whole() -> None:
    rgb = torch.zeros(1, 512, 512, 3, dtype=torch.uint8)
    rgb[:, :256] = 240  # the northern half
    found = Preprocessing().pixels_from_rgb(rgb, np.array([np.nan]))[0]
    assert (found[:, :126] == 240).all() and (found[:, 130:] == 0).all()


def test_picture_of_unknown_scale_that_is_not_square_keeps_its_proportions() -> None:
    y, x = np.indices((200, 400))
    disc = (np.hypot(x - 199.5, y - 99.5) < 80).astype(np.uint8) * 200
    found = Preprocessing().pixels_from_rgb(
        torch.from_numpy(np.repeat(disc[None, ..., None], 3, 3)), np.array([np.nan])
    )[0, 0]
    bright = found > 120
    assert abs(int(bright.any(0).sum()) - int(bright.any(1).sum())) <= 2


def test_pictures_at_a_training_scale_are_not_touched() -> None:
    rgb = torch.randint(0, 256, (3, 256, 256, 3), dtype=torch.uint8)
    found = Preprocessing().pixels_from_rgb(rgb, np.array([0.262, 0.524, np.nan]))
    assert torch.equal(found, rgb.permute(0, 3, 1, 2))


def test_pictures_of_another_scale_are_resampled() -> None:
    rgb = torch.zeros(2, 256, 256, 3, dtype=torch.uint8)
    rgb[:, 96:160, 96:160] = 250
    native, doubled = Preprocessing().pixels_from_rgb(rgb, np.array([0.262, 0.4]))[:, 0]
    assert int((doubled > 125).any(0).sum()) == pytest.approx(64 * 0.4 / 0.262, abs=2)
    assert int((native > 125).any(0).sum()) == 64


@pytest.mark.parametrize("kind", ["flux", "rgb"])
def test_a_batch_gives_what_each_stamp_gives_alone(kind: str) -> None:
    recipe, scales = Preprocessing(image_size=64), np.array([0.262, 0.1, np.nan, 0.524, 0.1, 1.0])
    flux = np.random.default_rng(3).normal(0.1, 0.2, (6, 3, 225, 225)).astype(np.float32)
    if kind == "flux":
        batch, make = torch.from_numpy(flux), recipe.pixels_from_flux
    else:
        batch, make = torch.from_numpy(colour_rule(flux)), recipe.pixels_from_rgb
    together = make(batch, scales)
    assert together.shape == (6, 3, 64, 64) and together.dtype == torch.uint8
    for i in range(6):
        assert torch.equal(together[i : i + 1], make(batch[i : i + 1], scales[i : i + 1]))


@pytest.mark.parametrize("pixscale", [1e-6, 3600.0, 1e9])
def test_a_header_in_wrong_units_does_not_exhaust_memory(pixscale: float) -> None:
    assert pixels(Preprocessing(image_size=64), galaxy(64, 0.262), pixscale).shape == (1, 3, 64, 64)


def test_an_empty_batch_stays_empty() -> None:
    recipe, none = Preprocessing(image_size=64), np.empty(0)
    assert recipe.pixels_from_flux(torch.zeros(0, 3, 99, 99), none).shape == (0, 3, 64, 64)
    assert recipe.pixels_from_rgb(torch.zeros(0, 99, 99, 3, dtype=torch.uint8), none).shape == (0, 3, 64, 64)


def test_scales_within_a_percent_count_as_equal() -> None:
    found = Preprocessing().is_training_scale(np.array([0.262, 0.2641, 0.2655, 0.524, 0.1, np.nan]))
    assert found.tolist() == [True, True, False, True, False, False]


@pytest.mark.parametrize(
    ("pixscale", "side", "covered"),
    [
        (0.262, 256, True),
        (0.262, 225, False),
        (0.524, 256, True),
        (0.524, 200, False),
        (0.1, 671, True),
        (0.1, 509, False),
        (1.0, 68, True),
        (math.nan, 999, False),
    ],
)
def test_field_of_view_is_covered_or_not(pixscale: float, side: int, covered: bool) -> None:
    assert Preprocessing().covers_field(np.array([pixscale]), side, side + 50).tolist() == [covered]


def test_network_input_is_normalised_by_channel() -> None:
    recipe = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    image = torch.tensor([51, 102, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    found = recipe.to_input(image)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([0.2, 0.8, 3.5]))
