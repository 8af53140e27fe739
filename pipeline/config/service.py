"""Settings of what runs by itself: schedules of the service, and retraining on labels."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.config.renamed import RENAMED_FIELDS


class ServeSettings(BaseModel):
    """When flows run by themselves; an empty schedule switches one off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    survey: str = Field("0 2 * * *", description="cron schedule of the survey (minute hour day month weekday)")
    retrain: str = Field("0 * * * *", description="cron schedule of the look for labels that nothing was trained on")
    benchmark: str = Field("0 6 * * 0", description="cron schedule of the champion's benchmark")
    timezone: str = Field("UTC", description="time zone of the schedules, such as Europe/Berlin")
    at_start: bool = Field(True, description="look for tiles and labels at the start: the service may have been down")
    limit: int = Field(3, ge=1, description="most runs at a time")
    host: str = Field("127.0.0.1", description="address that its Prefect server binds to; loopback: this machine only")
    port: int = Field(4200, ge=0, le=65535, description="its port; another where it is taken; 0: any free one")
    ui: bool = Field(True, description="whether that server has its pages for the browser")
    poll: float = Field(5.0, gt=0, description="seconds between two looks for runs to start")


class RetrainingSettings(BaseModel):
    """How corrected labels become a candidate for the champion."""

    model_config = RENAMED_FIELDS

    quiet_seconds: float = Field(
        60.0, alias="quiet", ge=0, description="seconds without new labels before a retraining begins"
    )
    min_labels: int = Field(1, ge=1, description="labels that must differ from those the champion learned from")
    recipe: Literal["champion", "settings"] = Field(
        "champion", description="train as the champion was trained, or as the section training says"
    )
    warm_start: bool = Field(True, description="start from the champion's weights, where its network is the same")
    epochs: int = Field(0, ge=0, description="epochs of a retraining; 0: as the recipe")
    wait: float = Field(600.0, ge=0, description="seconds that the re-classification waits for a survey under way")
