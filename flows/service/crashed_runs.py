"""Runs that a killed service left behind, and one run now in place of those it missed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled, Crashed

_PAGE = 200


def mark_crashed_runs(deployments: Sequence[UUID]) -> list[str]:
    """Mark runs that seem to be running as crashed, and cancel those that were missed; returns what was done.

    To be called when nothing runs: a service starts, and it is the only one. Missed runs would all start at once and
    find the same state; one run now replaces them.
    """
    with get_client(sync_client=True) as client:
        running = _runs(client, deployments, [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
        for run in running:
            _set(client, run, Crashed(message="its service was killed"))
        now = datetime.now(UTC)
        scheduled = _runs(client, deployments, [StateType.SCHEDULED])
        missed = [run for run in scheduled if run.expected_start_time and run.expected_start_time < now]
        for run in missed:
            _set(client, run, Cancelled(message="missed while no service ran; another run looks at the present state"))
    counts = [
        (len(running), "runs of a service that was killed, marked as crashed"),
        (len(missed), "missed runs, cancelled"),
    ]
    return [f"{count} {what}" for count, what in counts if count]


def check_now(deployments: Sequence[UUID]) -> None:
    """Run each of these deployments once, now."""
    with get_client(sync_client=True) as client:
        for one in deployments:
            client.create_flow_run_from_deployment(one)


def _runs(client: SyncPrefectClient, deployments: Sequence[UUID], states: list[StateType]) -> list[FlowRun]:
    found: list[FlowRun] = []
    while page := client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states))),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=list(deployments))),
        limit=_PAGE,
        offset=len(found),
    ):
        found += page
    return found


def _set(client: SyncPrefectClient, run: FlowRun, state: State[object]) -> None:
    client.set_flow_run_state(run.id, state, force=True)
