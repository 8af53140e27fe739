"""`morphcat demo`: the whole path on a simulated sky, in front of the user."""

from __future__ import annotations

import argparse

from flows.cli.benchmark import print_benchmark, run_benchmark
from flows.cli.common import Subparsers, bars, count, make_root, short, workspace_of
from flows.cli.display import print_message, print_table, rows_of
from flows.cli.sky import columns_and_rows, write_block, write_sky
from flows.cli.survey import print_summary, run_survey
from flows.cli.training import run_train
from pipeline.config.workspace import Workspace

_DEMO_SETTINGS = ['training.variant="cpu_tiny"', "training.epochs=25"]  # two minutes on two cores
_DEMO_QUERIES = {
    "How many of each class": (
        "SELECT label, count(*) AS n, round(avg(confidence), 3) AS mean_confidence "
        "FROM morphology GROUP BY label ORDER BY n DESC, label"
    ),
    "The surest edge-on discs": (
        "SELECT source_name, round(ra, 5) AS ra, round(dec, 5) AS dec, label, confidence FROM morphology "
        "WHERE label LIKE 'edge_on%' AND is_reliable ORDER BY confidence DESC, object_id LIMIT 5"
    ),
    "Where the network hesitates": (
        "SELECT source_name, label, confidence, confidence_gap, entropy FROM morphology "
        "ORDER BY entropy DESC, object_id LIMIT 5"
    ),
}


def add(subparsers: Subparsers) -> None:
    """Declare `demo`."""
    parser = subparsers.add_parser("demo", help="the whole path on a simulated sky: train, classify, query")
    parser.add_argument("--tiles", type=count, default=4, help="sky tiles (4)")
    parser.add_argument("--galaxies", type=count, default=50, help="galaxies a tile, and a brick (50)")
    parser.add_argument(
        "--bricks", type=columns_and_rows, default=(2, 1), metavar="CxR", help="survey bricks, or none (2x1)"
    )
    parser.add_argument("--benchmark", type=count, default=1500, help="labelled images to train and test on (1500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=demo)


def demo(arguments: argparse.Namespace) -> int:
    """The whole path on a simulated sky, in one workspace."""
    from catalogs.query.sql import query as run

    arguments.set = [*_DEMO_SETTINGS, *arguments.set]  # what the user sets wins
    workspace = workspace_of(arguments)
    make_root(workspace)
    print_message(f"Demo in {workspace.root}. The sky is simulated; everything else is the real thing.")
    with bars():
        write_sky(workspace, arguments)
        write_block(workspace, arguments)
    arguments.tiles, arguments.model = [], None
    card = run_train(arguments)
    arguments.model = card["model_id"]
    print_benchmark(run_benchmark(arguments))
    summary, status = run_survey(workspace, arguments)
    print_summary(summary)
    for title, sql in _DEMO_QUERIES.items():
        table = run(workspace.catalog, sql)
        print(f'\n{title}:\n  morphcat --workspace {arguments.workspace} query "{sql}"')
        print_table(table.column_names, rows_of(table))
    print(f"\nTruth of the simulated tiles: {_agreement(workspace)}")
    print("\nWhere everything lies:")
    release = workspace.catalog / "releases" / str(summary["release"])
    for what, path in (
        ("sky tiles (simulated)", workspace.incoming),
        ("labelled images (simulated)", workspace.benchmark / "galaxy10.h5"),
        ("model", workspace.models / card["model_id"]),
        ("catalogue (HATS)", release / "morphology"),
        ("quarantine", release / "sidecar" / "quarantine.parquet"),
        ("reports", workspace.reports),
    ):
        print(f"  {what:28} {short(path)}")
    return status


def _agreement(workspace: Workspace) -> str:
    """How often the catalogue's label is the one the galaxy was simulated with."""
    import pandas as pd

    from catalogs.query.sql import query as run

    truth = pd.read_csv(workspace.root / "simulated_truth.csv")[["source", "slug"]]
    of_bricks = workspace.root / "simulated_bricks_truth.csv"
    if of_bricks.exists():
        rows = pd.read_csv(of_bricks)
        rows["source"] = "simulated-bricks/" + rows["brick"] + "#" + rows["objid"].astype(str)
        truth = pd.concat([truth, rows[["source", "slug"]]])
    called = run(workspace.catalog, "SELECT source_name, label FROM morphology").to_pandas()
    called["source"] = called["source_name"].str.removeprefix(f"{workspace.incoming.name}/")
    both = truth.merge(called, on="source")
    right = int((both["slug"] == both["label"]).sum())
    return f"{right} of {len(both)} labels are right"
