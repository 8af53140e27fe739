"""The deployments of a workspace: which flows run when, by schedule and by event.

No concurrency limits of Prefect: their slots leak when a server or a driver is killed. What must not run twice holds a
lock of its own (`pipeline.runs.locks`), and a run that finds it taken ends as "Skipped".
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.flows import Flow
from prefect.types.entrypoint import EntrypointType

from flows.publishing import release
from flows.retraining import retrain
from flows.runtime.events import LABELS_UPDATED, labels_resource
from flows.survey import survey
from flows.training import benchmark
from pipeline.config.workspace import Workspace

_TAG = "morphcat"


def name_of(root: Path) -> str:
    """The name of a workspace's deployments: workspaces of any machine may share one server."""
    return f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:6]}"


def deployments(workspace: Workspace, overrides: list[str], pool: str | None = None) -> list[RunnerDeployment]:
    """The survey, retraining and benchmark with their schedules, and the release on demand.

    overrides : settings as `section.key=value` that every run is given.
    pool : the work pool whose workers run them; without one they are for `Runner`, this process.
    """
    settings = workspace.settings.serve
    trigger = DeploymentEventTrigger(
        name=f"retrain-on-labels-{name_of(workspace.root)}",
        expect={LABELS_UPDATED},
        match={"prefect.resource.id": labels_resource(workspace.root)},
        parameters={"event": "event {{ event.id | string }}, labels {{ event.payload.version }}"},
    )

    def deployment(what: Flow[Any, Any], cron: str, triggers: Any = None, **more: Any) -> RunnerDeployment:
        made = what.to_deployment(
            name_of(workspace.root) + (f"-{pool}" if pool else ""),
            schedules=[CronSchedule(cron=cron, timezone=settings.timezone)] if cron else [],
            triggers=triggers,
            parameters={"workspace": str(workspace.root), "overrides": overrides, **more},
            tags=[_TAG],
            work_pool_name=pool,
            entrypoint_type=EntrypointType.MODULE_PATH,  # the installed package, wherever a worker has it
            description=what.description,
        )
        return cast(RunnerDeployment, made)  # outside of an event loop it is no coroutine

    return [
        deployment(survey, settings.survey, scheduled=True),
        deployment(retrain, settings.retrain, [trigger], scheduled=True),
        deployment(benchmark, settings.benchmark),
        deployment(release, ""),
    ]
