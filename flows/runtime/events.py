"""The event that says that labels have changed, which starts a retraining at once where somebody serves.

An event may be lost: the schedule of the retraining looks at the labels themselves.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from flows.runtime import environment as prefect_home
from pipeline.core.redaction import redact

_log = logging.getLogger(__name__)

LABELS_UPDATED = "morphcat.labels.updated"


def labels_resource(root: Path) -> str:
    """The resource id of a workspace's labels."""
    return f"morphcat.labels.{hashlib.sha256(str(root).encode()).hexdigest()[:16]}"


def emit_labels_changed(root: Path, version: str, count: int) -> bool:
    """Emit the event where a Prefect server is known; returns whether the server has taken it."""
    if not prefect_home.server_configured() and prefect_home.server_of(root) is None:
        return False  # without the seconds that Prefect's import takes
    prefect_home.prepare(root)
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.events import Event

    event = Event(
        event=LABELS_UPDATED,
        resource={"prefect.resource.id": labels_resource(root), "prefect.resource.name": root.name},
        payload={"version": version, "labels": count},
    )
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except (HTTPError, OSError) as error:
        _log.warning(redact(f"the Prefect server did not take the event: {error}"))
        return False
    return True
