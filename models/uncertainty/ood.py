"""How unlike the training images an image is, told from the features before the head.

The distance of an image is that of Mahalanobis from its features to the nearest class mean, with one covariance for
all classes (Lee et al. 2018, arXiv 1807.03888), shrunk (Ledoit & Wolf 2004). `OODScale` turns it into a score with
a meaning by the distances of validation images, which the network was not trained on either. Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.errors import ModelError

FEATURES = "features.safetensors"

_LEAST_VARIANCE = 1e-6  # of the largest; narrower axes would only measure rounding
_KNEE = 0.95  # share of validation distances up to which the score is that share
_KNOTS = 96  # quantiles of the validation distances that a card keeps
_LEAST_UNIT = 0.1  # of the 95 % quantile: where a handful of validation distances are all alike


@dataclass(frozen=True)
class FeatureSpace:
    """Where the training images of one network lie among its features.

    means : float32 (K, D), one for each class that has training images.
    axes : float32 (D, D), principal axes of the scatter around them as columns, each divided by the standard deviation
        along it. All are kept: what is strange often shows along the narrowest. The file has 1 to 4 % of the size of
        an Astroformer's weights.
    """

    means: np.ndarray
    axes: np.ndarray

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Distance to the nearest class mean, in standard deviations: float32 (N,) from features float32 (N, D)."""
        away = (features @ self.axes)[:, None, :] - self.means @ self.axes  # (N, K, D)
        return np.sqrt((away**2).sum(axis=2).min(axis=1)).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write it into a model folder."""
        save_file({"means": self.means, "axes": self.axes}, folder / FEATURES)


def load_feature_space(folder: Path) -> FeatureSpace:
    """Read what `save` wrote. Raises ModelError when it is missing or damaged."""
    path = folder / FEATURES
    try:
        tensors = load_file(path)
        return FeatureSpace(tensors["means"], tensors["axes"])
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{path}: cannot be loaded ({error}); train the model again") from error


def fit_feature_space(features: np.ndarray, labels: np.ndarray) -> FeatureSpace:
    """The feature space of training images: features float32 (N, D) with labels int (N,), N of at least 1."""
    from sklearn.covariance import ledoit_wolf  # deferred: loading a model does not need it

    classes, which = np.unique(labels, return_inverse=True)
    means = np.stack([features[which == k].mean(axis=0, dtype=np.float64) for k in range(len(classes))])
    covariance, _ = ledoit_wolf(features - means[which], assume_centered=True)
    variances, axes = np.linalg.eigh(covariance)
    least = _LEAST_VARIANCE * variances[-1] or 1.0  # without any scatter (an image a class) distances are plain
    scaled = axes / np.sqrt(np.maximum(variances, least))
    return FeatureSpace(means.astype(np.float32), np.ascontiguousarray(scaled, dtype=np.float32))


class OODScale(BaseModel):
    """From distance to score: quantiles of the distances of validation images, evenly from 0 to 95 %."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantiles: list[float]

    def score(self, distance: np.ndarray) -> np.ndarray:
        """Scores float32 (N,) in 0 … 1 of distances float (N,).

        Up to 0.95 the score is the share of validation images that are nearer to the training images. Beyond, where
        validation images are few, it is 1 - 0.05 / (1 + x), with x the way past their 95 % quantile in units of that
        from their median to it: 0.975 at x = 1, and 1 to four digits only beyond x = 1000, so that the strangest are
        still in order.
        """
        shares = np.linspace(0, _KNEE, len(self.quantiles))
        last = self.quantiles[-1]
        unit = max(last - float(np.interp(0.5, shares, self.quantiles)), _LEAST_UNIT * last)
        past = np.maximum(distance - last, 0) / max(unit, float(np.finfo(np.float32).tiny))
        inside = np.clip(np.interp(distance, self.quantiles, shares), 0, _KNEE)  # subnormal ones overflow
        return np.where(distance <= last, inside, 1 - (1 - _KNEE) / (1 + past)).astype(np.float32)


def fit_ood_scale(distance: np.ndarray) -> OODScale:
    """The scale of validation distances float (N,), N of at least 1."""
    quantiles = np.quantile(distance.astype(np.float64), np.linspace(0, _KNEE, _KNOTS))
    return OODScale(quantiles=quantiles.tolist())
