"""One stage for all tests; whatever they leave running is ended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.processes import end_all
from tests.chaos.stage import Stage, make_stage
from tests.conftest import Small


@pytest.fixture(scope="package")
def stage(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    yield make_stage(tmp_path_factory.mktemp("stage"), small.workspace.models)
    end_all()
