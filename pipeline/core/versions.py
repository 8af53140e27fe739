"""Which software made a result."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("morphcat", "torch", "numpy", "pyarrow", "astropy", "dask", "prefect")


def software_versions() -> dict[str, str]:
    """Version of Python and of every package that can change a result; only those installed."""
    return {"python": platform.python_version(), **versions_of(_PACKAGES)}


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Installed version of each of these packages; only those installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def code_digest() -> str:
    """Sixteen hexadecimal digits over the source files that make results, as they are on disk now.

    Two checkouts can call themselves by the same version; `flows` is left out, which no worker runs.
    """
    digest = hashlib.sha256()
    for package in ("catalogs", "models", "pipeline"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(_ROOT).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def git_revision() -> str:
    """The commit this code is checked out at, with "-dirty" when files differ; empty if it is no checkout."""
    if not (_ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a checkout of somebody else
        return ""
