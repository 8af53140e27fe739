"""Surveys killed, starved and robbed: the next run gives the rows of an undisturbed one. `make chaos` does more."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from catalogs.releases.registry import release_names
from pipeline.config.workspace import open_workspace
from tests.chaos import clock, moments
from tests.chaos.disk import NoSmallDisk, disk_full, size_of, small_disk
from tests.chaos.other_commands import labels_add_killed, rollback_killed
from tests.chaos.outcomes import differences, outcome_of
from tests.chaos.sources import vandalised
from tests.chaos.stage import Stage
from tests.chaos.surveys import Cold, Kill, Story, killed
from tests.chaos.together import two_at_once


def test_killed_at_the_worst_moments(stage: Stage, tmp_path: Path) -> None:
    """While a tile is written, in the midst of the first release; on top of a release, just before readers see it."""
    result = killed(stage, tmp_path / "new", Story(), [Kill(moments.tiles(3)), Kill(moments.leaf_there())])
    assert result.equal and result.ended == ["-9", "-9"] and result.reruns == 1, result
    later = [Kill(moments.summed()), Kill(moments.unseen())]
    result = killed(stage, tmp_path / "half", Story(), later, half=True)
    assert result.equal and result.kills == 2 and result.reruns == 1, result


def test_killed_again_and_again_at_any_moment(stage: Stage, tmp_path: Path) -> None:
    seed = random.Random(6)
    kills = [Kill(moments.at_work(seed.uniform(0, 0.3))) for _ in range(2)]
    result = killed(stage, tmp_path / "W", Story(), kills)
    assert result.equal and result.kills > 0, result


def test_a_full_disk_leaves_nothing_half_written(stage: Stage, tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path / "disk") as disk:
            result = disk_full(stage, Story(), disk, "W", size_of(stage.half) // 2)
    except NoSmallDisk as missing:
        pytest.skip(str(missing))
    assert result.equal and result.ended != ["0"] and result.reruns == 1, result


def test_inputs_that_change_while_they_are_read(stage: Stage, tmp_path: Path) -> None:
    result = vandalised(stage, tmp_path / "W", Story(), seed=1)
    assert result.equal and result.ended != ["0"], result


def test_of_two_surveys_at_once_one_does_the_work(stage: Stage, tmp_path: Path) -> None:
    result = two_at_once(stage, tmp_path / "W", Story())
    assert result.equal, result


def test_labels_are_added_once_or_not_at_all(stage: Stage, tmp_path: Path) -> None:
    result = labels_add_killed(stage, tmp_path / "W", moments.labels_written())
    assert result.equal and result.rows > 0, result


@pytest.mark.slow
def test_a_rollback_is_there_or_not_and_stays(stage: Stage, tmp_path: Path) -> None:
    result = rollback_killed(stage, tmp_path / "W", moments.pointed())
    assert result.equal and result.rows > 0, result


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason=clock.MISSING)
def test_a_clock_that_is_turned_back(stage: Stage, tmp_path: Path) -> None:
    turned = clock.Clock(tmp_path)
    way = Cold(turned.environment)
    result = clock.turned_back(stage, tmp_path / "W", way, turned, 3, moments.leaf_there())
    assert result.equal, result
    months = {name[:7] for name in release_names(tmp_path / "W" / "catalog")}
    assert len(months) == 2, "the clock was not turned"


def test_the_comparison_sees_what_differs(stage: Stage) -> None:
    """Else everything above would prove nothing."""
    found = outcome_of(open_workspace(stage.half))
    lost = len(stage.truth.rows) - len(found.rows)
    assert lost > 0
    assert differences(found, stage.truth) == [f"{len(found.rows)} rows, not 81: {lost} missing, 0 more"]
    changed = stage.truth.rows.copy()
    changed["confidence"] += np.float32(1e-4) * (changed.index == 3)
    assert differences(replace(stage.truth, rows=changed), stage.truth) == ["confidence differs in 1 rows"]
    _, *others = stage.truth.quarantine
    assert differences(replace(stage.truth, quarantine=others), stage.truth) == ["quarantine, 1 entries differ"]
