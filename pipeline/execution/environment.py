"""Whether a process can do the units of a run as the driver would: with the same software, folders and kind of device.

The driver sets `WorkerRequirements`, each process describes its `WorkerEnvironment`, and comparing the two gives
sentences for people. This runs in workers as well as in the driver, and knows nothing of Dask, nor of how workers are
asked (`preflight`).
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.core.errors import WorkerMismatch
from pipeline.core.versions import code_digest, versions_of

# What decides the rows of a tile, and `distributed`, which carries the jobs.
DECISIVE = (
    *("morphcat", "torch", "numpy", "scipy", "pyarrow", "astropy", "h5py", "pillow", "cdshealpix"),
    "distributed",
)
LITTLE_DISK = 5.0  # GB; a committed tile takes under 1 MB, a release of a million objects some 0.5 GB

_INSTALL = "install morphcat with the same constraints.txt in the workers' environment"
_CODE = "install the same in both places, and start workers again that run since before an upgrade"
_MOUNT = "mount it under the same path on every machine"
_GPU = "give each worker a GPU and a torch build for it, or set workers.device=cpu"


@dataclass(frozen=True)
class WorkerRequirements:
    """What the processes of a run must be like.

    `versions` are those of the driver, by package, `code` the digest of its own source on disk. `writes` is the folder
    that units write to; `reads` are folders that they read and in which something lies, and so are `inputs`, which are
    asked for at the start alone: what was classified may be taken away. `module` holds the unit.
    """

    python: str
    versions: tuple[tuple[str, str], ...]
    code: str
    device: str
    writes: str
    reads: tuple[str, ...]
    inputs: tuple[str, ...]
    module: str


@dataclass(frozen=True)
class WorkerEnvironment:
    """The environment of a process.

    `free_gb` is the disk left where units write (10⁹ bytes, NaN if it is not seen), `gpus` how many torch sees and
    `gpu` the name and id of the one that was asked for and works, `threads` those of torch (no torch: 0), `cores` those
    that the process may use. `troubles` are sentences on what it cannot do.
    """

    host: str
    pid: int
    python: str
    versions: dict[str, str]
    code: str
    cores: int
    threads: int
    free_gb: float
    gpus: int
    gpu: str
    troubles: tuple[str, ...]


def requirements(
    *,
    device: str,
    writes: Path,
    reads: Iterable[Path] = (),
    inputs: Iterable[Path] = (),
    module: str = "pipeline.survey.classify",
) -> WorkerRequirements:
    """The requirements that this process sets for the workers of its run; torch is not imported for it.

    Parameters
    ----------
    device : torch device of the units; `cuda` asks for a usable GPU.
    writes : the folder that units write to, on a disk that all share; need not exist yet.
    reads, inputs : folders that units read, or files in these; where nothing lies, nothing is asked for.
    module : where the unit stands.
    """
    return WorkerRequirements(
        python=platform.python_version(),
        versions=tuple(versions_of(DECISIVE).items()),
        code=code_digest(),
        device=device,
        writes=str(writes),
        reads=_filled(reads),
        inputs=_filled(inputs),
        module=module,
    )


def _filled(paths: Iterable[Path]) -> tuple[str, ...]:
    """Those folders, or the folders of those files, in which something lies, each once."""
    folders = dict.fromkeys(path.parent if path.is_file() else path for path in paths)
    return tuple(str(folder) for folder in folders if folder.is_dir() and _has_entries(folder))


# --- in the worker --------------------------------------------------------------------------------------------------


def inspect_environment(requirements: WorkerRequirements, at_start: bool) -> WorkerEnvironment:
    """Describe this process; imports the module of the unit and, for a GPU, uses it once."""
    troubles = [_folder_trouble(requirements.writes, filled=False)]
    read = requirements.reads + (requirements.inputs if at_start else ())
    troubles += [_folder_trouble(folder, filled=True) for folder in read]
    troubles.append(_import_trouble(requirements.module))
    gpu, trouble = _gpu(requirements.device) if requirements.device.startswith("cuda") else ("", "")
    troubles.append(trouble)
    torch = sys.modules.get("torch")  # imported by now where units need it
    return WorkerEnvironment(
        host=socket.gethostname(),
        pid=os.getpid(),
        python=platform.python_version(),
        versions=versions_of(DECISIVE),
        code=_loaded_code(),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads() if torch else 0,
        free_gb=_free_gb(requirements.writes),
        gpus=torch.cuda.device_count() if torch else 0,
        gpu=gpu,
        troubles=tuple(filter(None, troubles)),
    )


@cache
def _loaded_code() -> str:
    """The source code of this process, as it was when it was first asked: files may be replaced while it lives."""
    return code_digest()


def _folder_trouble(path: str, filled: bool) -> str:
    """Why a folder cannot be used; `filled` says that the driver sees something in it."""
    try:
        if _has_entries(Path(path)) or not filled:
            return ""
    except OSError as error:
        return f"{path} cannot be read there ({error.strerror}): {_MOUNT}"
    return f"{path} is empty there, and is not for the driver: {_MOUNT}"


def _has_entries(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is not None


def _import_trouble(module: str) -> str:
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # as broken libraries were seen to raise
        return f"{module} cannot be imported there ({type(error).__name__}: {error}): {_INSTALL}"
    return ""


def _gpu(device: str) -> tuple[str, str]:
    """Name and id of the GPU, after a first sum on it; else why there is none."""
    try:
        import torch

        torch.ones(8, device=device).sum().item()
        properties = torch.cuda.get_device_properties(device)
    except (ImportError, OSError, RuntimeError, AssertionError) as error:  # AssertionError: a build without CUDA
        return "", f"no usable GPU there ({str(error).splitlines()[0]}): {_GPU}"
    return f"{properties.name} {properties.uuid}", ""


def _free_gb(path: str) -> float:
    try:
        return round(shutil.disk_usage(path).free / 1e9, 1)
    except OSError:
        return float("nan")


# --- the comparison -------------------------------------------------------------------------------------------------


def problems(requirements: WorkerRequirements, environment: WorkerEnvironment) -> tuple[str, ...]:
    """Why a process must not do units of this run, each with what to do; empty when it may."""
    found = list(environment.troubles)
    if _minor(environment.python) != _minor(requirements.python):
        found.append(f"Python {environment.python} there, {requirements.python} here: use the same minor version")
    for package, here in requirements.versions:
        there = environment.versions.get(package, "missing")
        if _public(there) != _public(here):
            found.append(f"{package} {there} there, {here} here: {_INSTALL}")
    if environment.code != requirements.code:
        found.append(
            f"other source code of morphcat there ({environment.code}) than here ({requirements.code}): {_CODE}"
        )
    return tuple(found)


def warnings(requirements: WorkerRequirements, environment: WorkerEnvironment) -> tuple[str, ...]:
    """What differs without harm to the rows, or may end badly later."""
    found = []
    if environment.python != requirements.python and _minor(environment.python) == _minor(requirements.python):
        found.append(f"Python {environment.python} there, {requirements.python} here")
    for package, here in requirements.versions:
        there = environment.versions.get(package, "")
        if there != here and _public(there) == _public(here):
            found.append(f"{package} {there} there, {here} here: another build, last digits may differ")
    if environment.free_gb < LITTLE_DISK:
        found.append(f"only {environment.free_gb:g} GB are free for {requirements.writes}")
    if environment.gpus and not environment.gpu and not requirements.device.startswith("cuda"):
        found.append(f"{environment.gpus} GPUs there are not used: workers.device=cuda would")
    if environment.threads > environment.cores:
        found.append(f"{environment.threads} torch threads on {environment.cores} cores: lower workers.threads")
    return tuple(found)


def _minor(python: str) -> str:
    """3.11 of 3.11.4."""
    return python.rpartition(".")[0]


def _public(version: str) -> str:
    """A version without its local part, which names the build: 2.13.0 of 2.13.0+cu130."""
    return version.partition("+")[0]


# --- workers that come later ----------------------------------------------------------------------------------------


@cache  # keeps a success, not an error: done once in each process
def check_worker(requirements: WorkerRequirements) -> None:
    """Make sure that this process may do units of the run.

    The preflight asks the workers that exist at the start; a cluster that grows, and a process that is started in
    the place of a dead one, bring others. They are asked the same but for the clock, the inputs, and whether what they
    write arrives.

    Raises
    ------
    pipeline.core.errors.WorkerMismatch : it may not; the message says why.
    """
    environment = inspect_environment(requirements, at_start=False)
    found = problems(requirements, environment)
    if found:
        raise WorkerMismatch(
            f"a worker on {environment.host} (process {environment.pid}) cannot do this run:\n  "
            + "\n  ".join(found)
            + "\nput it right, or take it out; what is committed stays, and running again goes on"
        )
