"""Small trainings for the tests of fits; in a module, because functions sent to workers cannot live in a test."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.training.trainer import images_per_epoch
from pipeline.config.training import TrainingSettings
from pipeline.config.workers import WorkerSettings
from pipeline.execution.process_group import Rank
from pipeline.training.fit import FitJob, train_rank, write_rows
from tests.models.toys import CLASSES, RECIPE, toy

TRAIN, VALIDATION = np.arange(64), np.arange(64, 96)
TWO_PROCESSES = WorkerSettings(train_processes=2, threads=1, device="cpu", max_worker_deaths=1)
SMOOTH: dict[str, Any] = {
    "variant": "cpu_tiny",
    "image_size": 32,
    "epochs": 5,
    "batch_size": 16,
    "learning_rate": 5e-4,
    "warmup_epochs": 1.0,
    "randaugment_ops": 1,
    "drop_path": 0.0,  # drawn by each process for itself, with head_dropout
    "head_dropout": 0.0,
    "ema_decay": 0.5,
}


def small_job(folder: Path, *, train: np.ndarray = TRAIN, **values: Any) -> FitJob:
    """A training on images that can be told apart; its files are written."""
    data = toy(96, 1)
    folder.mkdir(parents=True, exist_ok=True)
    data.pixels.numpy().tofile(folder / "pixels.u8")
    settings = TrainingSettings(**{**SMOOTH, **values})
    job = FitJob(
        name="the fit",
        settings=settings,
        preprocessing=RECIPE,
        num_classes=CLASSES,
        pixels=folder / "pixels.u8",
        folder=folder,
        device="cpu",
        images_per_epoch=images_per_epoch(len(train), settings.batch_size),
    )
    write_rows(job, data.labels.numpy(), train, VALIDATION)
    return job


def doomed_member(job: FitJob, seat: Rank) -> int:
    """A member of a group; the second is killed, once, as soon as two epochs are finished."""
    mark = job.folder / "killed"
    if seat.rank == 1 and not mark.exists():

        def watch() -> None:
            while not job.journal.exists() or len(job.journal.read_text().splitlines()) < 2:
                time.sleep(0.005)
            mark.write_text(str(len(torch.load(job.checkpoint, weights_only=True)["history"])))
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=watch, daemon=True).start()
    return train_rank(job, seat)
