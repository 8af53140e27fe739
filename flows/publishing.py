"""The release flow: publish what is committed, on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from catalogs.releases.registry import ReleaseInfo
from flows.runtime.progress import kept_by_prefect
from flows.runtime.retries import if_transient
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.core.errors import UserError
from pipeline.survey.publish import build_release
from pipeline.survey.quarantine import surveyed_model


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5, retry_condition_fn=if_transient)
def build(workspace: Workspace, model: str) -> ReleaseInfo | None:
    with kept_by_prefect():
        return build_release(workspace, model)


@flow(name="release")
def release(workspace: str, model: str | None = None, overrides: list[str] | None = None) -> dict[str, Any]:
    """Publish all committed sky tiles of a model, if anything changed; returns what the release says of itself.

    Without `model` it is that of the current release, else the champion.

    Raises
    ------
    pipeline.core.errors.UserError : no sky tile is committed.
    """
    opened = open_workspace(Path(workspace), overrides or [])
    chosen = model or surveyed_model(opened)
    info = build(opened, chosen) if chosen else None
    if info is None:
        raise UserError(f"no sky tile in {opened.catalog} is committed yet: run the survey first")
    words = [f"* {name}: {value}" for name, value in info.words().items()]
    create_markdown_artifact("\n".join(words), key="release", description=info.release)
    return info.model_dump()
