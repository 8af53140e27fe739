"""The story of a survey without Prefect: `python -m tests.pipeline.survey_driver ROOT [section.key=value …]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from catalogs.releases.registry import current_release
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.drift.monitor import write_drift
from pipeline.runs.locks import exclusive, survey_lock
from pipeline.runs.run_log import logging_to
from pipeline.survey.plan import find_inputs, make_plan, start_run, survey_roots
from pipeline.survey.run import classify_tiles, release_catalogue
from pipeline.survey.summary import Summary, make_summary, write_report


def run(workspace: Workspace, model_id: str | None = None, roots: Sequence[Path] = ()) -> Summary:
    """All steps in the order of the flow."""
    started = start_run(workspace, model_id)
    with (
        exclusive(survey_lock(workspace.catalog), started.run_id, "survey"),
        logging_to(workspace, "survey", started.run_id),
    ):
        tiles = find_inputs(workspace, survey_roots(workspace, started, roots)).tiles
        todo = make_plan(workspace, started, tiles)
        before = current_release(workspace.catalog)
        failed = classify_tiles(workspace, started, todo)
        release = release_catalogue(workspace, started, tiles)
        if release:
            write_drift(workspace, release.release)
        summary = make_summary(workspace, started, tiles, len(todo.done), failed, release, before)
        write_report(workspace, summary)
    return summary


if __name__ == "__main__":
    run(open_workspace(Path(sys.argv[1]), sys.argv[2:]))
