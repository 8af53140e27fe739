"""The drift monitor: whether the new objects of a release resemble the earlier ones, over the sky and in each region.

It compares class fractions, mean confidence and novelty, the share with each quality flag, and the share of inputs in
quarantine. A difference is an alarm if it is larger than its limit in the settings and has a p-value of at most
`drift.level` divided by the number of comparisons (Bonferroni), so that the level is the probability of any false alarm
in a report. The rows of a model are compared with those of its own earlier releases. The first release of another model
is compared with the last one of the former model and raises no alarm: `diff` and the gate judge what a new model
changes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from catalogs.atomic import atomic_write
from catalogs.errors import CatalogError
from catalogs.releases.registry import ReleaseInfo, current_name, layout_of, read_release, readable_releases
from pipeline.config.drift import DriftSettings
from pipeline.config.workspace import Workspace
from pipeline.drift.report import DriftReport
from pipeline.runs.run_log import log_only

_log = logging.getLogger(__name__)


def drift(catalog: Path, settings: DriftSettings, release: str | None = None) -> DriftReport:
    """Compare the new rows of a release, the current one unless one is named, with those of the releases before it.

    Raises
    ------
    CatalogError : there is no (such) release, or a file of it or of the one before it is missing or damaged.
    """
    from catalogs.query.sql import find_release

    info, _ = find_release(catalog, release)
    before = earlier_releases(catalog, info)
    report = DriftReport(info.release, info.model_id, order=settings.order, level=settings.level)
    if not before:
        return replace(report, remark="The first release: there is nothing to compare it with.")
    other_model = before[0].model_id if before[0].model_id != info.model_id else ""
    report = replace(report, against=before[0].release, releases=settings.releases, other_model=other_model)
    return _compare(catalog, settings, report, info, before)


def earlier_releases(catalog: Path, info: ReleaseInfo) -> list[ReleaseInfo]:
    """The releases that readers saw before this one, newest first: those of its model; if none, of the last model.

    Releases that were rolled back are not among them.
    """
    readable = readable_releases(catalog)
    position = {other.release: i for i, other in enumerate(readable)}
    chain: list[ReleaseInfo] = []
    last = info
    while (i := position.get(last.release, 0)) > 0:
        last = readable[min(position.get(last.previous, i - 1), i - 1)]
        chain.append(last)
    same = [other for other in chain if other.model_id == info.model_id]
    return same or [other for other in chain if other.model_id == chain[0].model_id]


def _compare(
    catalog: Path, settings: DriftSettings, report: DriftReport, info: ReleaseInfo, before: Sequence[ReleaseInfo]
) -> DriftReport:
    """Fill in the report what can be compared."""
    # Imported in the function, so that reading reports needs neither DuckDB nor SciPy.
    from pipeline.drift.comparison import compare
    from pipeline.drift.counts import ages_of_runs, measures_of, region_sums, tiles_by_age, tiles_since

    now, layouts = layout_of(catalog, info.release), [layout_of(catalog, other.release) for other in before]
    tiles = tiles_since(now, None if report.other_model else layouts[0])
    if tiles.num_rows == 0:
        return replace(report, remark=f"No sky tile was added since release {report.against}.")
    slugs = list(dict.fromkeys([*info.class_slugs, *before[0].class_slugs]))
    measures, theirs = (measures_of(slugs, of.class_slugs) for of in (info, before[0]))
    known = tiles_by_age(layouts[0], ages_of_runs(layouts))
    how = {"order": settings.order, "releases": settings.releases}
    new = region_sums(now, tiles, measures, newly_predicted=True, **how)
    earlier = region_sums(layouts[0], known, theirs, newly_predicted=False, **how)
    regions, tests = compare(new, earlier, measures, settings)
    few = f"Fewer than {settings.min_objects} objects, new or earlier: too few to compare."
    return replace(report, regions=regions, tests=tests, remark="" if tests else few)


def write_drift(workspace: Workspace, release: str) -> DriftReport | None:
    """Write the report of a release as JSON and Markdown under `reports/`; None if it exists already.

    If a release cannot be compared, its report gives the reason.
    """
    path = _path(workspace, release)
    if path.is_file():
        return None
    try:
        report = drift(workspace.catalog, workspace.settings.drift, release)
    except CatalogError as error:
        _log.warning("the drift of release %s is not known: %s", release, error)
        model_id = read_release(workspace.catalog, release).model_id
        report = DriftReport(release, model_id, remark=f"Could not be compared: {error}")
    for alarm in report.alarms:
        log_only(logging.ERROR, f"drift: {alarm}")  # the command prints it at the terminal
    with atomic_write(path.with_suffix(".md")) as temporary:
        temporary.write_text(report.to_markdown(), encoding="utf-8")
    with atomic_write(path) as temporary:  # last, as it marks both as complete
        temporary.write_text(json.dumps(report.to_dict(), indent=1), encoding="utf-8")
    return report


def has_report(workspace: Workspace) -> bool:
    """Whether the current release has a report; True without a release."""
    release = current_name(workspace.catalog)
    return release is None or _path(workspace, release).is_file()


def latest_alarms(workspace: Workspace) -> list[str]:
    """The alarms in the report of the current release; none without a report, or if it cannot be read."""
    release = current_name(workspace.catalog)
    path = _path(workspace, release or "")
    if release is None or not path.is_file():
        return []
    try:
        return [str(alarm) for alarm in json.loads(path.read_bytes())["alarms"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning(
            "%s cannot be read (%s: %s); delete it, and the next survey makes it again",
            path,
            type(error).__name__,
            error,
        )
        return []


def _path(workspace: Workspace, release: str) -> Path:
    return workspace.reports / f"drift-{release}.json"
