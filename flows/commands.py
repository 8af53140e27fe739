"""What each command of the command line does. Heavy packages are imported where a command needs them."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flows import prefect_home
from flows.display import print_csv, print_json, print_table, progress_bar, rows_of, say
from pipeline.errors import UserError
from pipeline.progress import shown_by, track
from pipeline.settings import FILE_NAME, Workspace, open_workspace, to_toml

EXIT_TILES_FAILED = 3


def config(arguments: argparse.Namespace) -> None:
    """Print the settings in force, or write them."""
    workspace = _workspace(arguments)
    if arguments.write:
        path = workspace.root / FILE_NAME
        if path.exists():
            raise UserError(f"{path} is there already; edit it, or delete it first")
        _make_root(workspace)
        path.write_text(to_toml(workspace.settings))
        say(f"wrote {path}")
    elif arguments.json:
        print_json(workspace.settings.model_dump())
    else:
        print(to_toml(workspace.settings), end="")


def simulate(arguments: argparse.Namespace) -> None:
    """Write a simulated sky."""
    workspace = _workspace(arguments)
    _make_root(workspace)
    with _bars():
        made = _simulate(workspace, arguments)
    print_json(made) if arguments.json else [print(f"{key}: {value}") for key, value in made.items()]


def train(arguments: argparse.Namespace) -> None:
    """Train a network and name the model."""
    card = _run_train(arguments)
    if arguments.json:
        print_json(
            {
                key: card[key]
                for key in ("model_id", "variant", "parameters", "temperature", "validation", "test", "data")
            }
        )
        return
    for name in ("validation", "test"):
        if numbers := card[name]:
            print(
                f"{name}: accuracy {numbers['accuracy']:.3f}, macro-F1 {numbers['macro_f1']:.3f}, calibration error "
                f"{numbers['ece']:.3f} on {numbers['n']} images" + _simulated(card["data"]["simulated"])
            )
    print(f"model: {card['model_id']}")


def models(arguments: argparse.Namespace) -> None:
    """List the trained models."""
    from models.registry import champion, list_models, load_card

    root = _workspace(arguments).models
    first = champion(root)
    cards = [load_card(root, model_id) for model_id in list_models(root)]
    rows = [
        {
            "model": card.model_id,
            "champion": card.model_id == first,
            "layout": card.layout,
            "image_size": card.image_size,
            "test_accuracy": card.test["accuracy"] if card.test else None,
            "images": sum(card.data["counts"].values()),
            "source": card.data["source"],
            "simulated": card.data["simulated"],
            "created": card.created,
        }
        for card in cards
    ]
    if arguments.json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        say(f"no models in {root} yet: `morphcat train` makes one")


def benchmark(arguments: argparse.Namespace) -> None:
    """Measure a model on its test split."""
    result = _run_benchmark(arguments)
    print_json(result) if arguments.json else _print_benchmark(result)


def survey(arguments: argparse.Namespace) -> int:
    """Classify what is new and publish."""
    workspace = _workspace(arguments)
    summary, status = _run_survey(workspace, arguments)
    if arguments.json:
        print_json(summary)
    else:
        _print_summary(summary)
    return status


def query(arguments: argparse.Namespace) -> None:
    """Run SQL on the catalogue."""
    from catalogs.query import query as run

    table = run(_workspace(arguments).catalog, arguments.sql, release=arguments.release)
    names, rows = table.column_names, rows_of(table)
    form = "json" if arguments.json else arguments.format
    if form == "json":
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    elif form == "csv":
        print_csv(names, rows)
    else:
        print_table(names, rows)


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


def demo(arguments: argparse.Namespace) -> int:
    """The whole path on a simulated sky, in one workspace."""
    from catalogs.query import query as run

    arguments.set = [*_DEMO_SETTINGS, *arguments.set]  # what the user sets wins
    workspace = _workspace(arguments)
    _make_root(workspace)
    say(f"Demo in {workspace.root}. The sky is simulated; everything else is the real thing.")
    with _bars():
        _simulate(workspace, arguments)
    arguments.galaxy10 = arguments.images = arguments.labels = arguments.label_column = None
    arguments.tiles, arguments.model = [], None
    card = _run_train(arguments)
    arguments.model = card["model_id"]
    _print_benchmark(_run_benchmark(arguments))
    summary, status = _run_survey(workspace, arguments)
    _print_summary(summary)
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
        ("catalogue", release / "morphology.parquet"),
        ("quarantine", release / "sidecar" / "quarantine.parquet"),
        ("reports", workspace.reports),
    ):
        print(f"  {what:28} {_short(path)}")
    return status


def _workspace(arguments: argparse.Namespace) -> Workspace:
    return open_workspace(arguments.workspace, arguments.set)


def _make_root(workspace: Workspace) -> None:
    """Create the workspace's folder, or say why it can not be one."""
    try:
        workspace.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{workspace.root} can not be a workspace ({error.strerror}); choose another with --workspace"
        ) from error
    if not os.access(workspace.root, os.W_OK | os.X_OK):
        raise UserError(f"{workspace.root} can not be written; choose another workspace with --workspace DIR")


def _bars() -> AbstractContextManager[None]:
    return shown_by(progress_bar)


def _simulate(workspace: Workspace, arguments: argparse.Namespace) -> dict[str, Any]:
    from models.recipe import colour_rule
    from pipeline.simulated_sky import simulate as write

    galaxy10 = workspace.benchmark / "galaxy10.h5" if arguments.benchmark else None
    total = arguments.tiles * arguments.galaxies + arguments.benchmark
    with track("simulating galaxies", total) as step:
        write(
            workspace.incoming,
            tiles=arguments.tiles,
            galaxies=arguments.galaxies,
            seed=arguments.seed,
            galaxy10=galaxy10,
            benchmark_images=arguments.benchmark,
            render=colour_rule,
            on_progress=lambda done: step(done, "simulated"),
        )
    return {
        "tiles": arguments.tiles,
        "galaxies": arguments.tiles * arguments.galaxies,
        "incoming": str(workspace.incoming),
        "benchmark": str(galaxy10) if galaxy10 else None,
        "simulated": True,
    }


def _flow_ready(workspace: Workspace, debug: bool) -> None:
    """Everything a flow needs around it: a workspace to write in, Prefect's environment set before its import."""
    _make_root(workspace)
    prefect_home.prepare(workspace.root, debug=debug)
    if not prefect_home.server_configured() and "prefect" not in sys.modules:
        say("starting a temporary Prefect server (set PREFECT_API_URL to use your own) …")


def _training_workspace(arguments: argparse.Namespace) -> Workspace:
    """The workspace with what the options of `train` and `benchmark` set."""
    for option in ("label_column", "variant"):
        if value := getattr(arguments, option, None):
            arguments.set.append(f'training.{option}="{value}"')
    return _workspace(arguments)


def _training_sources(arguments: argparse.Namespace) -> dict[str, str | None]:
    paths = {name: getattr(arguments, name) for name in ("galaxy10", "images", "labels")}
    return {name: str(Path(path).absolute()) if path else None for name, path in paths.items()}


def _run_train(arguments: argparse.Namespace) -> dict[str, Any]:
    workspace = _training_workspace(arguments)
    _flow_ready(workspace, arguments.debug)
    from flows.training import train as flow

    with _bars():
        return flow(str(workspace.root), **_training_sources(arguments), overrides=arguments.set)


def _run_benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    from models.registry import champion

    workspace = _training_workspace(arguments)
    model_id = arguments.model or champion(workspace.models)
    if model_id is None:
        raise UserError(f"no model in {workspace.models}: `morphcat train` makes one")
    _flow_ready(workspace, arguments.debug)
    from flows.training import benchmark as flow

    with _bars():
        return flow(str(workspace.root), model_id, **_training_sources(arguments), overrides=arguments.set)


def _run_survey(workspace: Workspace, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The totals of a survey and the exit status. Where there is nothing to do, no flow is started for it."""
    from pipeline import survey as story

    roots = [Path(root).absolute() for root in arguments.tiles]
    summary = story.already_done(workspace, story.begin(workspace, arguments.model), roots)
    if summary is not None:
        return summary.to_dict(), 0
    _flow_ready(workspace, arguments.debug)
    from flows.survey import TilesFailed
    from flows.survey import survey as flow

    try:
        with _bars():
            return flow(str(workspace.root), [str(root) for root in roots], arguments.model, arguments.set), 0
    except TilesFailed as failed:
        say(f"morphcat: {failed}")
        return failed.summary.to_dict(), EXIT_TILES_FAILED


def _simulated(yes: bool) -> str:
    return " (simulated)" if yes else ""


def _print_benchmark(result: dict[str, Any]) -> None:
    print(
        f"Test accuracy {result['accuracy']:.3f} on {result['n']} held-out images{_simulated(result['simulated'])}; "
        f"macro-F1 {result['macro_f1']:.3f}, calibration error {result['ece']:.3f}, "
        f"{result['images_per_second']:.0f} images/s"
    )
    header = ["true \\ called", *[str(i) for i in range(len(result["classes"]))], "recall"]
    rows = [
        [f"{i} {slug}", *counts, f"{result['recall'][i]:.2f}"]
        for i, (slug, counts) in enumerate(zip(result["classes"], result["confusion"], strict=True))
    ]
    print_table(header, rows)


def _print_summary(summary: dict[str, Any]) -> None:
    if summary["nothing_to_do"]:
        print("nothing to do: every sky tile is done")
    print(
        f"sky tiles {summary['tiles']} ({summary['skipped_tiles']} done before); objects {summary['objects']} = "
        f"{summary['classified']} classified + {summary['unclassified']} without label + "
        f"{summary['quarantined']} quarantined"
    )
    for reason, count in sorted(summary["reasons"].items()):
        print(f"  quarantined, {reason}: {count}")
    if others := summary["passed_over"]:
        print(
            "  passed over, no input by their names: "
            + ", ".join(f"{count} {ending}" for ending, count in others.items())
        )
    for tile, error in sorted(summary["failed"].items()):
        print(f"  failed, {tile}: {error.strip().splitlines()[-1]}")
    for warning in summary["warnings"]:
        say(f"note: {warning}")
    simulated = summary["simulated_objects"]
    print(
        f"release {summary['release']} in {summary['catalog']}"
        + (f", {simulated} objects simulated" if simulated else "")
    )


def _agreement(workspace: Workspace) -> str:
    """How often the catalogue's label is the one the galaxy was simulated with."""
    import pandas as pd

    from catalogs.query import query as run

    truth = pd.read_csv(workspace.root / "simulated_truth.csv")
    called = run(workspace.catalog, "SELECT source_name, label FROM morphology").to_pandas()
    called["source"] = called["source_name"].str.removeprefix(f"{workspace.incoming.name}/")
    both = truth[["source", "slug"]].merge(called, on="source")
    right = int((both["slug"] == both["label"]).sum())
    return f"{right} of {len(both)} labels are right"


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
