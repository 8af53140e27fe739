"""`morphcat serve`: flows by schedule and by event. `morphcat deploy`: the same for the workers of a work pool."""

from __future__ import annotations

import argparse

from flows.cli.common import Subparsers, make_root, workspace_of
from flows.cli.display import print_json, print_message
from flows.runtime import environment as prefect_home


def add(subparsers: Subparsers) -> None:
    """Declare `serve` and `deploy`."""
    parser = subparsers.add_parser(
        "serve", help="survey new tiles by schedule, retrain when labels come, until it is ended"
    )
    parser.set_defaults(run=run_service)
    pool = subparsers.add_parser("deploy", help="the same flows as deployments for the workers of a Prefect work pool")
    pool.add_argument("pool", metavar="POOL", help="a work pool; made, of type process, where there is none")
    pool.set_defaults(run=deploy)


def run_service(arguments: argparse.Namespace) -> None:
    """Serve until the end."""
    workspace = workspace_of(arguments)
    make_root(workspace)
    prefect_home.prepare(workspace.root, debug=True, adopt=False)
    from flows.service.serve import serve

    serve(workspace, arguments.set, print_message)


def deploy(arguments: argparse.Namespace) -> None:
    """Register the deployments with a server that people run."""
    workspace = workspace_of(arguments)
    make_root(workspace)
    prefect_home.prepare(workspace.root)
    from flows.service.work_pool import register

    names = register(workspace, arguments.set, arguments.pool)
    if arguments.json:
        print_json(names)
        return
    for name in names:
        print(name)
    print_message(f"workers run them: prefect worker start --pool {arguments.pool}")
