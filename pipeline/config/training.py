"""Settings of a training: which network, on which split, with which recipe; and the recipes that have a name."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from models.training.config import LoopSettings
from models.uncertainty.config import UncertaintySettings

PRESETS: dict[str, dict[str, Any]] = {
    # Our own: the defaults. Galaxies have no up; a few thousand images; two CPU cores or one GPU.
    "galaxy": {},
    # The paper's, as far as it is known (arXiv 2304.05350). Not published: learning rate, weight decay, batch size,
    # rates of stochastic depth, strength of RandAugment; those here are usual for networks of this kind at 256 px.
    "paper": {
        "image_size": 256,
        "epochs": 300,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "warmup_epochs": 5.0,
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "randaugment_ops": 2,
        "randaugment_magnitude": 9,
        "rotate": False,
        "mirror": False,
        "zoom": 0.0,
        "shift": 0.0,
        "drop_path": 0.2,
        "head_dropout": 0.1,
        "ema_decay": 0.0,
        "select": "best",
        "stratified": True,
    },
    # What a recipe has to beat: the same schedule without any augmentation, smoothing, averaging or balancing.
    "plain": {
        "label_smoothing": 0.0,
        "mixup": 0.0,
        "rotate": False,
        "mirror": False,
        "zoom": 0.0,
        "shift": 0.0,
        "drop_path": 0.0,
        "head_dropout": 0.0,
        "ema_decay": 0.0,
        "stratified": False,
    },
    # Ours under more noise, on labelled images and confident rows of our own catalogue (arXiv 1911.04252). Without the
    # RandAugment of that paper: in a short training of a small network it cost 18 points of validation accuracy
    # (simulated, docs/training.md); rotations, mirror images and mixup are noise enough.
    "noisy_student": {
        "pseudo_labels": True,
        "drop_path": 0.2,
        "head_dropout": 0.2,
    },
}


class TrainingSettings(LoopSettings, UncertaintySettings):
    """Which network is trained on what, and how; settings of the loop and of the confidences included.

    `preset` fills in what is not given otherwise.
    """

    preset: Literal["galaxy", "paper", "plain", "noisy_student"] = Field(
        "galaxy",
        description="recipe that gives every setting that is not set: galaxy (ours), paper, plain, noisy_student",
    )
    variant: str = Field(
        "cpu_small", description="network: cpu_tiny, cpu_small, astroformer_0 … astroformer_5, or timm/NAME"
    )
    layout: str = Field("CCCT", description="kinds of the four stages: C convolution, T transformer")
    image_size: int = Field(0, ge=0, description="side of the network's input in pixels; 0: the variant's usual size")
    initial: str = Field(
        "", description="weights to start from: a model of this workspace, or a checkpoint file; empty: from scratch"
    )
    initial_partial: bool = Field(
        False, description="take what fits from weights of another layout, depth or width, and leave the rest random"
    )
    labels: str = Field(
        "",
        coerce_numbers_to_str=True,
        description="version of the labels store (name, number or newest) whose labels join the training images; "
        "empty: none",
    )
    label_repeats: int = Field(1, ge=1, description="how often an object with such a label comes in an epoch")
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="share of sky positions for calibration and selection"
    )
    test_fraction: float = Field(0.15, ge=0, lt=0.5, description="share of sky positions for the frozen test split")
    split_seed: int = Field(0, ge=0, description="seed of the split")
    pseudo_labels: bool = Field(False, description="learn from confident rows of the catalogue's current release too")
    pseudo_confidence: float = Field(0.9, ge=0, le=1, description="least confidence of a row to learn from")
    pseudo_novelty: float = Field(
        0.95, ge=0, le=1, description="largest ood_score of a row to learn from: what is unlike all training is left"
    )
    pseudo_per_class: int = Field(1000, ge=1, description="most rows of each class to learn from, the surest first")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(str(values.get("preset", "galaxy")), {}), **values}
