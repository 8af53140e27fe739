"""Stamps become model-ready pixels, and pixels become digests by which they are known again."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from models.preprocessing import Preprocessing
from pipeline.readers.stamps import StampBatch


def render_stamps(batch: StampBatch, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Model-ready pixels uint8 (N, 3, S, S) of a batch, made on the device."""
    pixels = torch.from_numpy(batch.pixels).to(device)
    render = preprocessing.pixels_from_flux if batch.is_flux else preprocessing.pixels_from_rgb
    return render(pixels, batch.pixscale)


def pixel_digests(pixels: Tensor) -> np.ndarray:
    """A digest of each stamp's model-ready pixels: int64 (N,)."""
    rows = pixels.cpu().numpy()
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)
