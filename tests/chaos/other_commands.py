"""`labels add` and `release rollback`, killed and run again."""

from __future__ import annotations

import random
from pathlib import Path

from catalogs.errors import CatalogError
from catalogs.labels.store import digest, in_force, versions
from catalogs.releases.registry import current_name, current_release, history, release_names
from pipeline.config.workspace import Workspace
from pipeline.core.classes import GALAXY10_CLASSES
from tests.chaos import driver
from tests.chaos.moments import Moment
from tests.chaos.outcomes import outcome_of
from tests.chaos.processes import Child, Forked, ended_at_last, said, wait
from tests.chaos.results import Result
from tests.chaos.stage import Stage
from tests.chaos.surveys import Kill, Story, log_of, strike


def labels_add_killed(stage: Stage, root: Path, moment: Moment) -> Result:
    """Add labels of some objects, killed; again; there is one version with all of them."""
    workspace, result = stage.surveyed(root), Result("labels add")
    table = root.with_name(f"{root.name}.csv")
    ids = sorted(outcome_of(workspace).rows["object_id"])[::3]
    classes, chosen = [one.slug for one in GALAXY10_CLASSES], random.Random(0)
    said_of = {object_id: chosen.choice(classes) for object_id in ids}
    table.write_text("object_id,label\n" + "".join(f"{i},{label}\n" for i, label in said_of.items()))
    words = ("labels", "add", str(table), "--author", "chaos")
    _killed(workspace, words, moment, result)
    try:
        if len(versions(workspace.labels)) > 1:
            result.wrong.append("more than one version after the kill")
    except CatalogError as error:
        result.wrong.append(f"labels cannot be read after the kill: {error}")
    _again(workspace, words, result)
    found = in_force(workspace.labels)
    result.rows = found.num_rows
    if dict(zip(found["object_id"].to_pylist(), found["label"].to_pylist(), strict=True)) != said_of:
        result.wrong.append(f"other labels than those of the file (digest {digest(found)})")
    if len(versions(workspace.labels)) != 1:
        result.wrong.append(f"{len(versions(workspace.labels))} versions, not one")
    return result


def rollback_killed(stage: Stage, root: Path, moment: Moment) -> Result:
    """Go back to the first of two releases, killed; again; the next survey leaves it at that."""
    workspace, result = stage.fresh(root, half=True), Result("release rollback")
    with ended_at_last(Story().start(workspace)) as child:
        assert wait(child) == 0, said(child)
    first, _ = release_names(workspace.catalog)
    words = ("release", "rollback", first, "--reason", "chaos")
    _killed(workspace, words, moment, result)
    _again(workspace, words, result)
    with ended_at_last(Story().start(workspace)) as child:
        assert wait(child) == 0, said(child)
    current = current_release(workspace.catalog)
    result.rows = current.objects if current else 0
    if current_name(workspace.catalog) != first:
        result.wrong.append(f"the next survey undid it: readers see {current_name(workspace.catalog)}")
    steps = history(workspace.catalog)
    if not steps or steps[-1]["to"] != first:
        result.wrong.append(f"history.jsonl does not tell of it: {steps}")
    return result


def _start(workspace: Workspace, words: tuple[str, ...]) -> Child:
    return Forked(driver.command, log_of(workspace), "--workspace", str(workspace.root), *words)


def _killed(workspace: Workspace, words: tuple[str, ...], moment: Moment, result: Result) -> None:
    ready = moment.awaited(workspace)
    with ended_at_last(_start(workspace, words)) as child:
        hit = ready(child) and strike(child, workspace, Kill(moment))
        wait(child)
    result.kills += hit
    result.note(workspace, child, f"SIGKILL, {moment.name}{'' if hit else ' (over before)'}")


def _again(workspace: Workspace, words: tuple[str, ...], result: Result) -> None:
    result.reruns = 1
    with ended_at_last(_start(workspace, words)) as child:
        if wait(child) != 0:
            result.wrong.append(f"run again it ended with {child.status()}: {said(child)[-600:]}")
