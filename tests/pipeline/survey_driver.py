"""The story of a survey without Prefect: `python -m tests.pipeline.survey_driver ROOT [section.key=value …]`."""

from __future__ import annotations

import sys
from pathlib import Path

from catalogs.release import current_release
from pipeline import survey
from pipeline.locks import alone, survey_lock
from pipeline.settings import Workspace, open_workspace


def run(workspace: Workspace, model_id: str | None = None) -> survey.Summary:
    """All steps in the order of the flow."""
    this = survey.begin(workspace, model_id)
    with alone(survey_lock(workspace.catalog), this.run_id, "survey"):
        tiles = survey.find_tiles(workspace, survey.roots_of(workspace, this, []))
        todo = survey.make_plan(workspace, this, tiles)
        before = current_release(workspace.catalog)
        failed = survey.classify_tiles(workspace, this, todo)
        release = survey.release_catalogue(workspace, this, tiles)
        summary = survey.sum_up(workspace, this, tiles, len(todo.done), failed, release, before)
        survey.write_report(workspace, summary)
    return summary


if __name__ == "__main__":
    run(open_workspace(Path(sys.argv[1]), sys.argv[2:]))
