"""When a task of a flow is worth another try."""

from __future__ import annotations

from typing import Any

from pipeline.core.errors import is_transient


def if_transient(task: Any, run: Any, state: Any) -> bool:
    """Retry what the system failed at (disk, network), not what the user has to put right, nor a bug."""
    return is_transient(state.result(raise_on_failure=False))
