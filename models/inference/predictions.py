"""From the logits of an ensemble to predictions: calibrated probabilities, prediction sets, spread, novelty.

The logits of the passes are averaged, then divided by the temperature. On three small networks trained on the
simulated sky (250 test images) this gave calibration errors of 0.039 to 0.055 with eight views, against 0.049 to 0.068
for the mean of the probabilities, whose likelihood was better by 0.003 to 0.016 nats. For the ensemble of the three,
one much better than the others, the mean of probabilities was badly calibrated (0.08 to 0.10 against 0.03 to 0.05).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from models.inference.ensemble import EnsembleLogits
from models.uncertainty.conformal import ConformalSets, fit_conformal_sets
from models.uncertainty.ood import OODScale, fit_ood_scale
from models.uncertainty.temperature import fit_temperature


@dataclass(frozen=True)
class Prediction:
    """Predictions for N images.

    probabilities : float32 (N, C), calibrated, rows sum to 1.
    sets : bool (N, C), the conformal prediction sets.
    spread : float32 (N,), standard deviation over the passes of the probability of the most probable class; 0 for one
        pass.
    agreement : float32 (N,), share of the passes that alone have the most probable class.
    novelty : float32 (N,), 0 typical … 1 unlike anything in the training set.
    n_views : passes averaged: views times members of an ensemble.
    """

    probabilities: np.ndarray
    sets: np.ndarray
    spread: np.ndarray
    agreement: np.ndarray
    novelty: np.ndarray
    n_views: int

    def __len__(self) -> int:
        return len(self.probabilities)


@dataclass(frozen=True)
class UncertaintyModel:
    """What calibration found on the validation split, for an ensemble with its number of views."""

    temperature: float
    conformal: ConformalSets
    novelty: OODScale

    def of(self, outputs: EnsembleLogits) -> Prediction:
        """The prediction from the outputs of an ensemble for N images."""
        probabilities = calibrated_probabilities(outputs, self.temperature)
        best = torch.from_numpy(probabilities).argmax(dim=1)
        chosen = (outputs.logits / self.temperature).softmax(dim=2)[:, torch.arange(len(best)), best]  # (V, N)
        return Prediction(
            probabilities=probabilities,
            sets=self.conformal.sets(probabilities),
            spread=chosen.numpy().std(axis=0),
            agreement=(outputs.logits.argmax(dim=2) == best).float().mean(dim=0).numpy(),
            novelty=self.novelty.score(outputs.distance),
            n_views=len(outputs.logits),
        )


def calibrated_probabilities(outputs: EnsembleLogits, temperature: float) -> np.ndarray:
    """Probabilities float32 (N, C) of the mean logits of the passes at a temperature."""
    return (outputs.logits.mean(dim=0) / temperature).softmax(dim=1).numpy()


def fit_uncertainty(outputs: EnsembleLogits, labels: np.ndarray, coverage: float) -> UncertaintyModel:
    """Calibrate on the outputs for validation images with labels int64 (N,), N of at least 1."""
    temperature = fit_temperature(outputs.logits.mean(dim=0), torch.from_numpy(labels))
    sets = fit_conformal_sets(calibrated_probabilities(outputs, temperature), labels, coverage)
    return UncertaintyModel(temperature, sets, fit_ood_scale(outputs.distance))
