"""Settings of the gate: what a model must show before it becomes champion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from pipeline.config.renamed import RENAMED_FIELDS

Share = Annotated[float, Field(ge=0, le=1)]


class GateSettings(BaseModel):
    """The policy of the gate. It is part of every verdict: another policy makes another verdict."""

    model_config = RENAMED_FIELDS

    require: Literal["not_worse", "better"] = Field(
        "not_worse", description="of a candidate: not shown to be worse than the champion, or shown to be better"
    )
    margin: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="loss of accuracy or macro-F1 that is tolerated; with better: the gain to be shown",
    )
    significance: float = Field(
        0.01,
        alias="chance",
        gt=0,
        lt=0.5,
        description="probability of each check by chance to refuse a model that deserves to pass",
    )
    min_macro_f1: Share = Field(0.0, description="least macro-F1 on the test split")
    min_recall: dict[str, Share] = Field({}, description="least recall on the test split, by class")
    recall_drop: Share = Field(
        0.05, description="a class may lose this much recall against the champion, or what chance explains"
    )
    max_ece: Share = Field(
        0.05, description="largest calibration error on the test split, or what honest confidences show by chance"
    )
    coverage_slack: Share = Field(
        0.02,
        description="prediction sets may hold the truth this much less often than promised, and what chance explains",
    )
    sky_sample: int = Field(
        500, ge=0, description="objects of a release that are frozen to count changed labels; 0: none"
    )
    max_flips: Share = Field(
        0.2, description="share of reliable labels of the sky sample that may change, or what chance explains"
    )
    min_speed: float = Field(0.5, ge=0, description="least speed as a share of the champion's")
