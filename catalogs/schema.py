"""The columns and quality flags of the catalogue, as one table in code.

Class names come from outside as values (the slugs of a model card), so that this package knows no morphology. Rules
of the types, each seen to break a reader otherwise: no nullable integers, no lists, no int8; sentinels and a flag
instead of nulls.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalogs.errors import CatalogError

PROBABILITY_DIGITS = 4  # probabilities are rounded before writing: 58 → 17 bytes a row
MOST_CLASSES = 15  # that fit into the bits of an int16 without its sign
HIGH_OOD = 0.97  # scores above are flagged: about one in a hundred of objects like those of the training
FEW_VIEWS_AGREE = 0.75  # a share of views below is flagged


class QualityFlag(enum.IntFlag):
    """Bits of `quality_flags`. Only flags that something computes are declared."""

    MISSING_BAND = 1 << 0
    NAN_PIXELS = 1 << 1
    SATURATED = 1 << 2
    BRIGHT_STAR = 1 << 3
    LARGE_GALAXY_MASK = 1 << 4
    CLUSTER_MASK = 1 << 5
    EDGE_OR_OFF_FOOTPRINT = 1 << 6
    LOW_DEPTH = 1 << 7
    FOV_MISMATCH = 1 << 8
    RESAMPLED = 1 << 9
    DUPLICATE_POSITION = 1 << 10
    PIXSCALE_OUTSIDE_TRAINING = 1 << 11
    MAGNITUDE_OUTSIDE_TRAINING = 1 << 12
    PSF_OUTSIDE_TRAINING = 1 << 13
    COLOUR_RULE_DIFFERS = 1 << 14
    VIEWS_DISAGREE = 1 << 15
    HIGH_OOD = 1 << 16
    PRED_SET_EMPTY_OR_FULL = 1 << 17
    UNCLASSIFIED = 1 << 18


NO_FLAG = QualityFlag(0)

# Set by a prediction; all others by what was read.
CERTAINTY_FLAGS = QualityFlag.VIEWS_DISAGREE | QualityFlag.HIGH_OOD | QualityFlag.PRED_SET_EMPTY_OR_FULL

FLAG_MEANINGS: dict[QualityFlag, str] = {
    QualityFlag.MISSING_BAND: "a band of the colour rule is absent, or blank over most of the centre",
    QualityFlag.NAN_PIXELS: "some pixels are not finite; they were taken as no flux",
    QualityFlag.SATURATED: "saturated pixels in the central aperture, by the survey's mask",
    QualityFlag.BRIGHT_STAR: "a bright star reaches into the central aperture, by the survey's mask",
    QualityFlag.LARGE_GALAXY_MASK: "within the mask of a large galaxy: it may be that galaxy itself, or lie before it",
    QualityFlag.CLUSTER_MASK: "within the mask of a star cluster or planetary nebula",
    QualityFlag.EDGE_OR_OFF_FOOTPRINT: "the survey has no pixels here (OVERLAP = F), or none over a part of the stamp",
    QualityFlag.LOW_DEPTH: "shallow: 5-sigma depth, or number of exposures at the object, below the settings in a band",
    QualityFlag.FOV_MISMATCH: "the stamp is smaller than the field of view (padded), or its pixel scale is unknown",
    QualityFlag.RESAMPLED: "the stamp was brought from another pixel scale to the training scale",
    QualityFlag.DUPLICATE_POSITION: "another object of the sky tile, brighter or named first, lies within 1 arcsec",
    QualityFlag.PIXSCALE_OUTSIDE_TRAINING: "the pixel scale lies outside the range of the training images",
    QualityFlag.MAGNITUDE_OUTSIDE_TRAINING: "mag_r lies outside the range of the training images, where that is known",
    QualityFlag.PSF_OUTSIDE_TRAINING: "the seeing in r lies outside the range of the training images, where known",
    QualityFlag.COLOUR_RULE_DIFFERS: "the rendering is not known to be that of the training images",
    QualityFlag.VIEWS_DISAGREE: f"fewer than {FEW_VIEWS_AGREE:.0%} of the views, each by itself, have this label",
    QualityFlag.HIGH_OOD: f"ood_score above {HIGH_OOD}",
    QualityFlag.PRED_SET_EMPTY_OR_FULL: "the prediction set holds no class, or every class: it narrows nothing down",
    QualityFlag.UNCLASSIFIED: "no label: there was nothing to classify",
}

# Not among them: views_disagree and pred_set_empty_or_full say that a label is uncertain, as its confidence does; most
# objects in the mask of a large galaxy are that galaxy; resampling keeps what a network sees. With high_ood, or outside
# the training range, the confidence itself cannot be trusted.
UNRELIABLE: QualityFlag = (
    QualityFlag.MISSING_BAND
    | QualityFlag.NAN_PIXELS
    | QualityFlag.SATURATED
    | QualityFlag.BRIGHT_STAR
    | QualityFlag.CLUSTER_MASK
    | QualityFlag.EDGE_OR_OFF_FOOTPRINT
    | QualityFlag.LOW_DEPTH
    | QualityFlag.FOV_MISMATCH
    | QualityFlag.DUPLICATE_POSITION
    | QualityFlag.PIXSCALE_OUTSIDE_TRAINING
    | QualityFlag.MAGNITUDE_OUTSIDE_TRAINING
    | QualityFlag.PSF_OUTSIDE_TRAINING
    | QualityFlag.COLOUR_RULE_DIFFERS
    | QualityFlag.HIGH_OOD
    | QualityFlag.UNCLASSIFIED
)
RELIABLE_CONFIDENCE = 0.6
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Column:
    """One column: name, Arrow type, unit (VO notation; empty if none), UCD, meaning, and the flags to read it with."""

    name: str
    type: pa.DataType
    unit: str
    ucd: str
    meaning: str
    flags: QualityFlag = NO_FLAG

    @property
    def description(self) -> str:
        """The meaning and the flags, as one text."""
        return f"{self.meaning} (flags: {', '.join(flag_names(self.flags))})" if self.flags else self.meaning


_PROBABILITY, _CODE = "stat.probability;src.morph.type", "meta.code;src.morph.type"  # UCDs
_NONE = QualityFlag.UNCLASSIFIED

_BEFORE: tuple[Column, ...] = (
    Column("_healpix_29", pa.int64(), "", "pos.healpix", "nested HEALPix index of order 29"),
    Column("object_id", pa.int64(), "", "meta.id;meta.main", "DESI TARGETID, or bit 62 and a hash of source_name"),
    Column("source_name", pa.string(), "", "meta.id", "where the pixels came from"),
    Column("ra", pa.float64(), "deg", "pos.eq.ra;meta.main", "right ascension, ICRS"),
    Column("dec", pa.float64(), "deg", "pos.eq.dec;meta.main", "declination, ICRS"),
    Column("release", pa.int16(), "", "meta.version", "Legacy Surveys release number, -1 unknown"),
    Column("brickid", pa.int32(), "", "meta.id", "brick number, -1 unknown"),
    Column("objid", pa.int32(), "", "meta.id", "object number in the brick, -1 unknown"),
    Column("tile_id", pa.string(), "", "meta.id;obs.field", "the sky tile it came with"),
    Column("label", pa.string(), "", "src.morph.type", "most probable class; empty when not classified", _NONE),
    Column("label_id", pa.int16(), "", _CODE, "number of the class, -1 when not classified", _NONE),
    Column("confidence", pa.float32(), "", _PROBABILITY, "calibrated probability of label; 0 when not classified"),
)
_AFTER: tuple[Column, ...] = (
    Column("confidence_gap", pa.float32(), "", "stat.value;arith.diff", "first minus second probability"),
    Column("entropy", pa.float32(), "", "stat.value", "entropy of the probabilities, 0 to 1 (even)"),
    Column("pred_set", pa.int16(), "", _CODE, "prediction set: bit i (of value 2^i) is set if class i is in it"),
    Column(
        "pred_set_size",
        pa.int16(),
        "",
        "meta.number",
        "classes in the prediction set; 0 when not classified",
        QualityFlag.PRED_SET_EMPTY_OR_FULL,
    ),
    Column("n_views", pa.int16(), "", "meta.number", "views of the object averaged, times networks of an ensemble"),
    Column(
        "confidence_std",
        pa.float32(),
        "",
        "stat.stdev",
        "spread of confidence over the views, 0 for one view",
        QualityFlag.VIEWS_DISAGREE,
    ),
    Column(
        "ood_score",
        pa.float32(),
        "",
        "stat.value",
        "0 typical ... 1 unlike any training image; up to 0.95 the share of validation images that are more "
        "typical; -1 when not classified",
        QualityFlag.HIGH_OOD,
    ),
    Column("quality_flags", pa.int32(), "", "meta.code.qual", "bits, see the table of flags"),
    Column(
        "is_reliable",
        pa.bool_(),
        "",
        "meta.code.qual;meta.main",
        f"the recommended cut: confidence at least {RELIABLE_CONFIDENCE} and none of the flags that spoil a label",
    ),
    Column(
        "bad_pixel_fraction",
        pa.float32(),
        "",
        "stat.value;instr.pixel",
        "share of missing or non-finite pixels",
        QualityFlag.MISSING_BAND | QualityFlag.NAN_PIXELS | QualityFlag.EDGE_OR_OFF_FOOTPRINT,
    ),
    Column(
        "maskbits",
        pa.int32(),
        "",
        "meta.code.qual",
        "survey MASKBITS, OR-ed over the central aperture; -1 unknown",
        QualityFlag.SATURATED | QualityFlag.BRIGHT_STAR | QualityFlag.LARGE_GALAXY_MASK | QualityFlag.CLUSTER_MASK,
    ),
    Column(
        "pixscale",
        pa.float32(),
        "arcsec",
        "instr.scale;instr.pixel",
        "pixel scale of the input, NaN unknown",
        QualityFlag.FOV_MISMATCH | QualityFlag.RESAMPLED | QualityFlag.PIXSCALE_OUTSIDE_TRAINING,
    ),
    Column(
        "mag_r",
        pa.float32(),
        "mag",
        "phot.mag;em.opt.R",
        "r magnitude corrected for extinction, NaN unknown",
        QualityFlag.MAGNITUDE_OUTSIDE_TRAINING,
    ),
    Column(
        "survey_layer",
        pa.string(),
        "",
        "meta.id;instr.obsty",
        "survey, data release and bands of the input",
        QualityFlag.COLOUR_RULE_DIFFERS,
    ),
    Column("model_id", pa.string(), "", "meta.version;meta.software", "the model that classified"),
    Column("run_id", pa.string(), "", "meta.id;meta.software", "the run that classified"),
    Column("input_digest", pa.int64(), "", "meta.checksum", "digest of the model-ready pixels"),
    Column("mjd_predicted", pa.float64(), "d", "time.processing", "when the run began, UTC as MJD"),
)


def catalogue_columns(class_slugs: Sequence[str]) -> tuple[Column, ...]:
    """All columns of the primary table, in order; one probability column for each class slug.

    Raises CatalogError when there are more classes than a prediction set has bits.
    """
    if len(class_slugs) > MOST_CLASSES:
        raise CatalogError(
            f"a model of {len(class_slugs)} classes cannot make a catalogue: a prediction set has {MOST_CLASSES} bits"
        )
    classes = tuple(
        Column(
            f"p_{slug}", pa.float32(), "", _PROBABILITY, f"calibrated probability of {slug}; all 0 when not classified"
        )
        for slug in class_slugs
    )
    return _BEFORE + classes + _AFTER


def arrow_schema(class_slugs: Sequence[str]) -> pa.Schema:
    """The exact Arrow schema of tile files and releases."""
    return pa.schema([pa.field(c.name, c.type, nullable=False) for c in catalogue_columns(class_slugs)])


def label_columns(
    probabilities: np.ndarray, classified: np.ndarray, class_slugs: Sequence[str]
) -> dict[str, np.ndarray]:
    """Columns that follow from probabilities: label, confidences, gap, entropy.

    Parameters
    ----------
    probabilities : float32 (N, C), rows of unclassified objects are ignored.
    classified : bool (N,).

    Everything is derived from the *rounded* probabilities, so that readers can check each column against the others.

    Raises
    ------
    CatalogError : probabilities of a classified object are not finite or do not sum to 1.
    """
    total = probabilities[classified].sum(axis=1)
    if not (np.abs(total - 1) < _SUM_TOLERANCE).all():  # written so that NaN is refused too
        raise CatalogError("probabilities that do not sum to 1: the model is broken, train it again")
    p = np.where(classified[:, None], probabilities.astype(np.float64).round(PROBABILITY_DIGITS), 0.0)
    ordered = np.sort(p, axis=1)
    best = p.argmax(axis=1)
    share = p / np.maximum(p.sum(axis=1, keepdims=True), 1e-12)
    entropy = -(share * np.log(np.clip(share, 1e-12, None))).sum(axis=1) / np.log(p.shape[1])
    return {
        "label": np.where(classified, np.asarray(class_slugs, dtype=object)[best], ""),
        "label_id": np.where(classified, best, -1).astype(np.int16),
        "confidence": ordered[:, -1].astype(np.float32),
        **{f"p_{slug}": p[:, i].astype(np.float32) for i, slug in enumerate(class_slugs)},
        "confidence_gap": (ordered[:, -1] - ordered[:, -2]).round(PROBABILITY_DIGITS).astype(np.float32),
        "entropy": entropy.round(PROBABILITY_DIGITS).astype(np.float32),
    }


def certainty_columns(
    sets: np.ndarray, spread: np.ndarray, novelty: np.ndarray, n_views: int, classified: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns on how certain a label is, beside its probability.

    Parameters
    ----------
    sets : bool (N, C), the classes in each prediction set.
    spread, novelty : float32 (N,).
    n_views : views averaged for each object.
    classified : bool (N,); where it is False everything is 0, and the novelty -1.
    """
    bits = (sets & classified[:, None]) @ (1 << np.arange(sets.shape[1]))
    return {
        "pred_set": bits.astype(np.int16),
        "pred_set_size": np.where(classified, sets.sum(axis=1), 0).astype(np.int16),
        "n_views": np.where(classified, n_views, 0).astype(np.int16),
        "confidence_std": np.where(classified, spread.astype(np.float64).round(PROBABILITY_DIGITS), 0).astype(
            np.float32
        ),
        "ood_score": np.where(classified, novelty.astype(np.float64).round(PROBABILITY_DIGITS), -1).astype(np.float32),
    }


def certainty_flags(sets: np.ndarray, agreement: np.ndarray, novelty: np.ndarray) -> np.ndarray:
    """Quality bits int64 (N,) that a prediction sets: sets bool (N, C), agreement and novelty float (N,).

    `agreement` is the share of the views that have the label of their mean.
    """
    size = sets.sum(axis=1)
    flags = np.zeros(len(sets), dtype=np.int64)
    for condition, flag in (
        (agreement < FEW_VIEWS_AGREE, QualityFlag.VIEWS_DISAGREE),
        (novelty > HIGH_OOD, QualityFlag.HIGH_OOD),
        ((size == 0) | (size == sets.shape[1]), QualityFlag.PRED_SET_EMPTY_OR_FULL),
    ):
        flags[condition] |= int(flag)
    return flags


def is_reliable(confidence: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """The recommended cut, bool (N,): confidence of at least 0.6 and none of the flags in `UNRELIABLE`."""
    return (confidence >= RELIABLE_CONFIDENCE) & ((flags & int(UNRELIABLE)) == 0)


def count_classified(table: pa.Table) -> int:
    """How many rows of a table of the catalogue have a label."""
    return int(pc.sum(pc.greater_equal(table["label_id"], 0)).as_py() or 0)


def flag_names(flags: int) -> list[str]:
    """The flags set in one value of `quality_flags`, in lower-case words."""
    return [f.name.lower() for f in QualityFlag if flags & f and f.name]
