"""Settings of the drift monitor: what is compared with what, and which differences are alarms."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DriftSettings(BaseModel):
    """When new rows of the catalogue differ from earlier ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    releases: int = Field(
        5, ge=1, description="new objects are compared with those of the last releases that brought any to the region"
    )
    order: int = Field(2, ge=0, le=5, description="HEALPix order of the regions: 2 means 192 of 14.7 degrees")
    min_objects: int = Field(200, ge=2, description="fewer objects, new or earlier, are not compared")
    classes: float = Field(
        0.1, ge=0, le=1, description="alarm above this total variation distance of the class fractions"
    )
    confidence: float = Field(0.05, ge=0, le=1, description="alarm above this change of the mean confidence")
    novelty: float = Field(0.1, ge=0, le=1, description="alarm above this change of the mean ood_score")
    share: float = Field(
        0.05, ge=0, le=1, description="alarm above this change of the share with a quality flag, or in quarantine"
    )
    level: float = Field(
        0.001, gt=0, le=1, description="most probability that a report of equal skies has any alarm, by chance"
    )
