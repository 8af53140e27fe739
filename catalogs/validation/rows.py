"""Audit of rows: what must hold within each row of the catalogue, and what it adds to sums over many.

Arrays in, masks of wrong rows out; opens no file. Everything is vectorised over a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from catalogs.healpix import ORDER, healpix_29
from catalogs.schema import PROBABILITY_DIGITS, QualityFlag, is_reliable, label_columns

CODED = ("tile_id", "label", "survey_layer", "model_id", "run_id")  # few values: read as dictionaries
SUMMED = ("object_id", "input_digest", "label_id", "confidence", "quality_flags")  # what a digest of rows covers

# Less than what catalogs.schema allows before rounding; rounding moves a sum by at most 15 times half a unit.
_SUM_TOLERANCE = 0.999e-3
_ENTROPY_TOLERANCE = 1.5 * 10**-PROBABILITY_DIGITS  # logarithms of other machines differ in the last bit
_KNOWN_FLAGS = sum(QualityFlag)

Wrong: TypeAlias = tuple[str, str, np.ndarray]  # check, what is wrong, which rows: bool (N,)


def array(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A column of numbers as NumPy array (N,)."""
    return np.asarray(batch.column(name).to_numpy(zero_copy_only=False))


def coded(batch: pa.RecordBatch, name: str) -> tuple[np.ndarray, list[str]]:
    """A dictionary column as codes int (N,) and the values they stand for."""
    column = batch.column(name)
    return np.asarray(column.indices.to_numpy(zero_copy_only=False)), column.dictionary.to_pylist()


def wrong_rows(batch: pa.RecordBatch, class_slugs: Sequence[str]) -> Iterator[Wrong]:
    """Every rule of the contract that rows of a batch can break by themselves, with the rows that break it."""
    classified = array(batch, "label_id") >= 0
    yield from _wrong_positions(batch)
    yield from _wrong_labels(batch, classified, class_slugs)
    yield from _wrong_certainty(batch, classified, len(class_slugs))
    yield from _wrong_flags(batch, classified)


def outside(healpix: np.ndarray, order: int, pixel: int) -> np.ndarray:
    """Which HEALPix indices of order 29, int64 (N,), do not lie in a pixel: bool (N,)."""
    return np.asarray(healpix >> (2 * (ORDER - order)) != pixel)


def row_sums(columns: Sequence[np.ndarray]) -> np.ndarray:
    """A 64-bit digest of each row, uint64 (N,), of numeric columns (N,): to be added up, in any order, modulo 2^64.

    Multiplication by odd constants and the finaliser of MurmurHash3: sums of it differ when any row does, but for a
    chance of 2^-64. No protection against one who wants to deceive; checksums are.
    """
    mixed = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        bits = column.view(f"i{column.dtype.itemsize}").astype(np.int64).view(np.uint64)
        mixed = (mixed ^ bits) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(33)
        mixed *= np.uint64(0xFF51AFD7ED558CCD)
        mixed ^= mixed >> np.uint64(33)
    return mixed


def _wrong_positions(batch: pa.RecordBatch) -> Iterator[Wrong]:
    ra, dec, healpix = array(batch, "ra"), array(batch, "dec"), array(batch, "_healpix_29")
    on_sky = np.isfinite(ra) & (np.abs(dec) <= 90)
    yield "positions", "ra, dec are no position on the sky", ~on_sky
    other = np.zeros(len(ra), dtype=bool)
    other[on_sky] = healpix_29(ra[on_sky], dec[on_sky]) != healpix[on_sky]
    yield "positions", "_healpix_29 does not follow from ra, dec", other


def _wrong_labels(batch: pa.RecordBatch, classified: np.ndarray, class_slugs: Sequence[str]) -> Iterator[Wrong]:
    p = np.stack([array(batch, f"p_{slug}") for slug in class_slugs], axis=1)
    label_id = array(batch, "label_id")
    possible = np.asarray(((p >= 0) & (p <= 1)).all(axis=1))  # false for NaN
    yield "probabilities", "a probability outside 0 to 1", ~possible
    sums = np.abs(p.sum(axis=1) - 1) < _SUM_TOLERANCE
    yield "probabilities", "probabilities do not sum to 1", classified & possible & ~sums
    yield "probabilities", "not classified, but a probability is not 0", ~classified & (p != 0).any(axis=1)
    coarse = p.astype(np.float64).round(PROBABILITY_DIGITS).astype(np.float32)
    yield "probabilities", f"not rounded to {PROBABILITY_DIGITS} digits", possible & (p != coarse).any(axis=1)

    usable = classified & possible & sums
    judged = usable | ~classified
    wanted = label_columns(p, usable, class_slugs)
    numbers = {"": -1} | {slug: i for i, slug in enumerate(class_slugs)}
    codes, values = coded(batch, "label")
    named = np.array([numbers.get(value, -2) for value in values], dtype=np.int64)[codes]
    yield "labels", "label is no class, or not that of label_id", named != label_id
    yield "labels", "label is not the most probable class", judged & (label_id != wanted["label_id"])
    for name in ("confidence", "confidence_gap"):
        yield "labels", f"{name} does not follow from the probabilities", judged & (array(batch, name) != wanted[name])
    near = np.abs(array(batch, "entropy") - wanted["entropy"]) <= _ENTROPY_TOLERANCE
    yield "labels", "entropy does not follow from the probabilities", judged & ~near


def _wrong_certainty(batch: pa.RecordBatch, classified: np.ndarray, classes: int) -> Iterator[Wrong]:
    sets, size = array(batch, "pred_set"), array(batch, "pred_set_size")
    yield "certainty", "pred_set has bits of no class", (sets < 0) | (sets >= 1 << classes)
    yield "certainty", "pred_set_size is not the number of bits of pred_set", np.bitwise_count(sets) != size
    yield "certainty", "not classified, but a prediction set", ~classified & (sets != 0)
    views = array(batch, "n_views")
    yield "certainty", "n_views is not 1 or more for what is classified, or not 0 else", (views > 0) != classified
    spread, novelty = array(batch, "confidence_std"), array(batch, "ood_score")
    yield "certainty", "confidence_std outside 0 to 1", ~((spread >= 0) & (spread <= 1))
    fits = np.where(classified, (novelty >= 0) & (novelty <= 1), novelty == -1)
    yield "certainty", "ood_score outside 0 to 1, or not -1 where there is no label", ~fits


def _wrong_flags(batch: pa.RecordBatch, classified: np.ndarray) -> Iterator[Wrong]:
    flags = array(batch, "quality_flags")
    yield "flags", "a quality flag that is not declared", (flags & ~_KNOWN_FLAGS) != 0
    said = (flags & int(QualityFlag.UNCLASSIFIED)) != 0
    yield "flags", "the flag unclassified and label_id say different things", said == classified
    cut = is_reliable(array(batch, "confidence"), flags)
    yield "flags", "is_reliable does not follow from confidence and flags", cut != array(batch, "is_reliable")
