"""The whole life of a workspace under a service, against a real Prefect server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.service.story import tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_tiles_labels_gate_promotion_and_a_refusal(tmp_path: Path) -> None:
    lines = tell(tmp_path)
    assert "promoted" in "".join(lines) and "refused by" in "".join(lines)
