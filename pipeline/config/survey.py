"""Settings of surveys, of releases, and of where things lie in a workspace."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from pipeline.config.renamed import RENAMED_FIELDS


class SurveySettings(BaseModel):
    """How sky tiles are cut into units of work."""

    model_config = RENAMED_FIELDS

    rows: int = Field(1024, ge=1, description="most objects a sky tile; larger folders and files become several tiles")
    batch: int = Field(64, ge=1, description="stamps read and classified at a time by a worker")
    settle_seconds: float = Field(
        0.0,
        alias="settle",
        ge=0,
        description="seconds that the files of a tile must be unchanged before it is taken; 0: at once",
    )
    alarm: float = Field(0.2, ge=0, le=1, description="alarm when more than this share of the inputs is quarantined")


class ReleaseSettings(BaseModel):
    """How releases are cut and what goes with them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_rows: int = Field(1_000_000, ge=1, description="most objects in one file of a release, a pixel of the sky")
    exports: bool = Field(True, description="write each release as single Parquet, FITS and VOTable files too")


class FolderSettings(BaseModel):
    """Where things lie; relative paths start at the workspace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    incoming: str = Field("incoming", description="sky tiles that arrive")
    benchmark: str = Field("benchmark", description="labelled data sets")
    models: str = Field("models", description="trained models")
    catalog: str = Field("catalog", description="committed tiles and releases")
    labels: str = Field("labels", description="what people said of objects, version by version")
    reports: str = Field("reports", description="reports of runs")
    cache: str = Field("cache", description="pixels made ready for training; may be deleted, is written again")
