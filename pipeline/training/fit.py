"""Fitting a network to its training split: in this process, or in several that train together.

A `FitJob` is what each process needs: small values and the names of files. Pixels are mapped from the cache; labels
and rows are stored beside the checkpoint. What a process group has trained is in the checkpoint, so that the calling
process, which goes on from there, ends with the same weights.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from catalogs.atomic import atomic_write
from models.artifacts.registry import WEIGHTS
from models.networks.checkpoint_conversion import load_checkpoint
from models.networks.factory import create_network
from models.preprocessing import Preprocessing
from models.training.distributed import joined
from models.training.trainer import EpochRecord, LabelledPixels, TrainingDiverged, TrainingResult, train_network
from pipeline.config.training import TrainingSettings
from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import UserError
from pipeline.core.progress import Step, track
from pipeline.datasets.pixel_cache import map_pixels
from pipeline.execution.process_group import Rank, rank_from_environment, run_process_group
from pipeline.execution.task import set_torch_threads

_log = logging.getLogger(__name__)

_ALONE = Rank(rank=0, world=1, address="127.0.0.1", port=0)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


@dataclass(frozen=True)
class FitJob:
    """One training, as plain values and names of files.

    pixels : file of model-ready pixels uint8 (N, 3, S, S), N the number of labels.
    folder : where the training keeps what is not finished.
    images_per_epoch : training images that an epoch passes over.
    initial : file of weights to start from, or empty.
    """

    name: str
    settings: TrainingSettings
    preprocessing: Preprocessing
    num_classes: int
    pixels: Path
    folder: Path
    device: str
    images_per_epoch: int
    initial: str = ""

    @property
    def rows(self) -> Path:
        """Labels int64 (N,) and the rows int64 of the training and validation splits."""
        return self.folder / "rows.npz"

    @property
    def checkpoint(self) -> Path:
        """Everything needed to go on after the last finished epoch."""
        return self.folder / "checkpoint.pt"

    @property
    def journal(self) -> Path:
        """A line of JSON for each epoch that a process group has finished, for the process that waits for it."""
        return self.folder / "journal.jsonl"


def write_rows(job: FitJob, labels: np.ndarray, train: np.ndarray, validation: np.ndarray) -> None:
    """Write what the processes of a training read."""
    with atomic_write(job.rows) as temporary, temporary.open("wb") as file:
        np.savez(file, labels=labels, train=train, validation=validation)


def fit(job: FitJob, workers: WorkerSettings) -> TrainingResult:
    """Train, or go on from the last finished epoch, in `workers.train_processes` processes or those of torchrun.

    Raises
    ------
    UserError : the loss is no longer a number, settings that make no network, processes that die again and again.
    ModelError : weights to start from that do not fit.
    """
    rank = rank_from_environment()
    _check_processes(job, rank.world if rank else workers.train_processes)
    with track(f"training {job.settings.variant}", job.settings.epochs * job.images_per_epoch) as step:
        progress = _Progress(job, step)
        if rank:
            return _train(job, rank, progress.images, progress.epoch)
        if workers.train_processes > 1:
            run_process_group(
                train_rank, job, workers, world=workers.train_processes, while_waiting=progress.read_journal
            )
        else:
            set_torch_threads(workers.torch_threads())
        # After a process group the checkpoint is complete: this reads it and does no further epoch.
        return _train(job, _ALONE, progress.images, progress.epoch)


def train_rank(job: FitJob, rank: Rank) -> int:
    """What each process of a group does; returns the number of epochs. Rank 0 reports progress in the journal."""
    if rank.rank == 0:
        job.journal.write_text("")  # the epochs of the checkpoint are reported again
    return len(_train(job, rank, None, _journal_writer(job) if rank.rank == 0 else None).history)


def _check_processes(job: FitJob, world: int) -> None:
    batch = min(job.settings.batch_size, job.images_per_epoch)
    if batch % (2 * world):
        raise UserError(
            f"batches of {batch} images (training.batch_size = {job.settings.batch_size}): {world} processes share a "
            f"batch in pairs of images; expected a multiple of {2 * world}, no larger than the training split"
        )
    if job.device == "cuda" and world > torch.cuda.device_count() and rank_from_environment() is None:
        raise UserError(
            f"workers.train_processes = {world}: one process for each GPU, and there are {torch.cuda.device_count()}"
        )


def keep_freed_memory() -> None:
    """Let the C library reuse freed blocks instead of giving each back to the system.

    A training step frees and takes the same large buffers again and again; on a CPU the page faults of fresh ones
    cost 5 to 40 % of the speed (benchmarks/training_memory.py). Other C libraries than glibc are left as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _train(
    job: FitJob, rank: Rank, on_step: Callable[[int], None] | None, on_epoch: Callable[[EpochRecord], None] | None
) -> TrainingResult:
    device = torch.device(f"cuda:{rank.local_rank}" if job.device == "cuda" else job.device)
    if device.type == "cpu":
        keep_freed_memory()
    with np.load(job.rows) as arrays:
        labels, train, validation = (torch.from_numpy(arrays[name]) for name in ("labels", "train", "validation"))
    size = job.preprocessing.image_size
    pixels = map_pixels(job.pixels, (len(labels), 3, size, size))
    try:
        with joined(rank.rank, rank.world, f"tcp://{rank.address}:{rank.port}", device, job.name) as group:
            return train_network(
                _build(job),
                LabelledPixels(pixels, labels, train),
                LabelledPixels(pixels, labels, validation),
                job.settings,
                job.preprocessing,
                device=device,
                checkpoint=job.checkpoint,
                group=group,
                on_step=on_step,
                on_epoch=on_epoch,
            )
    except TrainingDiverged as error:
        raise UserError(str(error)) from error


def _build(job: FitJob) -> nn.Module:
    """The network with its first weights: random from the seed, and those of another model if one is named."""
    settings = job.settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = create_network(
            settings.variant,
            layout=settings.layout,
            image_size=job.preprocessing.image_size,
            num_classes=job.num_classes,
            drop_path=settings.drop_path,
            head_dropout=settings.head_dropout,
            checkpoint_activations=settings.checkpoint_activations,
        )
    if job.initial:
        load_checkpoint(network, Path(job.initial), partial=settings.initial_partial)
    return network


def start_report(job: FitJob) -> list[str]:
    """Sentences on the weights that the network takes from elsewhere; none when it takes none."""
    if not job.initial:
        return []
    network, path = _build(dataclasses.replace(job, initial="")), Path(job.initial)
    loaded = load_checkpoint(network, path, partial=job.settings.initial_partial)
    if path.name == WEIGHTS:  # of a model folder, whose name says more
        loaded = dataclasses.replace(loaded, source=f"{path.parent.name}/{path.name}")
    return [f"Started from {loaded}."]


def _journal_writer(job: FitJob) -> Callable[[EpochRecord], None]:
    def write(record: EpochRecord) -> None:
        with job.journal.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    return write


class _Progress:
    """Reports how far a training is: by its own steps and epochs, or by the journal of a process group."""

    def __init__(self, job: FitJob, step: Step) -> None:
        self._job, self._step = job, step
        self._epochs, self._images = 0, 0

    def images(self, count: int) -> None:
        """Count images of the current epoch."""
        self._images += count
        self._step(count, "")

    def epoch(self, record: EpochRecord) -> None:
        """Report a finished epoch, once."""
        if record.epoch < self._epochs:
            return
        self._epochs = record.epoch + 1
        rest, self._images = self._job.images_per_epoch - self._images, 0
        how = (
            f"loss {record.loss:.3f}, validation accuracy {record.validation_accuracy:.3f}, "
            f"{record.images_per_second:.0f} images/s"
        )
        _log.info("%s, epoch %d of %d: %s", self._job.name, record.epoch + 1, self._job.settings.epochs, how)
        self._step(rest, how)

    def read_journal(self) -> None:
        """Report the epochs that the journal has."""
        if self._job.journal.is_file():
            for line in self._job.journal.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    self.epoch(EpochRecord(**json.loads(line)))
