"""Settings of the workers: where units run, with how much of a machine, and how long anything is waited for."""

from __future__ import annotations

import os
import re
from typing import Literal

from pydantic import BaseModel, Field, field_validator

from pipeline.config.renamed import RENAMED_FIELDS

_QUEUE_PATIENCE = 86400.0  # seconds; jobs of SLURM wait for their turn
_PATIENCE = 120.0
_WALLTIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d{2}):(?P<seconds>\d{2})")


class WorkerSettings(BaseModel):
    """Where units of work run."""

    model_config = RENAMED_FIELDS

    kind: Literal["inline", "local", "cuda", "slurm", "connect"] = Field(
        "inline",
        description="inline: this process; local: processes of this machine; cuda: one for each of its GPUs; "
        "slurm: jobs of SLURM; connect: workers of a Dask scheduler that runs already",
    )
    count: int = Field(
        2, alias="n", ge=1, description="processes of local, jobs of slurm; the other kinds have their own number"
    )
    adaptive_max: int = Field(
        0, ge=0, description="local, slurm: most workers; above count they come and go with the work; 0: always count"
    )
    threads: int = Field(
        0,
        ge=0,
        description="torch threads a process; 0 shares the cores among the processes, and leaves workers that "
        "others started as they are",
    )
    train_processes: int = Field(
        1, alias="gang", ge=1, description="processes that train one network together, a GPU each where there are any"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="torch device; auto: a GPU where one is usable")
    retries: int = Field(2, ge=0, description="further tries after a failure of the system (disk, network)")
    max_worker_deaths: int = Field(
        2, alias="deaths", ge=0, description="further tries, alone, of a unit whose worker died"
    )
    unit_seconds: float = Field(
        1800.0, ge=0, description="a worker ends itself when a unit takes longer; 0: never; inline has no limit"
    )
    max_consecutive_failures: int = Field(
        20,
        alias="give_up",
        ge=0,
        description="stop when so many units in a row fail by the system, as on a full disk; 0: never",
    )
    patience_seconds: float = Field(
        0.0,
        alias="patience",
        ge=0,
        description="seconds without any worker after which a stage ends; 0: 120, for slurm a day, as jobs may queue",
    )
    address: str = Field(
        "", description="connect: the scheduler, such as tcp://10.0.0.5:8786, or the path of its scheduler file"
    )
    slurm_queue: str = Field("", description="slurm: partition")
    slurm_account: str = Field("", description="slurm: account that is charged")
    slurm_walltime: str = Field("04:00:00", description="slurm: longest life of a job, [D-]HH:MM:SS")
    slurm_cpus: int = Field(4, ge=1, description="slurm: cores of a job, for torch and for reading")
    slurm_memory: str = Field("16GB", description="slurm: memory of a job")
    slurm_gres: str = Field("gpu:1", description="slurm: generic resource of a job; empty: none, on a CPU")
    slurm_directives: tuple[str, ...] = Field((), description="slurm: further #SBATCH directives, as --qos=high")
    slurm_prologue: tuple[str, ...] = Field((), description="slurm: shell lines before the worker, as module load …")
    slurm_interface: str = Field("", description="slurm: network interface of scheduler and workers, such as ib0")
    slurm_python: str = Field("", description="slurm: Python of the workers; empty: the one that runs now")
    slurm_logs: str = Field("", description="slurm: folder of the jobs' logs; empty: where SLURM puts them")
    slurm_keys: str = Field(
        "~", description="slurm: folder that all nodes see, for the TLS keys of a run; only their owner can read them"
    )

    @field_validator("slurm_walltime")
    @classmethod
    def _is_a_walltime(cls, walltime: str) -> str:
        if not _WALLTIME.fullmatch(walltime):
            raise ValueError("expected [D-]HH:MM:SS, such as 04:00:00 or 1-00:00:00")
        return walltime

    def torch_threads(self) -> int:
        """Threads of this process, or of each process of a cluster on this machine."""
        processes = max(self.count, self.adaptive_max) if self.kind == "local" else 1
        return self.threads or max(1, len(os.sched_getaffinity(0)) // processes)

    def worker_threads(self) -> int:
        """Threads that a unit sets in its worker; 0: as they were set where the worker was started."""
        by_kind = {"local": self.torch_threads(), "slurm": self.slurm_cpus}
        return self.threads or by_kind.get(self.kind, 0)

    def unit_device(self) -> str:
        """The torch device of units: `auto` is decided by each worker, for the driver may have other hardware."""
        return "cuda" if (self.kind, self.device) == ("cuda", "auto") else self.device

    def longest_absence(self) -> float:
        """Seconds without any worker after which a stage ends."""
        return self.patience_seconds or (_QUEUE_PATIENCE if self.kind == "slurm" else _PATIENCE)

    def walltime_seconds(self) -> int:
        """The longest life of a job of SLURM."""
        found = _WALLTIME.fullmatch(self.slurm_walltime)
        assert found is not None  # validated
        days, hours, minutes, seconds = (int(found[part] or 0) for part in ("days", "hours", "minutes", "seconds"))
        return ((24 * days + hours) * 60 + minutes) * 60 + seconds
