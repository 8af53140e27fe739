"""`morphcat workers check | script`: whether the workers can do a survey, and the job script of SLURM."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.cli.common import Subparsers, make_root, workspace_of
from flows.cli.display import print_json, print_message, print_table
from pipeline.config.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.execution.preflight import WorkerReport

EXIT_UNFIT = 1
_HEADER = ("worker", "host", "process", "python", "torch", "threads", "GPU", "free GB", "clock s", "state")


def add(subparsers: Subparsers) -> None:
    """Declare `workers check` and `workers script`."""
    parser = subparsers.add_parser("workers", help="whether the workers can do a survey; the job script of SLURM")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    checked = verbs.add_parser("check", help="start or reach the workers and ask each whether it can do a survey")
    checked.set_defaults(run=check)
    scripted = verbs.add_parser("script", help="print the script that each job of SLURM runs; starts nothing")
    scripted.set_defaults(run=script)


def check(arguments: argparse.Namespace) -> int:
    """Ask the workers that the settings name, as a survey does before its first unit."""
    workspace = workspace_of(arguments)
    if workspace.settings.workers.kind == "inline":
        reports: list[WorkerReport] = []
    else:
        make_root(workspace)
        reports = _ask_workers(workspace)
    compatible = not any(report.problems for report in reports)
    if arguments.json:
        print_json({"ok": compatible, "workers": [_plain(report) for report in reports]})
    elif reports:
        _print(reports)
    else:
        print("ok: workers.kind is inline, units run in the process of the command")
    return 0 if compatible else EXIT_UNFIT


def _plain(report: WorkerReport) -> dict[str, Any]:
    """Plain values, with the key that scripts know for what the worker is like."""
    values = asdict(report)
    return {("condition" if name == "environment" else name): value for name, value in values.items()}


def script(arguments: argparse.Namespace) -> None:
    """Print the job script."""
    from pipeline.execution.slurm import slurm_script

    print(slurm_script(workspace_of(arguments).settings.workers), end="")


def _ask_workers(workspace: Workspace) -> list[WorkerReport]:
    from models.inference.predictor import chosen_device
    from pipeline.execution.clusters import needs_gpu, open_cluster
    from pipeline.execution.environment import requirements
    from pipeline.execution.preflight import ask_workers

    settings = workspace.settings.workers
    needed = requirements(
        device=chosen_device(settings.device),
        writes=workspace.catalog,
        reads=[workspace.models],
        inputs=[workspace.incoming],
    )
    expected = settings.count if settings.kind in ("local", "slurm") else 1
    print_message(f"waiting for the workers ({settings.kind}) …")
    with open_cluster(settings) as client:
        return ask_workers(client, needed, expected=expected, gpu_only=needs_gpu(settings))


def _print(reports: Sequence[WorkerReport]) -> None:
    """A row for each worker, what is to be said of it, and whether all can work."""
    from pipeline.execution.preflight import describe_reports

    print_table(_HEADER, [_row(report) for report in reports])
    for report in reports:
        for warning in report.warnings:
            print(f"warning, {report.address}: {warning}")
    incompatible = any(report.problems for report in reports)
    print(describe_reports(reports, most=len(reports)) if incompatible else "ok: every worker can do a survey")


def _row(report: WorkerReport) -> tuple[str | int | float | None, ...]:
    environment = report.environment
    state = "cannot" if report.problems else "ok"
    if environment is None:
        return (report.address, *[None] * (len(_HEADER) - 2), state)
    free = None if math.isnan(environment.free_gb) else environment.free_gb
    torch, gpu = environment.versions.get("torch"), environment.gpu or environment.gpus or None
    clock = round(report.clock_error, 1)
    return (
        report.address,
        environment.host,
        environment.pid,
        environment.python,
        torch,
        environment.threads,
        gpu,
        free,
        clock,
        state,
    )
