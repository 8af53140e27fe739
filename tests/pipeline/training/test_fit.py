"""Fitting in one process, in a group of two, after a kill, and under torchrun: one curve."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.artifacts.registry import list_models, load_card
from models.training.trainer import TrainingResult
from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import UserError
from pipeline.core.progress import progress_display
from pipeline.execution.process_group import run_process_group
from pipeline.training.fit import FitJob, fit
from pipeline.training.plan import plan_training
from pipeline.training.train import train
from tests.conftest import SMALL_TRAINING, Small
from tests.pipeline.fits import SMOOTH, TWO_PROCESSES, doomed_member, small_job

EPOCHS = SMOOTH["epochs"]
ALONE = WorkerSettings(threads=1, device="cpu")
STEADY = ("training.drop_path=0", "training.head_dropout=0", "training.learning_rate=5e-4")


def curve(trained: TrainingResult) -> list[dict[str, Any]]:
    """The curve without what depends on the clock."""
    return [asdict(replace(record, images_per_second=0.0)) for record in trained.history]


def same_weights(one: TrainingResult, other: TrainingResult) -> bool:
    first, second = one.network.state_dict(), other.network.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return fit(small_job(tmp_path_factory.mktemp("alone")), ALONE)


@pytest.fixture(scope="module")
def told() -> list[tuple[int, str]]:
    """What the progress of the group was told."""
    return []


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory, told: list[tuple[int, str]]) -> TrainingResult:
    @contextmanager
    def listen(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        assert total == EPOCHS * 64
        yield lambda done, note: told.append((done, note))

    with progress_display(listen):
        return fit(small_job(tmp_path_factory.mktemp("group")), TWO_PROCESSES)


# --- one process and two ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(alone: TrainingResult, group: TrainingResult) -> None:
    """Mixup, any rotation, zoom, shift, mirror images and RandAugment are on."""
    assert len(alone.history) == len(group.history) == EPOCHS
    for one, two in zip(curve(alone), curve(group), strict=True):
        assert two == pytest.approx(one, rel=2e-3, abs=1e-6)
    assert not same_weights(alone, group)  # the sums of two processes round otherwise: it was two
    torch.testing.assert_close(group.validation_logits, alone.validation_logits, atol=2e-2, rtol=2e-2)


@pytest.mark.slow
def test_the_progress_of_a_group_comes_from_its_journal(group: TrainingResult, told: list[tuple[int, str]]) -> None:
    assert [done for done, _ in told] == [64] * EPOCHS
    assert [note.split(",")[0] for _, note in told] == [f"loss {record.loss:.3f}" for record in group.history]


@pytest.mark.slow  # two starts of a cluster
def test_a_group_that_lost_a_member_goes_on_from_the_last_epoch_to_the_same_curve(
    group: TrainingResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = small_job(tmp_path)
    assert run_process_group(doomed_member, job, TWO_PROCESSES, world=2) == EPOCHS
    assert "attempt 1 of 2 ended early" in caplog.text
    assert 2 <= int((tmp_path / "killed").read_text()) < EPOCHS  # epochs that were finished when it was killed
    resumed = fit(job, ALONE)  # reads what the group has left
    assert curve(resumed) == curve(group)
    assert same_weights(resumed, group)


@pytest.mark.parametrize(
    ("values", "train", "message"),
    [
        ({"batch_size": 18}, np.arange(64), r"batches of 18 images .*2 processes .*multiple of 4"),
        ({"batch_size": 64}, np.arange(31), r"batches of 30 images \(training.batch_size = 64\)"),
    ],
)
def test_batches_that_a_group_cannot_share(
    values: dict[str, Any], train: np.ndarray, message: str, tmp_path: Path
) -> None:
    job = small_job(tmp_path, train=train, **values)
    with pytest.raises(UserError, match=message):
        fit(job, TWO_PROCESSES)
    assert not job.checkpoint.exists()


# --- one process --------------------------------------------------------------------------------------------------


def diverging(folder: Path) -> FitJob:
    """Weights far too large after the first step."""
    return small_job(folder, learning_rate=1e25, clip_gradient=0.0, warmup_epochs=0.0, epochs=2)


def test_a_loss_that_is_no_number_is_an_error_in_words(tmp_path: Path) -> None:
    job = diverging(tmp_path)
    with pytest.raises(UserError, match=r"in epoch 1, step \d of 4.*training\.learning_rate"):
        fit(job, ALONE)
    assert not job.checkpoint.exists()


def test_the_first_weights_follow_the_seed_alone(alone: TrainingResult, tmp_path: Path) -> None:
    torch.rand(3)
    again = fit(small_job(tmp_path / "again"), ALONE)
    assert same_weights(alone, again) and curve(alone) == curve(again)
    other = fit(small_job(tmp_path / "other", seed=1, epochs=1), ALONE)
    assert other.history[0].loss != alone.history[0].loss


def test_pixels_of_another_size_are_refused(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    with job.pixels.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match=r"pixels\.u8: pixels of shape \(96, 3, 32, 32\) are not there"):
        fit(job, ALONE)


# --- torchrun -----------------------------------------------------------------------------------------------------


@pytest.mark.slow  # the group itself is tried in test_process_group
def test_torchrun_trains_and_publishes_what_one_process_does(small: Small, tmp_path: Path) -> None:
    """Two models one after the other, by the same two processes; the first process publishes."""
    overrides = [*SMALL_TRAINING, *STEADY]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    driver = ["-m", "tests.pipeline.train_driver", str(tmp_path / "two"), str(small.images.source), "2", *overrides]
    ran = subprocess.run(
        [*command, *driver], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=110
    )
    assert ran.returncode == 0, ran.stderr
    workspace = small.elsewhere(tmp_path / "one", 'folders.models="models"', *STEADY)
    card = train(workspace, small.images)
    found = list_models(tmp_path / "two" / "models")
    assert len(found) == 2 and card.model_id in found  # the same id: how many processes train is no setting of it
    other = load_card(tmp_path / "two" / "models", card.model_id)
    for one, two in zip(card.history, other.history, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-3)
        assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=2e-3)
    assert not list((tmp_path / "two" / "models").glob(".training/*"))
    assert plan_training(workspace, small.images).model_id == card.model_id
