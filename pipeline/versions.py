"""Which software made a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("morphcat", "torch", "numpy", "pyarrow", "astropy", "dask", "prefect")


def software_versions() -> dict[str, str]:
    """Version of Python and of every package that can change a result; only those installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
