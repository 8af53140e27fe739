"""What is served is what was calibrated: the mean over views and members, and the numbers that follow from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.errors import ModelError
from models.inference.ensemble import Ensemble, EnsembleLogits
from models.inference.predictions import UncertaintyModel, fit_uncertainty
from models.networks.astroformer import create_model
from models.preprocessing import Preprocessing
from models.uncertainty.ood import FeatureSpace, fit_feature_space

RECIPE = Preprocessing(image_size=32)
CPU = torch.device("cpu")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create_model("cpu_tiny", image_size=32, num_classes=4).eval()


def images(count: int, seed: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def space_of(net: nn.Module) -> FeatureSpace:
    ensemble = Ensemble([net], [], RECIPE, views=1, device=CPU)
    return fit_feature_space(ensemble.features(images(40, 1), np.arange(40)), np.arange(40) % 4)


def ensemble_of(*seeds: int, views: int = 1, batch_size: int = 64) -> Ensemble:
    nets = [network(seed) for seed in seeds]
    return Ensemble(nets, [space_of(net) for net in nets], RECIPE, views=views, device=CPU, batch_size=batch_size)


def calibrated(ensemble: Ensemble) -> UncertaintyModel:
    return fit_uncertainty(ensemble.predict(images(60, 2)), np.arange(60) % 4, 0.8)


def logits_of(net: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return net(RECIPE.to_input(pixels))


def test_eight_views_are_the_mean_made_by_hand() -> None:
    ensemble, pixels = ensemble_of(0, views=8), images(5)
    confidence = calibrated(ensemble)
    found = confidence.of(ensemble.predict(pixels))
    turned = [pixels.rot90(k, dims=(2, 3)) for k in range(4)]
    each = torch.stack([logits_of(network(), view) for t in turned for view in (t, t.flip(2))])
    by_hand = (each.mean(0) / confidence.temperature).softmax(1).numpy()
    np.testing.assert_allclose(found.probabilities, by_hand, atol=1e-5)
    best = by_hand.argmax(1)
    of_best = (each / confidence.temperature).softmax(2).numpy()[:, np.arange(5), best]
    np.testing.assert_allclose(found.spread, of_best.std(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.agreement, (each.numpy().argmax(2) == best).mean(0), atol=1e-6)
    assert found.n_views == 8 and found.spread.min() > 0 and len(found) == 5


def test_one_view_is_the_plain_network() -> None:
    ensemble = ensemble_of(0)
    confidence = calibrated(ensemble)
    found = confidence.of(ensemble.predict(images(5)))
    by_hand = (logits_of(network(), images(5)) / confidence.temperature).softmax(1).numpy()
    np.testing.assert_allclose(found.probabilities, by_hand, atol=1e-6)
    assert found.n_views == 1 and not found.spread.any() and (found.agreement == 1).all()
    np.testing.assert_array_equal(found.sets, found.probabilities >= np.float32(confidence.conformal.thresholds))


@given(st.integers(0, 3), st.booleans(), st.integers(0, 100))
@settings(max_examples=12, deadline=None)
def test_a_turned_or_mirrored_copy_gets_the_same_prediction(turns: int, mirror: bool, seed: int) -> None:
    pixels = images(2, seed)
    copy = pixels.rot90(turns, dims=(2, 3))
    copy = copy.flip(3) if mirror else copy
    one, other = EIGHT.predict(pixels), EIGHT.predict(copy)
    np.testing.assert_allclose(one.distance, other.distance, rtol=1e-3)
    first, second = CONFIDENCE.of(one), CONFIDENCE.of(other)
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-5)
    np.testing.assert_allclose(first.spread, second.spread, atol=1e-5)
    np.testing.assert_allclose(first.novelty, second.novelty, atol=1e-3)


EIGHT = ensemble_of(0, views=8)
CONFIDENCE = calibrated(EIGHT)


def test_members_are_averaged_and_one_alone_is_itself() -> None:
    pixels = images(4)
    passes = ensemble_of(1, 2, views=8).predict(pixels)
    parts = [ensemble_of(seed, views=8).predict(pixels) for seed in (1, 2)]
    assert passes.logits.shape == (16, 4, 4)
    torch.testing.assert_close(passes.logits.mean(0), (parts[0].logits.mean(0) + parts[1].logits.mean(0)) / 2)
    np.testing.assert_allclose(passes.distance, (parts[0].distance + parts[1].distance) / 2, rtol=1e-4)
    assert not torch.allclose(parts[0].logits, parts[1].logits)


def test_rows_of_a_larger_set_are_those_rows_whatever_the_batch() -> None:
    pixels, rows = images(20), np.array([3, 4, 11, 19])
    whole = ensemble_of(0).predict(pixels)
    for batch_size in (1, 3, 64):
        some = ensemble_of(0, batch_size=batch_size).predict(pixels, rows)
        torch.testing.assert_close(some.logits, whole.logits[:, rows], atol=1e-5, rtol=0)
        np.testing.assert_allclose(some.distance, whole.distance[rows], rtol=1e-3)


def test_no_images_give_an_empty_prediction() -> None:
    found = CONFIDENCE.of(EIGHT.predict(images(0)))
    assert found.probabilities.shape == found.sets.shape == (0, 4) and len(found.novelty) == len(found.spread) == 0


def test_noise_that_the_features_never_saw_is_novel() -> None:
    """The training images here are noise: what is unlike them is an even picture."""
    usual, blank = images(30, 5), torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    scores = CONFIDENCE.of(EIGHT.predict(torch.cat([usual, blank]))).novelty
    assert scores[-1] > 0.97 and (scores[:-1] < 0.97).mean() > 0.9


def test_logits_that_are_not_finite_are_refused() -> None:
    net = network()
    with torch.no_grad():
        net.get_parameter("head.fc.bias")[1] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        Ensemble([net], [space_of(network())], RECIPE, views=1, device=CPU).predict(images(2))


@pytest.mark.parametrize("count", [1, 2, 12])
def test_a_handful_of_validation_images_works(count: int) -> None:
    passes = EIGHT.predict(images(count, 3))
    confidence = fit_uncertainty(passes, np.arange(count) % 4, 0.9)
    found = confidence.of(EIGHT.predict(images(3)))
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)
    assert np.isfinite(found.novelty).all() and found.sets.any(axis=1).all()


def test_coverage_holds_on_later_images_of_a_network() -> None:
    """Labels drawn from what a ensemble says, with a temperature that it does not know."""
    rng = np.random.default_rng(4)
    logits = torch.from_numpy(rng.normal(size=(3, 4000, 5)).astype(np.float32) * 3)
    p = (logits.mean(0).double() / 2).softmax(1).numpy()
    labels = np.array([rng.choice(5, p=row / row.sum()) for row in p])
    distance = rng.random(4000).astype(np.float32)

    def part(rows: slice) -> EnsembleLogits:
        return EnsembleLogits(logits[:, rows], distance[rows])

    confidence = fit_uncertainty(part(slice(2000)), labels[:2000], 0.9)
    assert confidence.temperature == pytest.approx(2, rel=0.1)
    sets = confidence.of(part(slice(2000, 4000))).sets
    inside = sets[np.arange(2000), labels[2000:]]
    assert inside.mean() == pytest.approx(0.9, abs=0.025)
    for c in range(5):
        assert inside[labels[2000:] == c].mean() == pytest.approx(0.9, abs=0.06)
