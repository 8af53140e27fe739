"""Deployments for people who have workers: registered with a work pool of their own Prefect server."""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound

from flows.runtime import environment as prefect_home
from flows.service.deployments import deployments
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError


def register(workspace: Workspace, overrides: list[str], pool: str) -> list[str]:
    """Register the flows of a workspace with a work pool; returns the names of the deployments.

    A pool that is not there is made, of type process: its workers need this package and see the workspace under the
    same path.

    Raises
    ------
    UserError : no Prefect server is known.
    """
    if not prefect_home.server_configured():
        raise UserError(
            "deployments for a work pool need a Prefect server that stays: start `prefect server start`, or "
            "`morphcat serve` for this workspace, and name it with PREFECT_API_URL"
        )
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    chosen = deployments(workspace, overrides, pool)
    for one in chosen:
        one.apply(work_pool_name=pool)
    return [f"{one.flow_name}/{one.name}" for one in chosen]
