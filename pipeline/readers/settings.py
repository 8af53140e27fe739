"""What the files themselves do not say about the pixels in them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

UNKNOWN_RENDERING = "unknown"


class InputSettings(BaseModel):
    """Settings of the readers. They enter the fingerprint of every sky tile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    picture_rendering: str = Field(
        UNKNOWN_RENDERING, description='colour rule of JPEG/PNG folders; "ls-dr8-grz" for the viewer\'s DR8 layer'
    )
    picture_pixscale: float = Field(
        0.0, ge=0, description="arcsec per pixel of JPEG/PNG folders whose table has no pixscale; 0 means unknown"
    )
    hdf5_rendering: str = Field(
        "ls-dr8-grz", description="colour rule of RGB images in HDF5 files (Galaxy10: ls-dr8-grz)"
    )

    @property
    def salt(self) -> str:
        """All of them as text, the part of a fingerprint that no file tells."""
        return self.model_dump_json()
