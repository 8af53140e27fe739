"""Logits of an ensemble of networks for views of images, before calibration.

An `Ensemble` holds one network or several. Each sees one view of each image, or eight (test-time augmentation); a pass
is one view seen by one network. Calibration and inference run the same code, so that what is calibrated is what is
predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.preprocessing import Preprocessing
from models.uncertainty.ood import FeatureSpace

Result = TypeVar("Result")


@dataclass(frozen=True)
class EnsembleLogits:
    """Of V passes over N images: logits float32 (V, N, C) on the CPU, and the distance to the training images.

    `distance` is float32 (N,), the mean over the passes of `FeatureSpace.distance`.
    """

    logits: Tensor
    distance: np.ndarray


class Ensemble:
    """Networks of one preprocessing on one device, with the feature space of each; all in evaluation mode."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        spaces: Sequence[FeatureSpace],
        preprocessing: Preprocessing,
        *,
        views: int,
        device: torch.device,
        batch_size: int = 64,
    ) -> None:
        self.networks = [_ready(network, device) for network in networks]
        self.spaces = list(spaces)
        self.preprocessing, self.views, self.device, self.batch_size = preprocessing, views, device, batch_size

    def predict(self, pixels: Tensor, rows: np.ndarray | None = None) -> EnsembleLogits:
        """Show model-ready pixels uint8 (N, 3, S, S), or those of their `rows`, to every network.

        A batch that does not fit on the GPU is halved, from then on.

        Raises
        ------
        ModelError : logits that are not finite.
        """
        parts = list(self._in_batches(self._forward, pixels, rows))
        if not parts:
            classes = int(self.networks[0].num_classes)  # type: ignore[arg-type]
            return EnsembleLogits(torch.empty(len(self.networks) * self.views, 0, classes), np.empty(0, np.float32))
        return EnsembleLogits(torch.cat([p.logits for p in parts], dim=1), np.concatenate([p.distance for p in parts]))

    def features(self, pixels: Tensor, rows: np.ndarray) -> np.ndarray:
        """Features before the last layer, float32 (n, D), of `rows` of pixels, seen once by the first network."""
        network = self.networks[0]

        def features_of(batch: Tensor) -> np.ndarray:
            return network.penultimate(self.preprocessing.to_input(batch)).float().cpu().numpy()  # type: ignore[operator]

        return np.concatenate(list(self._in_batches(features_of, pixels, rows)))

    def _forward(self, batch: Tensor) -> EnsembleLogits:
        logits: list[Tensor] = []
        distances: list[np.ndarray] = []
        for view in views_of(self.preprocessing.to_input(batch), self.views):
            images = view.contiguous(memory_format=torch.channels_last)
            for network, space in zip(self.networks, self.spaces, strict=True):
                features = network.penultimate(images)  # type: ignore[operator]
                logits.append(network.classify(features).float())  # type: ignore[operator]
                distances.append(space.distance(features.float().cpu().numpy()))
        stacked = torch.stack(logits).cpu()
        if not stacked.isfinite().all():
            raise ModelError("the network gives logits that are not finite: it is broken, train it again")
        return EnsembleLogits(stacked, np.stack(distances).mean(axis=0))

    def _in_batches(
        self, function: Callable[[Tensor], Result], pixels: Tensor, rows: np.ndarray | None
    ) -> Iterator[Result]:
        index = None if rows is None else torch.from_numpy(rows)
        count = len(pixels) if index is None else len(index)
        start = 0
        while start < count:
            chosen = slice(start, start + self.batch_size)
            batch = pixels[chosen] if index is None else pixels[index[chosen]]
            result: Result | None = None
            try:
                with torch.inference_mode():
                    result = function(batch.to(self.device))
            except torch.cuda.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self.batch_size = max(1, len(batch) // 2)
            if result is None:
                torch.cuda.empty_cache()  # not before: the exception held the memory of the batch
                continue
            start += len(batch)
            yield result


def views_of(images: Tensor, views: int) -> Iterator[Tensor]:
    """The first `views` (1 or 8) views of images (N, C, S, S), each of that shape and type; the first is the images.

    The eight are the right-angle rotations and their mirror images, all symmetries of a square grid: nothing is
    resampled, and a turned or mirrored copy of an image has the same eight views in another order. Galaxies have no
    up.

    Raises
    ------
    ValueError : another number of views: their mean would depend on how the camera was held.
    """
    if views not in (1, 8):
        raise ValueError(f"expected 1 view or 8, found {views}")
    for number in range(views):
        turned = images.rot90(number % 4, dims=(-2, -1))
        yield turned.flip(-1) if number >= 4 else turned


def _ready(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
