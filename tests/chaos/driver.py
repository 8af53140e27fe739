"""What runs in the processes that are forked ready to go: the story of a survey, or a command without Prefect.

Everything heavy is imported here, once, so that a disturbed run takes a second.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import astropy.io.votable
import hats.io.validation
import mocpy

import catalogs.citation
import catalogs.export.vo_metadata
import catalogs.export.writers
import catalogs.labels.checks
import catalogs.labels.io
import catalogs.releases.diff
import catalogs.releases.hats_metadata
import catalogs.releases.id_index
import catalogs.releases.margin_cache
import catalogs.releases.readme
import catalogs.validation.audit
import flows.cli.main
import models.inference.predictor
import pipeline.readers.bricks.reader
import pipeline.readers.cutouts.reader
import pipeline.readers.hdf5
import pipeline.readers.images
import pipeline.survey.classify
from pipeline.config.workspace import open_workspace
from tests.chaos.disk import enter
from tests.pipeline.survey_driver import run

__all__ = ["astropy", "catalogs", "command", "hats", "mocpy", "models", "pipeline", "story"]


def story(log: str, namespace: str, root: str, *overrides: str) -> None:
    """Survey a workspace without Prefect; exit status 3 when tiles failed, as that of the command.

    `namespace` is a process in whose mount namespace the workspace lies, 0 for this one.
    """
    _apart(log)
    if int(namespace):
        enter(int(namespace))
    summary = run(open_workspace(Path(root), overrides))
    for tile, error in summary.failed.items():
        print(f"failed, {tile}: {error.strip().splitlines()[-1]}", flush=True)
    sys.exit(3 if summary.failed else 0)


def command(log: str, *words: str) -> None:
    """Run a command of the command line."""
    _apart(log)
    sys.exit(flows.cli.main.main(words))


def _apart(log: str) -> None:
    """A process group of its own, so that it can be killed with its children; what is printed goes to a file."""
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
