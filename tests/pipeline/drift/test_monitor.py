"""The drift monitor: no alarm for equal skies, one where a region turns, and numbers that pandas gives too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from catalogs.errors import CatalogError
from catalogs.healpix import cell_centres
from catalogs.releases.build import publish
from catalogs.releases.registry import layout_of, read_release, rollback, set_current
from catalogs.schema import QualityFlag
from pipeline.config.drift import DriftSettings
from pipeline.config.workspace import open_workspace
from pipeline.drift.monitor import drift, earlier_releases, has_report, latest_alarms, write_drift
from pipeline.drift.report import DriftDifference, DriftReport
from tests.catalogs.conftest import MODEL, SLUGS
from tests.catalogs.released import commit_rows, with_column
from tests.pipeline.skies import night, release, stamps_of

HERE, THERE, AWAY = 13, 77, 150
SETTINGS = DriftSettings(min_objects=100)


def of(report: DriftReport, cell: int | None) -> dict[str, DriftDifference]:
    """The differences of a region by quantity."""
    (region,) = (region for region in report.regions if region.cell == cell)
    return {difference.quantity: difference for difference in region.differences}


def test_equal_skies_raise_no_alarm(tmp_path: Path) -> None:
    """Every difference is tested, in 40 regions, each drawn again, whose tiles scatter: the p-values are right."""
    settings = DriftSettings(min_objects=100, classes=0, confidence=0, novelty=0, share=0)
    nights = [night(f"run-{i}", range(0, 160, 4), i, alike=0.4, tiles=6, objects=30) for i in range(3)]
    release(tmp_path, 0, nights[:2])
    release(tmp_path, 1, nights)
    report = drift(tmp_path, settings)
    assert report.alarms == [] and report.tests > 41 * 20
    found = [d.p_value for region in report.regions[1:] for d in region.differences if d.p_value is not None]
    assert len(found) > 40 * 5 and np.mean(np.array(found) < 0.05) < 0.08


def test_a_region_that_turns_is_named(tmp_path: Path) -> None:
    release(tmp_path, 0, earlier := [night(f"run-{i}", [HERE, THERE], i) for i in range(2)])
    release(tmp_path, 1, [*earlier, night("run-2", [HERE, THERE, AWAY], 2, noisy=[THERE])])
    report = drift(tmp_path, SETTINGS)
    assert {q for q, d in of(report, THERE).items() if d.alarm} == {"classes", "confidence", "ood_score", "high_ood"}
    assert not [q for cell in (HERE, AWAY) for q, d in of(report, cell).items() if d.alarm]
    (ra,), (dec,) = cell_centres(np.array([THERE]), SETTINGS.order)
    there = [alarm for alarm in report.alarms if alarm.startswith(f"around ra {ra:.1f}, dec {dec:+.1f}: ")]
    assert len(there) == 4 and set(report.alarms) - set(there) and report.alarms[0].startswith("whole sky: ")
    assert any("class fractions differ by" in alarm and "round 4" in alarm for alarm in there)
    assert not of(report, AWAY)["classes"].nearby and of(report, HERE)["classes"].nearby  # nothing was there before
    text = report.to_markdown()
    assert "**Alarms:**" in text and there[0] in text and "| confidence | 0." in text


def test_another_part_of_the_sky_is_no_drift_of_the_whole(tmp_path: Path) -> None:
    """A region with other fractions was always so; tonight's tiles are most of them from there."""
    release(tmp_path, 0, earlier := [night("run-0", [HERE, THERE, AWAY], 1, tiles=20, noisy=[THERE])])
    few, many = night("run-1", [HERE], 2), night("run-2", [THERE], 3, tiles=20, noisy=[THERE])
    release(tmp_path, 1, [*earlier, few, many])
    report = drift(tmp_path, SETTINGS)
    assert report.alarms == [] and of(report, None)["classes"].size < 0.05
    plain = pa.concat_tables([few, many])["label_id"].to_numpy() == 0
    assert of(report, None)["classes"].fractions["round"][0] == pytest.approx(plain.mean(), abs=0.02)
    assert abs(plain.mean() - (earlier[0]["label_id"].to_numpy() == 0).mean()) > 0.05  # as it would be unweighted


def test_the_numbers_are_those_of_pandas(tmp_path: Path) -> None:
    """New tiles, and one that was read again: most of its predictions are kept, and some inputs are in quarantine."""
    nights = [night(f"run-{i}", [HERE, THERE], 10 + i) for i in range(4)]
    for number in range(3):
        release(tmp_path, number, nights[: number + 1])
    again = pc.equal(nights[2]["tile_id"], "run-2-0").to_numpy()
    anew = again & (np.arange(len(again)) % 4 == 0)
    run = np.where(anew, "run-3", nights[2]["run_id"].to_pylist())
    reread = with_column(nights[2], "run_id", pa.array(run))
    stamps = [stamps_of(nights[0]), stamps_of(nights[1]), stamps_of(nights[2]), stamps_of(nights[3], quarantined=3)]
    runs = ["run-3" if tile == "run-2-0" else "run-2" for tile in stamps[2]["tile_id"].to_pylist()]
    stamps[2] = with_column(stamps[2], "run_id", pa.array(runs), nullable=True)
    release(tmp_path, 3, [*nights[:2], reread, nights[3]], stamps)
    report = drift(tmp_path, SETTINGS.model_copy(update={"releases": 2}))

    earlier = pa.concat_tables(nights[1:3]).to_pandas()  # what the last two of the three releases brought
    read = pa.concat_tables([reread.filter(pa.array(again)), nights[3]]).to_pandas()
    earlier, read = (rows[rows["_healpix_29"] // 4**27 == HERE] for rows in (earlier, read))
    labelled, known = read[(read["label_id"] >= 0) & (read["run_id"] == "run-3")], earlier[earlier["label_id"] >= 0]
    found = of(report, HERE)
    fractions = pd.DataFrame({"new": labelled["label_id"], "old": known["label_id"]}).apply(
        lambda ids: ids.value_counts(normalize=True).sort_index()
    )
    for number, slug in enumerate(SLUGS):
        assert found["classes"].fractions[slug] == pytest.approx(tuple(fractions.loc[number]))
    assert found["classes"].size == pytest.approx((fractions["new"] - fractions["old"]).abs().sum() / 2)
    assert (found["classes"].objects, found["classes"].earlier_objects) == (len(labelled), len(known))
    for name in ("confidence", "ood_score"):
        assert (found[name].new, found[name].earlier) == pytest.approx((labelled[name].mean(), known[name].mean()))
    for flag, new, old in (
        ("high_ood", labelled, known),
        ("bright_star", read, earlier),
        ("unclassified", read, earlier),
    ):
        bit = int(QualityFlag[flag.upper()])
        shares = tuple(((rows["quality_flags"] & bit) > 0).mean() for rows in (new, old))
        assert (found[flag].new, found[flag].earlier) == pytest.approx(shares)
    assert (found["quarantined"].new, found["quarantined"].earlier) == (pytest.approx(18 / (18 + len(read))), 0)
    (here,) = (region for region in report.regions if region.cell == HERE)
    assert (here.new, here.earlier) == (len(read), len(earlier))


def test_another_model_is_compared_but_raises_no_alarm(tmp_path: Path) -> None:
    first, second = night("run-0", [HERE], 1), night("run-1", [HERE], 2, noisy=[HERE])
    release(tmp_path, 0, [first], model_id="other", class_slugs=["round", "lens"])
    release(tmp_path, 1, [second])
    report = drift(tmp_path, SETTINGS)
    assert report.other_model == "other" and report.alarms == [] and len(report.differences) >= 6
    assert "No alarms, but differences from another model" in report.to_markdown()
    assert set(of(report, HERE)["classes"].fractions) == {*SLUGS, "lens"}
    assert of(report, HERE)["classes"].fractions["spiral"][1] == 0
    release(tmp_path, 2, [second, night("run-2", [HERE], 3, noisy=[HERE])])
    assert drift(tmp_path, SETTINGS).other_model == "" and drift(tmp_path, SETTINGS).alarms == []


def test_it_says_why_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no release"):
        drift(tmp_path, SETTINGS)
    nights = [night("run-0", [HERE], 1), night("run-1", [HERE], 2, tiles=1, objects=50)]
    release(tmp_path, 0, nights[:1])
    assert "first release" in drift(tmp_path, SETTINGS).to_markdown()
    release(tmp_path, 1, nights)
    few = drift(tmp_path, SETTINGS)
    assert "Fewer than 100 objects" in few.remark and few.alarms == [] and few.tests == 0
    assert "| 50 | 360 | too few objects |" in few.to_markdown()
    release(tmp_path, 2, nights)
    assert drift(tmp_path, SETTINGS).remark == "No sky tile was added since release 2026.11.1."


def test_releases_are_compared_with_what_readers_saw_before(tmp_path: Path) -> None:
    nights = [night(f"run-{i}", [HERE], i, tiles=1, objects=20) for i in range(4)]
    release(tmp_path, 0, nights[:1])
    release(tmp_path, 1, nights[:2], previous="2026.11.0")
    rollback(tmp_path, "2026.11.0", "bad")
    release(tmp_path, 2, nights[:3], previous="2026.11.0", model_id="other")
    last = release(tmp_path, 3, nights, previous="2026.11.2")
    info = read_release(tmp_path, last.root.name)
    assert [other.release for other in earlier_releases(tmp_path, info)] == ["2026.11.0"]
    gone = info.model_copy(update={"previous": "2026.10.0"})
    assert [other.release for other in earlier_releases(tmp_path, gone)] == ["2026.11.0"]


def test_the_report_is_kept_once_and_its_alarms_are_found(tmp_path: Path, as_was: Callable) -> None:
    workspace = open_workspace(tmp_path, ["drift.min_objects=100"])
    assert has_report(workspace) and latest_alarms(workspace) == []
    first, second = night("run-0", [HERE], 1), night("run-1", [HERE], 2, noisy=[HERE])
    release(workspace.catalog, 0, [first])
    layout = release(workspace.catalog, 1, [first, second])
    assert not has_report(workspace)
    report = write_drift(workspace, "2026.11.1")
    assert report is not None and report.alarms and latest_alarms(workspace) == report.alarms
    kept = json.loads((workspace.reports / "drift-2026.11.1.json").read_text())
    assert kept == json.loads(json.dumps(report.to_dict())) and kept["regions"][1]["cell"] == HERE
    assert (workspace.reports / "drift-2026.11.1.md").read_text() == report.to_markdown()
    with as_was(workspace.reports):
        assert write_drift(workspace, "2026.11.1") is None and has_report(workspace)
    set_current(workspace.catalog, "2026.11.0")
    assert latest_alarms(workspace) == [] and not has_report(workspace)
    whole = (layout.provenance / "tiles.parquet").read_bytes()
    (layout.provenance / "tiles.parquet").write_bytes(b"damaged")
    (workspace.reports / "drift-2026.11.1.json").unlink()
    broken = write_drift(workspace, "2026.11.1")
    assert broken is not None and "Could not be compared" in broken.remark and broken.alarms == []
    before = layout_of(workspace.catalog, "2026.11.0")
    (before.primary / "partition_info.csv").unlink()
    (layout.provenance / "tiles.parquet").write_bytes(whole)
    with pytest.raises(CatalogError, match=r"2026\.11\.0/.*partition_info\.csv: missing"):
        drift(workspace.catalog, SETTINGS, "2026.11.1")
    (workspace.reports / "drift-2026.11.1.json").write_text("[]")
    set_current(workspace.catalog, "2026.11.1")
    assert latest_alarms(workspace) == []


def test_real_releases_are_compared(tmp_path: Path) -> None:
    for number, noisy in enumerate(([], [HERE])):
        table = night(f"run-{number}", [HERE], number, tiles=2, objects=400, noisy=noisy)
        for tile in sorted(set(table["tile_id"].to_pylist())):
            commit_rows(
                tmp_path, table.filter(pc.equal(table["tile_id"], tile)), run_id=f"run-{number}", quarantined=number
            )
        publish(tmp_path, MODEL, exports=False)
    report = drift(tmp_path, SETTINGS)
    assert {"confidence", "high_ood"} <= {name for name, found in of(report, HERE).items() if found.alarm}
    assert of(report, HERE)["quarantined"].new == pytest.approx(2 / 802)
    assert drift(tmp_path, SETTINGS, report.against).remark.startswith("The first release")
