"""The columns as the specification has them, and the rules by which one follows from another."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs.errors import CatalogError
from catalogs.schema import (
    FLAG_MEANINGS,
    MOST_CLASSES,
    UNRELIABLE,
    QualityFlag,
    arrow_schema,
    catalogue_columns,
    certainty_columns,
    certainty_flags,
    count_classified,
    flag_names,
    is_reliable,
    label_columns,
)
from tests.catalogs.conftest import SLUGS, make_table

EXPECTED = """
_healpix_29 int64; object_id int64; source_name string; ra double deg; dec double deg; release int16; brickid int32;
objid int32; tile_id string; label string; label_id int16; confidence float; p_round float; p_spiral float;
p_edge_on float; confidence_gap float; entropy float; pred_set int16; pred_set_size int16; n_views int16;
confidence_std float; ood_score float; quality_flags int32; is_reliable bool; bad_pixel_fraction float;
maskbits int32; pixscale float arcsec; mag_r float mag; survey_layer string;
model_id string; run_id string; input_digest int64; mjd_predicted double d
"""
BITS = {
    "missing_band": 0,
    "nan_pixels": 1,
    "saturated": 2,
    "bright_star": 3,
    "large_galaxy_mask": 4,
    "cluster_mask": 5,
    "edge_or_off_footprint": 6,
    "low_depth": 7,
    "fov_mismatch": 8,
    "resampled": 9,
    "duplicate_position": 10,
    "pixscale_outside_training": 11,
    "magnitude_outside_training": 12,
    "psf_outside_training": 13,
    "colour_rule_differs": 14,
    "views_disagree": 15,
    "high_ood": 16,
    "pred_set_empty_or_full": 17,
    "unclassified": 18,
}


def probabilities(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet([0.3] * len(SLUGS), rows).astype(np.float32)


# --- columns ------------------------------------------------------------------------------------------------------


def test_columns_have_exactly_the_order_types_and_units_of_the_specification() -> None:
    found = [f"{c.name} {c.type} {c.unit}".strip() for c in catalogue_columns(SLUGS)]
    assert found == [part.strip() for part in EXPECTED.replace("\n", " ").split(";")]
    schema = arrow_schema(SLUGS)
    assert schema.names == [c.name for c in catalogue_columns(SLUGS)]
    assert not any(field.nullable for field in schema)


def test_no_type_is_one_that_breaks_a_reader() -> None:
    for column in catalogue_columns(SLUGS):
        kind = column.type
        assert not (pa.types.is_nested(kind) or pa.types.is_temporal(kind) or pa.types.is_dictionary(kind))
        assert kind not in (pa.int8(), pa.uint64(), pa.large_string(), pa.string_view())


def test_every_column_is_explained() -> None:
    assert all(c.meaning and c.ucd for c in catalogue_columns(SLUGS))


def test_flags_have_the_bits_of_the_specification_and_a_meaning() -> None:
    assert {f.name.lower(): int(f).bit_length() - 1 for f in QualityFlag if f.name} == BITS
    assert set(FLAG_MEANINGS) == set(QualityFlag)
    assert flag_names((1 << 0) | (1 << 18)) == ["missing_band", "unclassified"]
    assert flag_names(0) == []


# --- labels -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_a_reader_can_check_each_column_against_the_stored_probabilities(seed: int, rows: int) -> None:
    columns = label_columns(probabilities(rows, seed), np.ones(rows, bool), SLUGS)
    p = np.stack([columns[f"p_{slug}"] for slug in SLUGS], axis=1)
    assert p.dtype == np.float32
    np.testing.assert_array_equal(p, p.astype(np.float64).round(4).astype(np.float32))
    np.testing.assert_allclose(p.sum(1), 1, atol=2e-4)
    np.testing.assert_array_equal(columns["label_id"], p.argmax(1))
    assert columns["label"].tolist() == [SLUGS[i] for i in p.argmax(1)]
    np.testing.assert_array_equal(columns["confidence"], p.max(1))
    ordered = np.sort(p, axis=1)
    np.testing.assert_allclose(columns["confidence_gap"], ordered[:, -1] - ordered[:, -2], atol=1e-6)
    assert ((columns["entropy"] >= 0) & (columns["entropy"] <= 1)).all()


def test_rounding_decides_ties_and_not_digits_that_are_not_stored() -> None:
    columns = label_columns(np.array([[0.40001, 0.40004, 0.19995]]), np.ones(1, bool), SLUGS)
    assert columns["p_round"] == columns["p_spiral"]
    assert columns["label"].tolist() == ["round"] and columns["label_id"].tolist() == [0]
    assert columns["confidence_gap"].tolist() == [0.0]


def test_entropy_goes_from_certain_to_even() -> None:
    p = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    found = label_columns(p, np.ones(3, bool), SLUGS)["entropy"]
    assert found.tolist() == pytest.approx([0.0, np.log(2) / np.log(3), 1.0], abs=1e-4)


def test_objects_without_a_label_have_sentinels_whatever_the_network_said() -> None:
    p = np.array([[0.2, 0.7, 0.1], [np.nan, np.nan, np.nan], [0.1, 0.1, 0.8]], np.float32)
    columns = label_columns(p, np.array([True, False, True]), SLUGS)
    assert columns["label"].tolist() == ["spiral", "", "edge_on"]
    assert columns["label_id"].tolist() == [1, -1, 2]
    for name, column in columns.items():
        if name not in ("label", "label_id"):
            assert column[1] == 0, name
    assert columns["label_id"].dtype == np.int16
    assert all(columns[n].dtype == np.float32 for n in columns if n not in ("label", "label_id"))


@pytest.mark.parametrize("row", [[np.nan, 0.5, 0.5], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])
def test_probabilities_of_a_broken_model_never_become_labels(row: list[float]) -> None:
    with pytest.raises(CatalogError, match="the model is broken"):
        label_columns(np.array([[0.2, 0.7, 0.1], row]), np.ones(2, bool), SLUGS)


def test_no_objects_give_empty_columns() -> None:
    columns = label_columns(np.empty((0, 3), np.float32), np.empty(0, bool), SLUGS)
    assert all(len(column) == 0 for column in columns.values())


def test_classified_rows_are_counted() -> None:
    assert count_classified(make_table("t", [1, 2, 3], unclassified=[2])) == 2
    assert count_classified(arrow_schema(SLUGS).empty_table()) == 0


# --- the recommended cut ------------------------------------------------------------------------------------------


def test_reliable_is_sixty_percent_without_a_flag_that_spoils_it() -> None:
    confidence = np.array([0.6, 0.5999, 1.0], np.float32)
    assert is_reliable(confidence, np.zeros(3, int)).tolist() == [True, False, True]
    spoils = {flag for flag in QualityFlag if not is_reliable(np.ones(1, np.float32), np.array([int(flag)]))[0]}
    assert (
        spoils
        == set(UNRELIABLE)
        == set(QualityFlag)
        - {
            QualityFlag.RESAMPLED,
            QualityFlag.LARGE_GALAXY_MASK,
            QualityFlag.VIEWS_DISAGREE,
            QualityFlag.PRED_SET_EMPTY_OR_FULL,
        }
    )
    both = np.array([int(QualityFlag.RESAMPLED | QualityFlag.NAN_PIXELS)])
    assert not is_reliable(np.ones(1, np.float32), both)[0]


# --- how certain a label is ---------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, MOST_CLASSES))
@settings(max_examples=40, deadline=None)
def test_the_bits_of_a_prediction_set_are_its_classes(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    sets, classified = rng.random((30, classes)) < 0.5, rng.random(30) < 0.8
    columns = certainty_columns(sets, rng.random(30), rng.random(30), 8, classified)
    bits = columns["pred_set"][:, None] >> np.arange(classes) & 1
    np.testing.assert_array_equal(bits[classified], sets[classified])
    assert (columns["pred_set"] >= 0).all() and not columns["pred_set"][~classified].any()
    np.testing.assert_array_equal(columns["pred_set_size"], bits.sum(1))


def test_what_was_not_classified_has_no_certainty() -> None:
    columns = certainty_columns(np.ones((2, 3), bool), np.ones(2), np.ones(2) * 0.123456, 8, np.array([True, False]))
    assert [columns[name].tolist() for name in ("pred_set", "pred_set_size", "n_views", "confidence_std")] == [
        [7, 0],
        [3, 0],
        [8, 0],
        [1, 0],
    ]
    assert columns["ood_score"].tolist() == [np.float32(0.1235), -1]


def test_too_many_classes_for_a_catalogue() -> None:
    arrow_schema([f"c{i}" for i in range(15)])
    with pytest.raises(CatalogError, match="16 classes"):
        arrow_schema([f"c{i}" for i in range(16)])


def test_flags_of_certainty() -> None:
    sets = np.array([[1, 0, 0], [1, 1, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=bool)
    agreement = np.array([1, 1, 1, 0.74, 0.75])
    found = certainty_flags(sets, agreement, np.array([0.1, 0.2, 0.3, 0.9701, 0.97]))
    assert [flag_names(int(f)) for f in found] == [
        [],
        ["pred_set_empty_or_full"],
        ["pred_set_empty_or_full"],
        ["views_disagree", "high_ood"],
        [],
    ]
