"""What a survey run found and did: its totals, alarms and report, read back from the committed tiles."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from catalogs.atomic import atomic_write
from catalogs.releases.registry import ReleaseInfo
from catalogs.tiles import DUPLICATE, OUTSIDE, TileMetadata
from pipeline.config.workspace import Workspace
from pipeline.core.redaction import redact_values
from pipeline.core.templates import render
from pipeline.core.versions import software_versions
from pipeline.drift.monitor import latest_alarms
from pipeline.runs.run_log import log_only
from pipeline.survey.model_transition import warnings
from pipeline.survey.plan import Run, missing_for_release
from pipeline.survey.tile_status import CLASSIFIED, UNCLASSIFIED, count_outcomes, current_commits
from pipeline.tiles.sky_tile import SkyTile


@dataclass(frozen=True)
class Summary:
    """What a run found and did, over all of its tiles as they are committed now.

    tiles, skipped_tiles : sky tiles found; those that were done before this run.
    objects : classified + unclassified + quarantined + out_of_footprint + duplicates.
    reasons : why inputs are in quarantine; the counts add up to `quarantined`.
    duplicates_across_tiles : rows left out of the release, because another tile has the object.
    failed, waiting : why tiles could not be finished, and why they are still arriving, by tile id.
    passed_over : files that are no input by their names, by extension.
    set_aside : rows of survey catalogues that were not selected, by reason.
    remarks : notes on tiles as a whole, by tile id.
    reused : rows of this run that kept their prediction, because their pixels were the same.
    alarm, drift : a sentence when too much is in quarantine, else empty; the alarms of the drift monitor.
    """

    run_id: str
    model_id: str
    tiles: int
    skipped_tiles: int
    objects: int
    classified: int
    unclassified: int
    quarantined: int
    out_of_footprint: int
    duplicates: int
    reasons: dict[str, int]
    duplicates_across_tiles: int
    simulated_objects: int
    release: str | None
    catalog: str
    failed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    set_aside: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    reused: int = 0
    alarm: str = ""
    drift: list[str] = field(default_factory=list)

    @property
    def nothing_to_do(self) -> bool:
        """Whether every tile that has arrived was done before."""
        return self.skipped_tiles + len(self.waiting) == self.tiles and not self.failed

    def error_lines(self) -> list[tuple[str, str]]:
        """The tiles that failed, in order, each with the last line of its error."""
        return [(tile, error.strip().splitlines()[-1]) for tile, error in sorted(self.failed.items())]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report or a script."""
        return {**asdict(self), "nothing_to_do": self.nothing_to_do}

    def to_markdown(self) -> str:
        """The totals for people."""
        return render("pipeline.survey", "summary.md.j2", summary=self)


def make_summary(
    workspace: Workspace,
    run: Run,
    tiles: Sequence[SkyTile],
    done_before: int,
    failed: dict[str, str],
    release: ReleaseInfo | None,
    before: ReleaseInfo | None,
    skipped_files: dict[str, int] | None = None,
    waiting: dict[str, str] | None = None,
) -> Summary:
    """Add up what is committed of the tiles of a run.

    Parameters
    ----------
    tiles : all that the run has found; `done_before` counts those that needed no work.
    failed : tiles that could not be finished, with their errors, by tile id.
    release, before : the current release after the run, and the one before it.
    skipped_files : files that are no input by their names, by extension.
    waiting : why tiles are still arriving, by tile id.
    """
    commits = current_commits(workspace.catalog, run.card.model_id, tiles)
    of_this_run = [commit for commit in commits if commit.run_id == run.run_id]
    outcomes = count_outcomes(commits)
    set_aside: Counter[str] = Counter()
    for commit in commits:
        set_aside.update(commit.set_aside)
    reasons = _reasons(outcomes)
    return Summary(
        run_id=run.run_id,
        model_id=run.card.model_id,
        tiles=len(tiles),
        skipped_tiles=done_before,
        objects=outcomes.total(),
        classified=outcomes[CLASSIFIED],
        unclassified=outcomes[UNCLASSIFIED],
        quarantined=sum(reasons.values()),
        out_of_footprint=outcomes[OUTSIDE],
        duplicates=outcomes[DUPLICATE],
        reasons=reasons,
        duplicates_across_tiles=release.duplicates_across_tiles if release else 0,
        simulated_objects=release.simulated_objects if release else 0,
        release=release.release if release else None,
        catalog=str(workspace.catalog),
        failed=failed,
        warnings=warnings(run.card.model_id, release, before, missing_for_release(workspace, run, tiles)),
        passed_over=skipped_files or {},
        waiting=waiting or {},
        set_aside=dict(set_aside),
        remarks={commit.tile_id: commit.remarks for commit in commits if commit.remarks},
        reused=sum(commit.reused for commit in of_this_run),
        alarm=_quarantine_alarm(of_this_run or commits, workspace.settings.survey.alarm),
        drift=latest_alarms(workspace),
    )


def _reasons(outcomes: Counter[str]) -> dict[str, int]:
    """How many inputs are in quarantine, by reason; duplicates and positions without pixels are counted apart."""
    apart = (CLASSIFIED, UNCLASSIFIED, DUPLICATE, OUTSIDE)
    return {reason: count for reason, count in outcomes.items() if reason not in apart}


def _quarantine_alarm(commits: Sequence[TileMetadata], limit: float) -> str:
    """A sentence when more than this share of the inputs of some tiles is in quarantine, else nothing.

    These are the tiles that a run has classified, so that a bad night is not lost in a large sky; a run that had none
    to classify looks at all of its tiles.
    """
    outcomes = count_outcomes(commits)
    reasons = _reasons(outcomes)
    inputs, quarantined = outcomes.total(), sum(reasons.values())
    if quarantined <= limit * inputs:
        return ""
    often = ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common(3))
    return (
        f"{quarantined} of {inputs} inputs ({quarantined / inputs:.0%}) are in quarantine, more than "
        f"survey.alarm = {limit:g} allows: {often}"
    )


def write_report(workspace: Workspace, summary: Summary) -> Path:
    """Keep the summary, with the settings and versions of the run, under `reports/`."""
    for alarm in [summary.alarm, *summary.drift]:
        if alarm:
            log_only(logging.ERROR, alarm)  # the command prints it at the terminal
    path = workspace.reports / f"survey-{summary.run_id}.json"
    record = {
        **summary.to_dict(),
        "settings": redact_values(workspace.settings.model_dump()),
        "settings_digest": workspace.settings.digest(),
        "versions": software_versions(),
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1))
    return path
