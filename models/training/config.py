"""Settings of the training loop; apart from the loop, so that reading them does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LoopSettings(BaseModel):
    """What the training loop does.

    Every setting enters the model id, under its alias where it has one: the name that it had when ids were first made.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    epochs: int = Field(30, ge=1, description="passes over the training images")
    batch_size: int = Field(64, ge=2, multiple_of=2, description="images a step, over all processes together")
    accumulate: int = Field(
        1, ge=1, description="parts that a batch is computed in, one after the other, to save memory"
    )
    optimizer: Literal["adamw", "lookahead_radam"] = Field(
        "adamw", alias="optimiser", description="adamw, or RAdam inside lookahead (the paper's text names both)"
    )
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate")
    warmup_epochs: float = Field(3.0, ge=0, description="epochs of linear warm-up before the cosine decay")
    weight_decay: float = Field(
        0.05, ge=0, description="decoupled weight decay; none on 1-D tensors and position tables"
    )
    clip_gradient: float = Field(5.0, ge=0, description="largest gradient norm; 0 leaves gradients alone")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    mixup: float = Field(
        0.2, ge=0, description="alpha of mixup's Beta distribution; 0 switches it off (the paper: 0.8)"
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        description="alpha of CutMix's Beta distribution; 0 switches it off; with mixup, one of both a batch",
    )
    randaugment_ops: int = Field(0, ge=0, description="RandAugment operations an image; 0 switches it off")
    randaugment_magnitude: int = Field(9, ge=1, le=30, description="strength of the RandAugment operations")
    rotate: bool = Field(True, description="rotate half of the images by any angle")
    mirror: bool = Field(True, description="mirror images at both axes and at the diagonal")
    zoom: float = Field(0.1, ge=0, lt=1, description="magnify by up to this fraction, both ways")
    shift: float = Field(0.03, ge=0, lt=1, description="move by up to this fraction of the side")
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="stochastic depth at the last block; grows from 0 at the first"
    )
    head_dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the head")
    ema_decay: float = Field(
        0.998, ge=0, lt=1, description="decay a step of the moving average of weights; 0: plain weights"
    )
    select: Literal["last", "best"] = Field(
        "last", description="weights of the last epoch, or of the one with the smallest loss on the validation split"
    )
    stratified: bool = Field(True, description="draw every class equally often, against the class imbalance")
    sync_batch_norm: bool = Field(
        True, description="several processes share the statistics of batch norm, as if they were one"
    )
    mixed_precision: bool = Field(True, description="bfloat16 where the device has it (GPUs)")
    compile: bool = Field(False, description="compile the network (torch.compile): pays on GPUs and long trainings")
    checkpoint_activations: bool = Field(
        False, description="keep fewer activations and compute them twice: for variants that do not fit on the GPU"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of initial weights, order of images and augmentation")
