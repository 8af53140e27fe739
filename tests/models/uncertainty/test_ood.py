"""Distance to the training images and the score made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.errors import ModelError
from models.uncertainty.ood import (
    FEATURES,
    FeatureSpace,
    OODScale,
    fit_feature_space,
    fit_ood_scale,
    load_feature_space,
)


def clouds(rng: np.random.Generator, count: int, dimensions: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds of the same, elongated shape around three centres; `shift` moves all along the narrow axis."""
    labels = np.arange(count) % 3
    centres = np.zeros((3, dimensions))
    centres[[0, 1, 2], [0, 1, 0]] = [-30, 30, 30]
    widths = np.r_[5.0, 5.0, np.full(dimensions - 3, 1.0), 0.1]
    points = centres[labels] + rng.normal(size=(count, dimensions)) * widths
    points[:, -1] += shift
    return points.astype(np.float32), labels


@pytest.mark.parametrize("dimensions", [8, 40])
def test_a_small_step_along_a_narrow_axis_is_far(dimensions: int) -> None:
    """Mahalanobis: a step of 2 along an axis of deviation 0.1 is seen among others of 1 to 5."""
    rng = np.random.default_rng(0)
    space = fit_feature_space(*clouds(rng, 3000, dimensions))
    near, far = (space.distance(clouds(rng, 200, dimensions, shift)[0]) for shift in (0.0, 2.0))
    assert near.dtype == np.float32 and (far > near.max()).mean() > 0.95
    if dimensions == 8:  # chi of 8 degrees of freedom
        assert np.mean(near**2) == pytest.approx(8, rel=0.15)


def test_a_class_without_training_images_has_no_centre() -> None:
    features, labels = clouds(np.random.default_rng(1), 300, 8)
    space = fit_feature_space(features[labels != 1], labels[labels != 1])
    assert space.means.shape == (2, 8)
    assert space.distance(features[labels == 1]).min() > space.distance(features[labels == 0]).max()


@pytest.mark.filterwarnings("ignore:Only one sample")
@pytest.mark.parametrize(("count", "dimensions"), [(1, 4), (2, 300), (5, 40)])
def test_fewer_images_than_features_give_finite_distances(count: int, dimensions: int) -> None:
    features = np.random.default_rng(2).normal(size=(count, dimensions)).astype(np.float32)
    space = fit_feature_space(features, np.zeros(count, int))
    assert np.isfinite(space.distance(features)).all() and np.isfinite(space.distance(features + 100)).all()
    same = fit_feature_space(np.ones((4, dimensions), np.float32), np.zeros(4, int))
    assert np.isfinite(same.distance(features)).all() and same.distance(np.ones((1, dimensions), np.float32)) == 0


def test_a_batch_does_not_matter_and_the_file_gives_it_back(tmp_path: Path) -> None:
    features, labels = clouds(np.random.default_rng(3), 200, 300)
    space = fit_feature_space(features, labels)
    space.save(tmp_path)
    loaded = load_feature_space(tmp_path)
    whole = space.distance(features)
    np.testing.assert_array_equal(loaded.distance(features), whole)
    np.testing.assert_allclose(np.concatenate([space.distance(f[None]) for f in features]), whole, rtol=1e-4)
    assert (tmp_path / FEATURES).stat().st_size < 4 * (3 + 300) * 300 + 1000


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x80\x04pickle"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / FEATURES).write_bytes(content)
    with pytest.raises(ModelError, match=r"features\.safetensors: .*train the model again"):
        load_feature_space(tmp_path)


# --- score --------------------------------------------------------------------------------------------------------


def test_the_score_is_the_share_of_validation_images_that_are_nearer() -> None:
    distances = np.random.default_rng(5).gamma(4.0, 2.0, 2000)
    scale = OODScale.model_validate_json(fit_ood_scale(distances).model_dump_json())
    scores = scale.score(distances)
    inside = scores <= 0.95
    shares = np.array([(distances < d).mean() for d in distances])
    np.testing.assert_allclose(scores[inside], shares[inside], atol=0.01)
    assert inside.mean() == pytest.approx(0.95, abs=0.002)


def test_beyond_the_knee_one_more_way_from_the_median_halves_what_is_left() -> None:
    scale = fit_ood_scale(np.linspace(0, 10, 1001))  # median 5, 95 % quantile 9.5
    np.testing.assert_allclose(scale.score(np.array([9.5, 14.0, 18.5])), [0.95, 0.975, 1 - 0.05 / 3], atol=1e-6)


@given(
    st.lists(st.floats(0, 1e4), min_size=1, max_size=40),
    st.lists(st.floats(0, 1e5), min_size=2, max_size=20),
)
@example(validation=[0.0, 2.225073858507e-311], distances=[0.0, 5e-324])  # both subnormal: once infinity
@settings(max_examples=80, deadline=None)
def test_scores_keep_the_order_of_distances_and_stay_below_one(validation: list[float], distances: list[float]) -> None:
    scale = fit_ood_scale(np.array(validation))
    scores = scale.score(np.sort(distances))
    assert (np.diff(scores) >= 0).all() and scores.min() >= 0 and scores.max() <= 1


def test_the_strangest_are_still_in_order_after_rounding() -> None:
    scale = fit_ood_scale(np.random.default_rng(6).gamma(4.0, 2.0, 300))
    scores = scale.score(scale.quantiles[-1] * np.array([1.2, 1.5, 2, 4, 8, 16, 32])).round(4)
    assert (np.diff(scores) > 0).all() and scores[-1] < 1


def test_one_validation_image_is_enough_for_a_scale() -> None:
    scores = fit_ood_scale(np.array([3.0])).score(np.array([1.0, 3.1, 6.0]))
    assert np.isfinite(scores).all() and 0 <= scores[0] < 0.95 < scores[1] < scores[2] < 1


def test_distances_to_two_centres_are_to_the_nearer() -> None:
    space = FeatureSpace(np.array([[0, 0], [10, 0]], np.float32), np.eye(2, dtype=np.float32))
    np.testing.assert_allclose(space.distance(np.array([[9, 0], [0, 3], [4, 0]], np.float32)), [1, 3, 4])
