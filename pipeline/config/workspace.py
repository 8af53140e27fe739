"""A workspace: a folder with its settings, which knows where everything lies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.config.renamed import by_present_names
from pipeline.config.settings import Settings, read_settings

FILE_NAME = "morphcat.toml"


class Workspace(BaseModel):
    """A folder with its settings; resolves where everything lies."""

    model_config = ConfigDict(frozen=True)

    root: Path
    settings: Settings

    def changed(self, **sections: dict[str, Any]) -> Workspace:
        """The same with other values of some settings, by section and name (present or old)."""
        values = self.settings.model_dump(by_alias=False)
        for section, changes in sections.items():
            values[section].update(by_present_names(type(getattr(self.settings, section)), changes))
        return Workspace(root=self.root, settings=Settings.model_validate(values))

    @property
    def incoming(self) -> Path:
        return self.root / self.settings.folders.incoming

    @property
    def benchmark(self) -> Path:
        return self.root / self.settings.folders.benchmark

    @property
    def models(self) -> Path:
        return self.root / self.settings.folders.models

    @property
    def catalog(self) -> Path:
        return self.root / self.settings.folders.catalog

    @property
    def labels(self) -> Path:
        return self.root / self.settings.folders.labels

    @property
    def reports(self) -> Path:
        return self.root / self.settings.folders.reports

    @property
    def cache(self) -> Path:
        return self.root / self.settings.folders.cache


def open_workspace(root: Path, overrides: Iterable[str] = ()) -> Workspace:
    """Read the settings of a workspace, with `section.key=value` overrides; creates nothing.

    Raises
    ------
    UserError : the file is no TOML, or a name or value is not known; the message names the nearest known one.
    """
    root = root.absolute()
    return Workspace(root=root, settings=read_settings(root / FILE_NAME, overrides))
