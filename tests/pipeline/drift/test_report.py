"""The drift report: its sentences, its values and its tables for people."""

from __future__ import annotations

from pipeline.drift.report import DriftDifference, DriftRegion, DriftReport


def test_class_fractions_name_the_classes_that_change_most() -> None:
    fractions = {"round": (0.5, 0.2), "spiral": (0.3, 0.4), "ring": (0.19, 0.2), "merging": (0.01, 0.2)}
    difference = DriftDifference("classes", None, None, 0.3, 0.1, 900, 9000, nearby=False, fractions=fractions)
    assert difference.sentence == (
        "class fractions differ by 0.300: round 20.0% → 50.0%, merging 20.0% → 1.0%, spiral 40.0% → 30.0% "
        "(900 new and 9,000 earlier objects of the whole sky, limit 0.1)"
    )
    assert "chance" not in difference.to_dict() and difference.to_dict()["fractions"]["round"] == [0.5, 0.2]
    report = DriftReport("r", "m", "q", 5, regions=(DriftRegion(None, None, None, 900, 9000, (difference,)),))
    text = report.to_markdown()
    assert "| classes |  |  | 0.3000 | 0.1 |  |\n| round | 0.5000 | 0.2000 | 0.3000 |  |  |" in text
    assert "No difference beyond limits and chance" in text


def test_long_reports_are_cut_for_people() -> None:
    difference = DriftDifference("high_ood", 0.3, 0.1, 0.2, 0.05, 900, 9000, p_value=1e-9, alarm=True)
    regions = [DriftRegion(None, None, None, 100, 1000, (difference,))]
    regions += [DriftRegion(i, float(i), -1.0, 100, 1000, (difference,)) for i in range(60)]
    report = DriftReport("r", "m", "q", 5, tests=9, regions=tuple(regions))
    assert len(report.alarms) == 61 and "high_ood 10.0% → 30.0% (900 new and 9,000 earlier objects" in report.alarms[1]
    text = report.to_markdown()
    assert "* and 41 more" in text and "and 20 more regions" in text
