"""One Prefect server for all tests of flows, real and temporary."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli.main import main

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")


def make_workspace(root: Path, *, tiles: int, galaxies: int, epochs: int) -> Path:
    """A workspace with a simulated sky and a small model, made by the commands themselves."""
    arguments = ["--workspace", str(root)]
    sky = ["--tiles", str(tiles), "--galaxies", str(galaxies), "--benchmark", "60"]
    assert main([*arguments, "simulate", *sky]) == 0
    settings = ["--set", f"training.epochs={epochs}", "--set", "training.image_size=32"]
    assert main([*arguments, "train", "--variant", "cpu_tiny", *settings]) == 0
    return root


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A temporary Prefect server; flows run against it without the second that a heartbeat costs at their end."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield
