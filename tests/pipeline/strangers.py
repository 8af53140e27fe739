"""Dask workers that are not as the driver: started by hand, with another view of packages and folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.paths import ROOT


def other_numpy(folder: Path) -> Path:
    """A folder of Python packages in which numpy says that it is version 1.0."""
    information = folder / "numpy-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    return folder


def other_code(folder: Path) -> Path:
    """A copy of the packages in which one line differs."""
    for package in ("catalogs", "models", "pipeline"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "pipeline" / "times.py").open("a") as file:
        file.write("# another line\n")
    return folder


def no_code(folder: Path) -> Path:
    """A folder of Python packages in which `pipeline` cannot be imported."""
    (folder / "pipeline").mkdir(parents=True)
    (folder / "pipeline" / "__init__.py").write_text('raise ImportError("nothing is installed here")\n')
    return folder


def keys_of(client: Any, folder: Path) -> dict[str, str]:
    """The keys of the cluster of a client, written to files, as variables for a worker that is to be let in."""
    security = client.security
    keys = {"CA_FILE": security.tls_ca_file, "WORKER__CERT": security.tls_worker_cert}
    keys["WORKER__KEY"] = security.tls_worker_key
    for name, text in keys.items():
        (folder / name).write_text(text)
    return {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(folder / name) for name in keys}


def start(scheduler: str, name: str, folder: Path, *packages: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a worker of this name in a folder; it sees these packages before any other, and has no nanny."""
    paths = os.pathsep.join(map(str, [*packages, ROOT]))
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler]
    options = ["--name", name, "--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [*command, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def address_of(client: Any, name: str) -> str:
    """Where the worker of this name is."""
    workers = client.scheduler_info()["workers"]
    return next(address for address, worker in workers.items() if worker["name"] == name)
