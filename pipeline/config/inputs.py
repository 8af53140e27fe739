"""What the files themselves do not say about the pixels in them, and which objects of a survey's catalogue are wanted.

Numbers that change from one data release to the next (names of layers, mask bits, HDUs) stand here, never in a reader.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

UNKNOWN_RENDERING = "unknown"

Bit = Annotated[int, Field(ge=0, le=30)]


class InputSettings(BaseModel):
    """Settings of all readers. They enter the fingerprint of every sky tile."""

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
    verify_sums: bool = Field(
        True, description="compare files with the sha256 that a manifest.sha256 or *.sha256sum beside them gives"
    )
    aperture: float = Field(5.0, gt=0, description="radius of the central aperture in which masks count, arcsec")
    saturated_bits: tuple[Bit, ...] = Field((2, 3, 4), description="bits of MASKBITS: saturated in g, r, z")
    bright_star_bits: tuple[Bit, ...] = Field((1,), description="bits of MASKBITS: bright star (11 adds medium ones)")
    large_galaxy_bits: tuple[Bit, ...] = Field((12,), description="bits of MASKBITS: large galaxy")
    cluster_bits: tuple[Bit, ...] = Field((13,), description="bits of MASKBITS: star cluster or planetary nebula")


class BrickSettings(BaseModel):
    """Settings of the reader of survey bricks: target selection, field of view, depth, names in a data release."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    catalogue: str = Field(
        "", description="a list of positions (CSV, Parquet, FITS with ra, dec) to cut instead of the survey's objects"
    )
    excluded_types: tuple[str, ...] = Field(("PSF", "DUP"), description="Tractor types that are not classified")
    faintest_r: float = Field(19.0, description="faintest r magnitude, corrected for extinction")
    brightest_r: float = Field(-99.0, description="brightest r magnitude, corrected for extinction")
    smallest_radius: float = Field(0.0, ge=0, description="smallest half-light radius, arcsec")
    primary_only: bool = Field(True, description="only rows with BRICK_PRIMARY: one copy of objects in overlaps")
    excluded_bits: tuple[Bit, ...] = Field((), description="objects with one of these bits in MASKBITS are left out")
    stamp_pixels: int = Field(256, ge=16, le=1024, description="side of the stamps in pixels")
    large_radius: float = Field(
        10.0,
        ge=0,
        description="half-light radius (arcsec) from which a stamp has twice the field of view; 0 means never",
    )
    complete_edges: bool = Field(True, description="complete stamps across the edge from neighbouring bricks")
    least_exposures: int = Field(2, ge=0, description="fewer exposures at an object, in a band, are low depth")
    least_depth: tuple[float, float, float] = Field(
        (24.0, 23.4, 22.5), description="5-sigma depth of a point source in g, r, z; shallower is low depth"
    )
    layer: str = Field("", description="survey layer of all bricks, such as ls-dr11-south; empty: from release, header")
    release_layers: dict[str, str] = Field(
        {
            "8000": "ls-dr8-south",
            "8001": "ls-dr8-north",
            "9010": "ls-dr9-south",
            "9011": "ls-dr9-north",
            "10000": "ls-dr10-south",
            "10001": "ls-dr10-north",
        },
        description="survey layer by the number in RELEASE; any other is ls-drN by its thousands",
    )
    release: int = Field(-1, ge=-1, le=65535, description="release number where the catalogue has none; -1 unknown")
    image_hdu: str = Field(
        "", description="name or number of the HDU with the image; empty: the first one that has two axes"
    )
    table_hdu: str = Field("", description="name or number of the HDU with the objects; empty: the first table")


class ReadingSettings(BaseModel):
    """Everything a reader may need."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: InputSettings = InputSettings()
    bricks: BrickSettings = BrickSettings()

    def salt(self, *, bricks: bool) -> str:
        """The settings as text, the part of a fingerprint that no file tells."""
        return self.input.model_dump_json() + (self.bricks.model_dump_json() if bricks else "")
