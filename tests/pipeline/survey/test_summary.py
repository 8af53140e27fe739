"""The totals of a run as a page for people."""

from __future__ import annotations

from pipeline.survey.summary import Summary

TOTALS = Summary(
    run_id="20260101T000000-abcdef",
    model_id="tiny-0001",
    tiles=3,
    skipped_tiles=1,
    objects=10,
    classified=6,
    unclassified=1,
    quarantined=2,
    out_of_footprint=1,
    duplicates=0,
    reasons={"no_wcs": 1, "empty_file": 1},
    duplicates_across_tiles=0,
    simulated_objects=6,
    release="2026.01.0",
    catalog="/W/catalog",
    failed={"b": "Traceback\nOSError: full <disk>\n"},
    passed_over={".txt": 2},
    waiting={"c": "changed 1 s ago"},
    remarks={"a": ["no table", "old header"]},
    alarm="too much",
    drift=["fewer spirals"],
)


def test_the_page_shows_every_total() -> None:
    assert (
        TOTALS.to_markdown()
        == """\
# Survey 20260101T000000-abcdef

Model tiny-0001, release 2026.01.0.

**Alarm: too much**

**Drift**

* fewer spirals

| what | number |
|---|---|
| tiles | 3 |
| skipped_tiles | 1 |
| objects | 10 |
| classified | 6 |
| unclassified | 1 |
| quarantined | 2 |
| out_of_footprint | 1 |
| duplicates | 0 |
| duplicates_across_tiles | 0 |
| reused | 0 |
| quarantined: empty_file | 1 |
| quarantined: no_wcs | 1 |
| passed over, no input: .txt | 2 |

**6 objects of the release are simulated.**

## Failed sky tiles

* `b`: OSError: full <disk>

## Still arriving

* `c`: changed 1 s ago

## Remarks

* `a`: no table
* `a`: old header
"""
    )
    assert not TOTALS.nothing_to_do
