"""The gate from models to a verdict: on real networks, a frozen split, a surveyed (simulated) sky."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.artifacts.registry import champion
from models.errors import ModelError
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.promotion.compare import compare
from pipeline.promotion.decision import Decision, decision_path, decisions_of, read_decision
from pipeline.promotion.sky_sample import FILE, SkySample, sky_sample
from pipeline.simulation import write_cutout_tile
from tests.conftest import Small
from tests.pipeline import survey_driver
from tests.pipeline.contenders import CHAMPION, Ring, make_ring

GALAXIES = 8


@pytest.fixture(scope="module")
def ring(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Ring:
    """A champion, one as good, one that is worse on purpose, and a release of a small sky."""
    made = make_ring(small, tmp_path_factory.mktemp("ring"))
    write_cutout_tile(made.workspace.incoming / "T", seed=1, tile=0, galaxies=GALAXIES)
    survey_driver.run(made.workspace)
    made.put("equal", noise=1e-4)
    made.put("worse", noise=5.0)
    return made


@pytest.fixture(scope="module")
def passed(ring: Ring) -> Decision:
    return compare(ring.workspace, ring.images, "equal")


@pytest.fixture(scope="module")
def refused(ring: Ring) -> Decision:
    return compare(ring.workspace, ring.images, "worse")


def without_sky(ring: Ring, root: Path, *overrides: str) -> Workspace:
    """A fresh workspace with the same models and images, where nothing was surveyed."""
    places = [f'folders.models="{ring.workspace.models}"', f'folders.cache="{ring.workspace.cache}"']
    made = ring.changed(*places, "gate.sky_sample=0", *overrides)
    return made.model_copy(update={"root": root})


def test_an_equal_candidate_passes_every_check(passed: Decision) -> None:
    assert passed.passed and passed.champion == CHAMPION and passed.simulated
    assert [check.name for check in passed.checks] == [
        *("comparable", "accuracy", "macro_f1", "recall", "macro_f1_floor", "recall_floors"),
        *("calibration", "coverage", "flips", "speed"),
    ]
    assert passed.why == f"equal passed all 10 checks against {CHAMPION}"
    values = {check.name: check.value for check in passed.checks}
    assert values["accuracy"] == 1 and values["flips"] == 0 and values["speed"] > 0


def test_a_candidate_made_worse_is_refused_for_the_right_reasons(refused: Decision) -> None:
    assert not refused.passed
    assert {"accuracy", "macro_f1", "recall", "calibration"} <= {check.name for check in refused.refusals}
    assert not {"comparable", "macro_f1_floor", "speed"} & {check.name for check in refused.refusals}
    assert "accuracy 0." in refused.why and "(champion 1.000, limit 1.000)" in refused.why
    text = refused.to_markdown()
    assert "# worse: refused" in text and "| accuracy | **refused** | 0" in text and "**simulated**" in text


def test_labels_that_change_on_the_sky_are_counted(refused: Decision) -> None:
    (flips,) = (check for check in refused.checks if check.name == "flips")
    assert not flips.passed and flips.value is not None and flips.value > 0.5
    assert f"of {GALAXIES} reliable labels change" in flips.words and "no longer there 0" in flips.words


def test_the_verdict_lies_with_the_model_and_is_found_again(ring: Ring, passed: Decision, as_was: object) -> None:
    path = decision_path(ring.workspace.models, "equal", passed.key)
    assert path.parent == ring.workspace.models / "equal" / "verdicts" and read_decision(path) == passed
    assert path.with_suffix(".md").read_text() == passed.to_markdown()
    with as_was(ring.workspace.models):  # type: ignore[operator]
        assert compare(ring.workspace, ring.images, "equal") == passed
    assert compare(ring.workspace, ring.images, "equal", CHAMPION) == passed
    assert champion(ring.workspace.models) == CHAMPION


def test_another_policy_is_another_verdict(ring: Ring, passed: Decision, tmp_path: Path) -> None:
    workspace = without_sky(ring, tmp_path, "gate.require=better")
    verdict = compare(workspace, ring.images, "equal")
    assert verdict.key != passed.key and [check.name for check in verdict.refusals] == ["improvement"]
    assert verdict.policy["require"] == "better" and verdict.sky_sample == ""
    flips = next(check for check in verdict.checks if check.name == "flips")
    assert flips.passed and flips.words == "not measured: gate.sky_sample is 0"
    assert decisions_of(workspace.models, "equal")[-1].key in {passed.key, verdict.key}
    assert len(decisions_of(workspace.models, "equal")) == 2


def test_models_of_other_splits_are_not_compared(ring: Ring, tmp_path: Path) -> None:
    """One may have learned from the test images of the other."""
    workspace = without_sky(ring, tmp_path)
    ring.put("other", split_digest=ring.card.split_digest)
    card = workspace.models / "other" / "card.json"
    card.write_text(card.read_text().replace(ring.card.data["digest"], "0" * 16))
    verdict = compare(workspace, ring.images, "equal", "other")
    assert [check.name for check in verdict.refusals] == ["comparable"]
    assert "equal and other differ in images" in verdict.why
    assert {"calibration", "coverage"} <= {check.name for check in verdict.checks}
    assert not {"accuracy", "speed"} & {check.name for check in verdict.checks}
    with pytest.raises(UserError, match="is not what other was trained on"):
        compare(workspace, ring.images, "other")


def test_without_a_champion_only_absolute_checks_are_made(ring: Ring, tmp_path: Path) -> None:
    shutil.copytree(ring.workspace.models / "equal", tmp_path / "models" / "equal")
    workspace = without_sky(ring, tmp_path, 'folders.models="models"')
    verdict = compare(workspace, ring.images, "equal")
    assert verdict.passed and verdict.champion is None
    assert [check.name for check in verdict.checks] == ["macro_f1_floor", "recall_floors", "calibration", "coverage"]


def test_what_cannot_be_judged(ring: Ring, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is the champion itself"):
        compare(ring.workspace, ring.images, CHAMPION)
    with pytest.raises(ModelError, match="no model 'nobody'"):
        compare(ring.workspace, ring.images, "nobody")
    floors = without_sky(ring, tmp_path, "gate.min_recall={rings=0.5}")
    with pytest.raises(UserError, match="no class rings"):
        compare(floors, ring.images, "equal")


def test_a_damaged_verdict_is_an_error_that_names_the_file(ring: Ring, passed: Decision, tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    path.write_text(passed.model_dump_json()[:-40])
    with pytest.raises(UserError, match=r"k\.json: not a verdict of this version.*delete it"):
        read_decision(path)


# --- the frozen sample of the sky ---------------------------------------------------------------------------------


def test_the_sample_is_drawn_once(ring: Ring, passed: Decision, as_was: object) -> None:
    sample = sky_sample(ring.workspace)
    assert isinstance(sample, SkySample) and sample.rows.num_rows == GALAXIES and sample.simulated
    assert sample.digest == passed.sky_sample and sample.preprocessing.digest == ring.card.recipe_digest
    with as_was(ring.workspace.models):  # type: ignore[operator]
        fewer = ring.changed("gate.sky_sample=3")
        assert sky_sample(fewer) == sample  # frozen: another size takes deleting the file


def test_the_sample_does_not_depend_on_the_order_of_rows(ring: Ring, tmp_path: Path) -> None:
    workspace = ring.changed(f'folders.models="{tmp_path}"', "gate.sky_sample=4")
    shutil.copytree(ring.workspace.models / CHAMPION, tmp_path / CHAMPION)
    first = sky_sample(workspace)
    (tmp_path / FILE).unlink()
    assert sky_sample(workspace) == first and isinstance(first, SkySample)
    whole = sky_sample(ring.workspace)
    assert isinstance(whole, SkySample)
    assert first.rows["object_id"].to_pylist() == whole.rows["object_id"].to_pylist()[:4]
    (tmp_path / FILE).write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"not a sample of the sky of this version.*delete it"):
        sky_sample(workspace)


def test_why_there_is_no_sample(ring: Ring, small: Small, tmp_path: Path) -> None:
    assert sky_sample(small.elsewhere(tmp_path)) == "there is no release yet"
    gone = ring.changed(f'folders.models="{tmp_path}"')
    assert "the model of the release cannot be used" in str(sky_sample(gone))
    assert not (tmp_path / FILE).exists()


def test_objects_that_are_gone_are_counted(ring: Ring, passed: Decision) -> None:
    """The sky moves away after the sample was frozen."""
    moved = ring.workspace.incoming / "T" / "sim-0000-000003.fits"
    away = moved.with_name(".away")
    moved.rename(away)
    try:
        sample = sky_sample(ring.workspace)
        assert isinstance(sample, SkySample)
        status = sample.pixels(ring.workspace).status
    finally:
        away.rename(moved)
    assert np.bincount(status, minlength=3).tolist() == [1, 0, GALAXIES - 1]
    names = pq.read_table(ring.workspace.models / FILE)["source_name"].to_pylist()
    assert names[int(np.flatnonzero(status == 0)[0])].endswith("sim-0000-000003.fits")
