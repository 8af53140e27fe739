"""Settings of the confidences; apart from the arithmetic, so that reading them does not import torch.

They belong to the training settings and to the model id, for everything a model is calibrated with depends on them:
another number of views or another coverage makes another model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class UncertaintySettings(BaseModel):
    """What the model is asked for at inference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    views: Literal[1, 8] = Field(
        1, description="views of each image at inference: 1, or 8 (quarter turns and mirror images; 8 times the work)"
    )
    coverage: float = Field(
        0.9, ge=0.5, lt=1, description="share of galaxies whose prediction set is to hold the true class"
    )
