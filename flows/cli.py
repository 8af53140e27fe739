"""The command line: parsing, and errors in words. What commands do stands in `flows.commands`.

Nothing heavy is imported here, so that help, `config` and `query` start at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

EXIT_ERROR = 1  # something the user can put right
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 an error, 2 a wrong command line, 3 some sky tiles failed."""
    arguments = _parse(argv)
    _set_logging(arguments.debug)
    from flows import commands

    try:
        return int(getattr(commands, arguments.command)(arguments) or 0)
    except KeyboardInterrupt:
        print("interrupted; what is committed stays, run again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.debug:
            raise
        print(f"morphcat: {_in_words(error)}", file=sys.stderr)
        return EXIT_ERROR


def _set_logging(debug: bool) -> None:
    """Our own logs in full with --debug; of others only what went wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("distributed").setLevel(logging.WARNING if debug else logging.ERROR)
    for package in ("flows", "pipeline", "models", "catalogs"):
        logging.getLogger(package).setLevel(logging.DEBUG if debug else logging.WARNING)


def _in_words(error: Exception) -> str:
    from catalogs.errors import CatalogError
    from models.errors import ModelError
    from pipeline.errors import UserError

    if isinstance(error, (UserError, CatalogError, ModelError)):
        return str(error)
    if isinstance(error, PermissionError):
        return f"{error.filename}: {error.strerror}; choose a workspace you can write, with --workspace DIR"
    if isinstance(error, OSError):
        return f"{error}"
    return f"{type(error).__name__}: {error} (a bug? run again with --debug for the traceback)"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="morphcat", description="Galaxy-morphology catalogues from sky tiles of the DESI Legacy Imaging Surveys."
    )
    parser.add_argument("--version", action="version", version=f"morphcat {version('morphcat')}")
    _common(parser, "")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_demo, _simulate, _train, _models, _benchmark, _survey, _query, _config):
        _common(add(commands), "_after")
    arguments = parser.parse_args(argv)
    arguments.workspace = Path(arguments.workspace_after or arguments.workspace or "morphcat-workspace")
    arguments.set = [*arguments.set, *arguments.set_after]
    arguments.json = arguments.json or arguments.json_after
    arguments.debug = arguments.debug or arguments.debug_after
    return arguments


def _common(parser: argparse.ArgumentParser, suffix: str) -> None:
    """Options that may stand before or after the command; `suffix` keeps the two apart until both are read."""
    parser.add_argument(
        "--workspace", metavar="DIR", dest=f"workspace{suffix}", help="folder of everything (./morphcat-workspace)"
    )
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        dest=f"set{suffix}",
        help="change a setting for this call; repeatable",
    )
    parser.add_argument(
        "--json", action="store_true", dest=f"json{suffix}", help="print the result as JSON, for scripts"
    )
    parser.add_argument("--debug", action="store_true", dest=f"debug{suffix}", help="print tracebacks and logs")


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _demo(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser("demo", help="the whole path on a simulated sky: train, classify, query")
    parser.add_argument("--tiles", type=_count, default=4, help="sky tiles (4)")
    parser.add_argument("--galaxies", type=_count, default=50, help="galaxies a tile (50)")
    parser.add_argument("--benchmark", type=_count, default=1500, help="labelled images to train and test on (1500)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _simulate(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "simulate", help="write a simulated sky: tiles to classify, a labelled set to train on"
    )
    parser.add_argument("--tiles", type=_count, default=4, help="sky tiles under incoming/ (4)")
    parser.add_argument("--galaxies", type=_count, default=50, help="galaxies a tile (50)")
    parser.add_argument(
        "--benchmark", type=_count, default=0, help="images of benchmark/galaxy10.h5, Galaxy10 layout (0: none)"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--galaxy10", metavar="FILE", help="HDF5 file of the Galaxy10 layout (benchmark/galaxy10.h5)")
    parser.add_argument("--images", metavar="DIR", help="folder of JPEG or PNG pictures, with --labels")
    parser.add_argument("--labels", metavar="CSV", help="table with a column of file names and one of class numbers")
    parser.add_argument("--label-column", metavar="NAME", help="name of the label column, where it can not be guessed")


def _train(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser("train", help="train a network on labelled images; the first model becomes champion")
    _images(parser)
    parser.add_argument("--variant", metavar="NAME", help="cpu_tiny, cpu_small, astroformer_0 … astroformer_5")
    return parser


def _models(commands: Commands) -> argparse.ArgumentParser:
    return commands.add_parser("models", help="list the trained models")


def _benchmark(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "benchmark", help="measure a model on the test split of the images it was trained with"
    )
    _images(parser)
    parser.add_argument("--model", metavar="ID", help="the model (the champion)")
    return parser


def _survey(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser("survey", help="classify new or changed sky tiles and publish the catalogue")
    parser.add_argument(
        "--tiles",
        metavar="DIR",
        action="append",
        default=[],
        help="folder or HDF5 file of sky tiles (incoming/); repeatable",
    )
    parser.add_argument("--model", metavar="ID", help="the model (the champion)")
    return parser


def _query(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser("query", help="SQL on the catalogue: tables morphology, quarantine, tiles")
    parser.add_argument("sql", metavar="SQL", help='such as "SELECT label, count(*) FROM morphology GROUP BY label"')
    parser.add_argument("--release", metavar="NAME", help="a release (the current one)")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    return parser


def _config(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser("config", help="print every setting with its meaning, as it is in force here")
    parser.add_argument("--write", action="store_true", help="write them to morphcat.toml in the workspace")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


if __name__ == "__main__":
    sys.exit(main())
